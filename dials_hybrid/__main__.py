"""Refine a saved problem where torch, numpy and h5py are, without DIALS.

PROBLEM is what dials.hybrid_refine wrote as output.problem: a problem that was not refined
(output.problem_only=True), or a checkpoint, which is continued. The output goes back to
dials.hybrid_refine, which writes the structure, the data and the report from it.

On several GPUs, processors or machines, start it by torchrun:

  torchrun --nproc-per-node 4 -m dials_hybrid PROBLEM
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from pathlib import Path

import torch

from . import parallel
from .checkpoint import Checkpoint
from .history import HEADER, Progress, format_row
from .plan import format_plan
from .records import InputError
from .refine import Refinement, build_model, out_of_memory_explained

MAX_THREADS = 8  # more wait for each other on matrices of these sizes


class Parser(argparse.ArgumentParser):
    """A parser whose errors are sentences, not exits with status 2."""

    def error(self, message: str):
        """Raise InputError."""
        raise InputError(f"{message}; -h explains the options")


def parser() -> Parser:
    """Return the parser of the command line."""
    out = Parser(
        prog="python -m dials_hybrid",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("problem", metavar="PROBLEM", help="HDF5 file of dials.hybrid_refine")
    out.add_argument(
        "--output",
        default="hybrid_refined.h5",
        metavar="FILE",
        help="the result, and checkpoints on the way (default: %(default)s)",
    )
    out.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto, the default, takes a CUDA device if there is one",
    )
    out.add_argument(
        "--iterations", type=_positive(int), metavar="N", help="largest number of iterations"
    )
    out.add_argument(
        "--threads", type=_positive(int), metavar="N", help="processor threads of each process"
    )
    out.add_argument(
        "--memory",
        type=_positive(float),
        metavar="GB",
        help="bound on the working arrays of each process",
    )
    return out


def _positive(kind):
    def convert(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    convert.__name__ = f"positive {kind.__name__}"
    return convert


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status, 0 only if the output was written."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    try:
        with out_of_memory_explained("lower --memory, or refine with fewer beams"):
            run(parser().parse_args(arguments))
    except (InputError, parallel.LostProcess) as error:
        return _failed(str(error))
    except OSError as error:
        if error.strerror is None:
            raise
        return _failed(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        return _failed("interrupted before anything was refined; no output was written")
    return 0


def _failed(message: str) -> int:
    who = f"process {parallel.rank()}: " if parallel.launched() else ""
    print(f"{who}{message}", file=sys.stderr, flush=True)
    return 1


def run(options: argparse.Namespace) -> None:
    """Refine and write the output.

    Raises InputError for what the user can mend, parallel.LostProcess when another process of
    the run failed.
    """
    stored = with_options(Checkpoint.load(options.problem), options)
    check_output(options.output)
    torch.set_num_threads(options.threads or min(MAX_THREADS, torch.get_num_threads()))
    if stored.finished:
        if parallel.rank() == 0:
            stored.save(options.output)
            print(f"The refinement is complete already. Written: {options.output}")
        return
    device = stored.settings.device
    with parallel.joined(device) as share:
        if share.rank:
            share.serve(build_model(stored.problem, stored.model_settings, 0, device, share))
        else:
            refine(stored, options.output, share)


def with_options(stored: Checkpoint, options: argparse.Namespace) -> Checkpoint:
    """Return the problem with the choices of the command line.

    Raises InputError when CUDA is asked for and absent.
    """
    settings, model = stored.settings, stored.model_settings
    settings = dataclasses.replace(
        settings,
        device=choose_device(options.device),
        iterations=options.iterations or settings.iterations,
    )
    if options.memory:
        model = dataclasses.replace(model, memory=1e9 * options.memory)
    return dataclasses.replace(stored, settings=settings, model_settings=model)


def choose_device(choice: str) -> str:
    """Return "cpu", or the CUDA device of this process: each has its own.

    Raises InputError when there are not enough of them.
    """
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError(
            "--device cuda: torch finds no CUDA device here; use --device cpu, or install a CUDA "
            "build of torch"
        )
    if not parallel.launched():
        return "cuda"
    if parallel.local_rank() >= torch.cuda.device_count():
        raise InputError(
            f"{torch.cuda.device_count()} CUDA devices for more processes; lower --nproc-per-node, "
            "or use --device cpu"
        )
    return f"cuda:{parallel.local_rank()}"


def check_output(name: str) -> None:
    """Raise InputError, before the long work, unless the output can be written."""
    path = Path(name)
    if path.is_dir():
        raise InputError(f"--output {path}: this is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"--output {path}: no permission to write in {path.parent.resolve()}")


def refine(stored: Checkpoint, output: str, share) -> None:
    """Refine from where the problem stands, print the progress and write the output."""
    progress = Progress(lambda row: print(format_row(row), flush=True), output)
    refinement = Refinement(
        stored.problem, stored.model_settings, stored.settings, progress, stored.state, share
    )
    refinement.context = stored.context
    counts = refinement.model.beams.counts
    if len(refinement.plan) > 1:
        print(format_plan(refinement.plan), end="\n\n")
    print(
        f"{len(stored.problem.observations.intensity)} reflections, {len(counts)} blocks, "
        f"{int(counts.max())} beams at most; {share.size} process(es) on "
        f"{stored.settings.device}\n\n{HEADER}",
        flush=True,
    )
    result = refinement.with_fourier(refinement.run())
    refinement.save(output, result)
    share.dismiss(refinement.model)
    final = result.summary["final"]
    print(
        f"\n{'Converged' if result.converged else 'Stopped'}: {result.stop_reason}\n"
        f"R1(obs) {final['r1_obs']:.4f}, wR2 {final['wr2_all']:.4f}, GooF {final['gof']:.2f}\n"
        f"Written: {output}\n\nWhere DIALS is, for the structure, the data and the report:\n\n"
        f"  dials.hybrid_refine {output}"
    )


if __name__ == "__main__":
    sys.exit(main())
