"""What nuisance terms do to a refinement that has ended: fits on one linearisation.

python -m benchmarks.nuisance hybrid_refined.h5 [MORE.h5]: files of dials.hybrid_refine. Each choice
of terms starts where the refinement ended, and everything is solved again with the waves and
derivatives from there: minutes for all choices, where refinements would take an hour. The row
"none" is treated in the same way. "R1 held out" is that of reflections in eight parts, each
predicted by a fit to the other seven, equivalents together.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import torch

from dials_hybrid.corrections import Term, Terms
from dials_hybrid.cross_validation import unique_groups
from dials_hybrid.io_cctbx import update_xray_structure
from dials_hybrid.linear import CheapModel, LeastSquares, solve
from dials_hybrid.losses import r1
from dials_hybrid.model_settings import DETECTOR
from dials_hybrid.nuisance import About
from dials_hybrid.outcome import End, result_of
from dials_hybrid.uncertainty import error_model_of

from . import common
from .linearised import at_end, step

FAINT, LEVEL = DETECTOR
OTHERS = {
    "frame_scale=0.02": Term("frame_scale", 0.02),
    "frame_scale=0.1": Term("frame_scale", 0.1),
    "background=0.1": Term("background", 0.1),
    "window=0.1": Term("window", 0.1),
    "resolution=0.2": Term("resolution", 0.2),
}
CHOICES = {
    "none": (),
    "faint": (FAINT,),
    "level": (LEVEL,),
    "faint, level": DETECTOR,
    **{f"faint, level, {name}": (*DETECTOR, term) for name, term in OTHERS.items()},
}
ROUNDS = 4  # of the error model, which follows the residuals
PARTS = 8


class Ended:
    """A refinement at its end, linearised there once."""

    def __init__(self, path: str):
        self.job, self.refinement, cheap = at_end(path)
        self.linearisation = cheap.lin

    def with_terms(self, terms: tuple[Term, ...]) -> dict:
        """Return a row of the table: everything fitted again with these terms."""
        model, state = self.refinement.model, self.refinement.state
        before = {k: v.clone() for k, v in model.state_dict().items()}
        error_model, plain = state.error_model, model.nuisance
        thickness = model.settings.thickness_start
        model.nuisance = Terms(terms, lambda: About.of(model.problem, model.wavenumber, thickness))
        cheap = CheapModel(model, self.linearisation)
        for _ in range(ROUNDS):
            cheap = step(cheap, state.error_model, iterations=10)
            state.error_model = error_model_of(cheap, state.error_model)
        row = self._row(cheap)
        state.error_model, model.nuisance = error_model, plain
        model.load_state_dict(before)
        return row

    def held_out(self, cheap: CheapModel) -> torch.Tensor:
        """Return the intensities (R,) that fits to the other parts predict."""
        o = self.job.problem.observations
        groups = unique_groups(self.job.problem.structure, o.hkl)
        generator = torch.Generator().manual_seed(0)
        part = torch.randint(0, PARTS, (int(groups.max()) + 1,), generator=generator)[groups]
        out = cheap.intensities()
        sigma = self.refinement.state.error_model.robust_sigma(o.intensity, out, o.noise)
        for number in range(PARTS):
            gone = part == number
            fewer = LeastSquares(cheap, sigma.masked_fill(gone, torch.inf), 0)
            x = solve(fewer, cheap.start(), 10)
            out = torch.where(gone, cheap.evaluate(x)[0], out)
        return out

    def _row(self, cheap: CheapModel) -> dict:
        refinement = self.refinement
        end = End(cheap, refinement.state, 0, refinement.plan, 0.0, True, "solved again")
        found, o = result_of(end)[0], self.job.problem.observations
        held_out = self.held_out(cheap)
        row = {
            "R1": found.summary["final"]["r1_obs"],
            "R1 free": found.summary["free"]["r1_obs"],
            "R1 each left out": found.summary["cross_validated"]["r1_obs"],
            "R1 held out": r1(o.intensity, held_out, o.observed & ~o.free),
            "R1 of all": found.summary["final"]["r1_all"],
            "of all, held out": r1(o.intensity, held_out, ~o.free),
        }
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ValueError):
            path = Path(folder) / "refined.cif"
            moved = update_xray_structure(self.job.xray_structure, found.structure)
            common.write_structure(moved, path)
            for label, distance in common.distances(path).items():
                row[f"{label} to X-ray / A"] = distance
        row["values"] = "; ".join(_told(term) for term in found.summary["nuisance"])
        return row


def _told(term: dict) -> str:
    """A term's quantities, the root mean square where it has many."""
    out = []
    for name, found in term.items():
        if isinstance(found, dict):
            value = torch.tensor(found["value"])
            rms = f"r.m.s. {float(value.square().mean().sqrt()):.3f}"
            one = f"{float(value[0]):.3f} +- {found['su'][0]:.3f}"
            out.append(f"{name} {one if len(value) == 1 else rms}")
    return ", ".join(out)


def main() -> None:
    """Print a table for each problem file and write benchmarks/results/nuisance_FILE.json."""
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    for path in sys.argv[1:]:
        ended = Ended(path)
        rows = [{"terms": name, **ended.with_terms(terms)} for name, terms in CHOICES.items()]
        common.print_table(f"{path}: nuisance terms", rows)
        common.save(f"nuisance_{Path(path).stem}", rows)


if __name__ == "__main__":
    main()
