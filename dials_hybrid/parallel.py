"""Shares of the work: threads of a process, and processes that each have a part of the batches.

A share is a value that the model is given. `Alone` does everything. In a `Team`, started by
torchrun, every process holds the same model but only its own batches; a pass sums what all
have found, into arrays that are zero where others fill them, so that the result is, bit for
bit, that of one process, or to rounding where a frame is cut into blocks. Process 0 leads: it
alone refines, and tells the others before each pass which one it is and at which parameters.
Nothing that the leader decides can therefore come out differently elsewhere, whatever the
machines.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .records import InputError

TIMEOUT = datetime.timedelta(minutes=30)  # to wait for a process that does not answer


def in_threads(function: Callable, items: Sequence, threads: int) -> Iterator:
    """Yield what the function returns for each item, in order, several threads at once.

    The matrices of a batch are small: a batch for each core keeps the cores busier than all
    cores on one batch. Few results wait to be taken. An error or interrupt drops the items that
    have not begun.
    """
    threads = max(1, min(threads, len(items)))
    if threads == 1:
        yield from map(function, items)
        return
    with_grad = torch.is_grad_enabled()

    def call(item):
        with torch.set_grad_enabled(with_grad):
            return function(item)

    cores, waiting = max(1, torch.get_num_threads() // threads), collections.deque()
    pool = _pool(threads, cores)
    with cores_used(cores):
        try:
            for item in items:
                waiting.append(pool.submit(call, item))
                if len(waiting) > threads:
                    yield _first(waiting)
            while waiting:
                yield _first(waiting)
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)


def alike(count: int, threads: int) -> bool:
    """Tell whether threads that share `count` equal things have about as much to do each."""
    return count % threads == 0 or count >= 4 * threads


def _first(waiting: collections.deque):
    """Return the result of the first future and drop it; one without result stays for `wait`."""
    result = waiting[0].result()
    waiting.popleft()
    return result


_pools = threading.local()  # of the thread that calls: one that works for it may call others
if hasattr(os, "register_at_fork"):  # a child process has none of its parent's threads
    os.register_at_fork(after_in_child=lambda: _pools.__dict__.clear())


def _pool(threads: int, cores: int) -> ThreadPoolExecutor:
    """Return threads that last: new ones would ask the system for all their memory again.

    Each is told how many cores it has: MKL would start threads for all of them in each otherwise.
    """
    pools = _pools.__dict__
    if (threads, cores) not in pools:
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(cores,))
        pools[threads, cores] = pool
    return pools[threads, cores]


@contextlib.contextmanager
def cores_used(cores: int) -> Iterator[None]:
    """Let operations of torch that this thread calls run on that many cores, within the body.

    Every thread has a number of its own, and new ones begin with the one that was set last, in
    whichever: it is left alone where it is right already, as in those of `in_threads`.
    """
    before = torch.get_num_threads()
    if cores == before:
        yield
        return
    torch.set_num_threads(cores)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class LostProcess(Exception):
    """Another process of this run failed or did not answer; the message is for the user."""


class Alone:
    """The share of a process that works alone: everything."""

    rank, size = 0, 1

    def mine(self, batches: Sequence, work: Sequence[float]) -> list:
        """Return the batches that this process propagates."""
        return list(batches)

    def spread(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the inputs of a pass; their gradients are then those of all shares."""
        return inputs

    def collect(self, total: Tensor, *inputs: Tensor) -> Tensor:
        """Return the sum of `total` over all shares; `inputs` are what `spread` returned."""
        return total

    def lead(self, model: nn.Module):
        """Return what the passes are called on."""
        return model

    def dismiss(self, model: nn.Module) -> None:
        """Tell the others that all is done."""


ALONE = Alone()


