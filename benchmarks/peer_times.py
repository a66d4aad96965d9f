"""Times of other methods on the cases of `benchmarks.propagation`, as JSON.

    python -m benchmarks.peer_times N [--threads 2]

A process of its own, in which OpenMP's threads wait actively, as they do in programs that import
torch alone: dials_hybrid tells them to sleep meanwhile, and torch's eigh on two cores then takes
three to six times as long.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import peers
from .cases import CASES, Case, make_case
from .timing import measure_in_turn, times


@dataclass(frozen=True)
class Peer:
    """A method to compare with."""

    name: str
    function: Callable
    dtype: torch.dtype
    all_depths: bool = True
    differentiable: bool = True


def available_peers(case: Case) -> list[Peer]:
    """Return torch's own ways, and abTEM where it is installed."""
    found = [
        Peer("eigh", peers.eigh, torch.complex128),
        Peer("matrix_exp", peers.matrix_exp, torch.complex64),
        Peer("matrix_exp, one depth", peers.matrix_exp_one_depth, torch.complex64, False),
    ]
    if not case.potential.imag.any():
        found.append(Peer("eigh, told that V is real", peers.eigh, torch.float64))
    if peers.calculate_dynamical_scattering is not None:
        found.append(Peer("abTEM Bloch", peers.abtem, torch.complex128, True, False))
    return found


def timed_orientations(case: Case) -> int:
    """Orientations of which a peer is timed: fewer where one takes seconds."""
    n = case.size["n"]
    return case.size["orientations"] if n <= 140 else 8 if n <= 300 else 2


@dataclass
class PeerRun:
    """A peer on one case: one orientation after another where its matrices are large."""

    peer: Peer
    case: Case
    finite: bool = True

    def __post_init__(self):
        self.samples = timed_orientations(self.case)
        few, n = self.case.fewer(self.samples), self.case.size["n"]
        self.factor = self.case.size["orientations"] / self.samples
        potential = few.potential if self.peer.dtype.is_complex else few.potential.real
        self.potential = potential.to(self.peer.dtype)
        excitation = few.excitation.to(self.peer.dtype.to_real())
        self.parts = excitation.split(self.samples if n <= 140 else 1, dim=2)

    def intensities(self, v: Tensor, s: Tensor) -> Tensor:
        """Return |psi_g|^2 (T, N, depths)."""
        return self.peer.function(v, s, self.case.grid)

    def value(self) -> Tensor:
        """Return the intensities (T, N) at the last depth."""
        with torch.no_grad():
            found = [self.intensities(self.potential, s)[..., -1] for s in self.parts]
        return torch.cat(found)

    def gradients(self) -> None:
        """Form the gradients of every part."""
        for s in self.parts:
            found = peers.value_and_gradient(self.potential, s, self.intensities)
            self.finite &= all(bool(x.isfinite().all()) for x in found)

    def calls(self) -> dict:
        """Return what is to be timed, by name."""
        calls = {(self.peer.name, "value"): self.value}
        if self.peer.differentiable:
            calls[self.peer.name, "gradient"] = self.gradients
        return calls

    def row(self, found: dict, reference: Tensor) -> dict:
        """Return the row of the table from all times and the exact intensities (T, N)."""
        peer = self.peer
        error = (self.value().double() - reference[self.case.spread(self.samples)]).abs().max()
        notes = [] if peer.all_depths else ["last depth alone"]
        notes += [] if peer.differentiable else ["no gradient"]
        notes += [] if self.finite else ["gradient not finite"]
        value, gradient = (found.get((peer.name, what)) for what in ("value", "gradient"))
        scaled = times(value.times(self.factor), gradient and gradient.times(self.factor))
        row = {"method": peer.name, "device": "cpu"}
        row |= {"dtype": str(peer.dtype).removeprefix("torch.")} | scaled
        row |= {"max_error": float(error)}
        row |= {"extrapolated_from": self.samples if self.factor > 1 else None}
        return row | {"notes": ", ".join(notes)}


def peer_rows(n: int, threads: int) -> list[dict]:
    """Return the rows of all peers on the case of N beams, from another process."""
    command = [sys.executable, "-m", __spec__.name, str(n), "--threads", str(threads)]
    environment = os.environ | {"OMP_WAIT_POLICY": "ACTIVE"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main(argv=()) -> None:
    """Print the rows of the peers, which take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", type=int)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    case = make_case(*next(c for c in CASES if c[1] == options.n))
    runs = [PeerRun(peer, case) for peer in available_peers(case)]
    found = measure_in_turn({k: v for run in runs for k, v in run.calls().items()})
    reference = peers.reference_intensities(case)
    print(json.dumps([run.row(found, reference) for run in runs]))


if __name__ == "__main__":
    main(sys.argv[1:])
