"""How the work of a pass is cut: into chunks for the caches and strips for the cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ..parallel import alike, cores_used, in_threads
from .base import Probe

CHUNK = 32_768  # waves (blocks x beams x orientations) that stay in a core's caches
_TOGETHER = 10_000_000  # multiplications of a product from which on all cores share it
SHARED = 500_000  # multiplications of a stage from which on two Python threads gain


@dataclass(frozen=True)
class Cut:
    """How a sweep is cut into strips: of blocks, or of the samples of every block."""

    dim: int  # of the excitation errors (F, N, T)
    sizes: tuple
    cores: int  # for the products of a strip
    small: bool  # matrices, beside strips that are shared

    @classmethod
    def of(cls, excitation: Tensor) -> Cut:
        """Cut for the cores; where stages are too short to be shared, one core does it all."""
        f, n, t = excitation.shape
        cores = _cores(excitation)
        dim = 0 if alike(f, cores) else 2
        length = excitation.shape[dim]
        cores = cores if f * n * n * t >= SHARED else 1
        count = min(cores, length)
        sizes = tuple((length + k) // count for k in range(count))
        return cls(dim, sizes, cores // count, count > 1 and f * n**3 < _TOGETHER)

    @property
    def beside(self) -> int:
        """How many threads may share products of matrices, beside the strips' work."""
        return 1 if self.small else len(self.sizes)

    def split(self, x: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Return the strips' parts of x, whose blocks are along `dim`; samples share it."""
        return x.split(self.sizes, dim) if self.dim == 0 else (x,) * len(self.sizes)

    def joined(self, parts: Sequence[Tensor], dim: int) -> Tensor:
        """Put parts of blocks together along `dim`; add those of samples up, in the first."""
        return torch.cat(list(parts), dim) if self.dim == 0 else reduce(Tensor.add_, parts)

    def parts(self, probe: Probe, excitation: Tensor) -> tuple[Sequence[Probe], Sequence[Tensor]]:
        """Return the strips' parts of the probe and of the excitation errors (F, N, T)."""
        weights = probe.weight.split(self.sizes, self.dim)
        incident, beam = self.split(probe.incident, 0), self.split(probe.beam, 0)
        probes = [Probe(*x) for x in zip(incident, beam, weights, strict=True)]
        return probes, excitation.split(self.sizes, self.dim)

    def cores_beside(self) -> AbstractContextManager:
        """Let what is done beside the strips' work run on one core where matrices are small.

        The threads that torch has for more wait for further work for some milliseconds, and keep
        the strips from their cores.
        """
        return cores_used(1 if self.small else torch.get_num_threads())

    def each(self, function: Callable, work: Iterable[tuple]) -> list:
        """Return the function's values of the arguments in `work`, one tuple for each strip."""
        work = list(work)
        if len(work) == 1:
            with cores_used(self.cores):
                return [function(*work[0])]
        return list(in_threads(lambda arguments: function(*arguments), work, len(work)))

    def swept(self, sweeps: Sequence[Callable]) -> Iterator[tuple]:
        """Make a call for each strip, without arguments; return what all give, one by one.

        What they need is made before: calls of torch in several threads wait for each other.
        """
        return zip(*self.each(lambda sweep: sweep(), [(sweep,) for sweep in sweeps]), strict=True)


def in_chunks(sweep: Callable, potential: Tensor, excitation: Tensor, probe: Probe) -> Tensor:
    """Return the profiles (F, B, D) by sweep(probe, potential, excitation) of some blocks each."""
    _, n, t = excitation.shape
    given = (probe.incident, probe.beam, probe.weight, potential, excitation)
    blocks = max(1, CHUNK * _cores(excitation) // (n * t))
    chunks = zip(*(x.split(blocks) for x in given), strict=True)
    return torch.cat([sweep(Probe(*of), v, s) for *of, v, s in chunks])


def intensities(seen: Tensor, weight: Tensor) -> Tensor:
    """Return the sums over the samples (F, B, D) of waves (F, D, T, B), weights (F, T, B)."""
    intensity = seen.real.square().addcmul_(seen.imag, seen.imag)
    return intensity.mul_(weight[:, None]).sum(2).mT


def _cores(x: Tensor) -> int:
    """Return how many cores may share the work on x."""
    return torch.get_num_threads() if x.device.type == "cpu" else 1