class Team:
    """One of several processes; the process group must be there already (see `joined`)."""

    def __init__(self, device: str):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device

    def mine(self, batches: Sequence, work: Sequence[float]) -> list:
        """Return the batches that this process propagates, by their estimated work."""
        return [batches[i] for i in allot(work, self.size)[self.rank]]

    def spread(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the inputs of a pass; their gradients are then those of all shares."""
        return _Spread.apply(*inputs)

    def collect(self, total: Tensor, *inputs: Tensor) -> Tensor:
        """Return the sum of `total` over all shares, in place; all processes get it."""
        return _Collect.apply(total, *inputs)

    def lead(self, model: nn.Module) -> Leader:
        """Return, in process 0, what the passes are called on."""
        return Leader(self, model)

    def announce(self, call: tuple[str, dict] | None, model: nn.Module) -> tuple | None:
        """Send a pass (method of the model, its arguments; None: all is done) from process 0.

        The model gets the parameters of process 0. Returns the pass.
        """
        box = [call]
        _answered(dist.broadcast_object_list, box, 0, device=torch.device(self.device))
        flat = torch.cat([p.detach().flatten().double() for p in model.parameters()])
        _answered(dist.broadcast, flat, 0)
        values = flat.split([p.numel() for p in model.parameters()])
        with torch.no_grad():
            for p, value in zip(model.parameters(), values, strict=True):
                p.copy_(value.view_as(p))
        return box[0]

    def serve(self, model: nn.Module) -> None:
        """Take part in the passes that process 0 announces, until it says that all is done."""
        while (call := self.announce(None, model)) is not None:
            name, choices = call
            getattr(model, name)(**choices)

    def dismiss(self, model: nn.Module) -> None:
        """Tell the others, from process 0, that all is done."""
        self.announce(None, model)


class Leader:
    """The passes of process 0, each announced to the others.

    An interrupt waits for the end of a pass, which the others are in as well, and counts once:
    torchrun repeats the one that it receives.
    """

    def __init__(self, team: Team, model: nn.Module):
        self.team, self.model = team, model
        self.passing = self.interrupted = self.pending = False
        signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_) -> None:
        if self.interrupted:
            return
        self.interrupted = True
        if not self.passing:
            raise KeyboardInterrupt
        self.pending = True

    def value_profiles(self, **choices) -> Tensor:
        """See `HybridModel.value_profiles`."""
        return self._together("value_profiles", **choices)

    def tangents(self, **choices) -> tuple[Tensor, Tensor, Tensor]:
        """See `HybridModel.tangents`."""
        return self._together("tangents", **choices)

    def potential_gradients(self, weight: Tensor, **choices) -> Tensor:
        """See `HybridModel.potential_gradients`."""
        return self._together("potential_gradients", weight=weight.cpu(), **choices)

    def _together(self, name: str, **choices):
        self.passing = True
        try:
            self.team.announce((name, choices), self.model)
            found = getattr(self.model, name)(**choices)
        finally:
            self.passing = False
        if self.pending:
            self.pending = False
            raise KeyboardInterrupt
        return found


def allot(work: Sequence[float], size: int) -> list[list[int]]:
    """Return, for each of `size` processes, the indices of its pieces of work, in order.

    The largest piece left goes to the process with the least so far, which is at worst a third
    above the optimum (Graham 1969, doi:10.1137/0117039).
    """
    shares: list[list[int]] = [[] for _ in range(size)]
    load = [0.0] * size
    for i in sorted(range(len(work)), key=lambda i: -work[i]):
        least = load.index(min(load))
        shares[least].append(i)
        load[least] += work[i]
    return [sorted(share) for share in shares]


def launched() -> bool:
    """Return whether torchrun, or what sets the same variables, started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def rank() -> int:
    """Return the number of this process, from the same variables."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return the number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def available(backend: str) -> bool:
    """Tell whether this build of torch has "gloo" or "nccl"."""
    if not dist.is_available():
        return False
    return dist.is_nccl_available() if backend == "nccl" else dist.is_gloo_available()


@contextlib.contextmanager
def joined(device: str) -> Iterator[Alone | Team]:
    """Yield the share of this process, after all processes have found each other.

    Raises LostProcess when they do not, InputError when this torch cannot do it.
    """
    if not launched():
        yield ALONE
        return
    backend = "nccl" if device.startswith("cuda") else "gloo"
    if not available(backend):
        raise InputError(
            f"this build of torch lacks {backend}, which several processes need; start one process "
            "alone, or install torch from pytorch.org"
        )
    if backend == "nccl":
        torch.cuda.set_device(device)
    _answered(dist.init_process_group, backend, timeout=TIMEOUT)
    team = Team(device)
    if team.rank:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # process 0 decides what an interrupt means
    yield team
    # after a failure the others are not there to close the group with
    dist.destroy_process_group()


def _answered(function, *args, **kwargs) -> None:
    try:
        function(*args, **kwargs)
    except RuntimeError as error:
        raise LostProcess(
            "another process of this run failed, as it says itself, or did not answer "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


class _Spread(torch.autograd.Function):
    """The identity; the gradients are summed over the processes, all at once and in order."""

    @staticmethod
    def forward(ctx, *inputs: Tensor):
        return tuple(x.view_as(x) for x in inputs)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        out = [g.clone(memory_format=torch.contiguous_format) for g in grads]
        for g in out:
            _answered(dist.all_reduce, torch.view_as_real(g) if g.is_complex() else g)
        return tuple(out)


class _Collect(torch.autograd.Function):
    """The sum over the processes; each takes back the gradient of its own part.

    The inputs get zero gradients, so that a process without batches joins in `_Spread`, too.
    """

    @staticmethod
    def forward(ctx, total: Tensor, *inputs: Tensor):
        ctx.mark_dirty(total)
        ctx.save_for_backward(*inputs)
        _answered(dist.all_reduce, total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        return (grad, *(torch.zeros_like(x) for x in ctx.saved_tensors))
