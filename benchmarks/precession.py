"""Rotation or precession: frames of paracetamol whose file says the one and are the other.

First how bright reflections are at |S| / dS, the share of the way to the rim of the cone at which
a frame's middle has them, each in units of its own mean within 0.6 dS: as measured, and as a cone
blurred by mosaic blocks has it. Then R1 of some frames with nothing refined, taken as both. At last
the samples on the cone, with equal weights and by their S, against the densest.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from dials_hybrid import api, io_pets, losses, validation
from dials_hybrid.io_geometry import Sampling
from dials_hybrid.io_pets_frames import PRECESSION, excitation, vectors
from dials_hybrid.io_reflections import Selection
from dials_hybrid.model import HybridModel
from dials_hybrid.propagation import DepthGrid

from . import common

FILE, MODEL = "paracetamol_pets/APAP_dyn_reference.cif_pets", "paracetamol_pets/paracetamol.cif"
BINS = np.arange(0, 1.65, 0.1)
INNER = 0.6  # of dS: where brightness is measured against
SHELLS = ((0.3, 0.5), (0.5, 0.7), (0.7, 0.9))  # A^-1
BLURS = (0.05, 0.1, 0.2, 0.3)  # degree
EVERY = 10  # of the frames, for R1
DEPTH = DepthGrid(40.0, 30)  # A
STEPS = (0.05, 0.025, 0.0125, 0.00625)  # degree, between samples
FEW_BEAMS = {"s_max": 0.01, "left_out": 1e-2, "perturbation": None}


def measured(part) -> list[dict]:
    """Return the brightness over |S| / dS in shells of resolution."""
    s, reach = excitation(part)
    ratio = np.abs(s) / reach
    size = np.linalg.norm(vectors(part), axis=1)
    _, same = np.unique(np.abs(part.hkl), axis=0, return_inverse=True)
    same, inside = same.ravel(), ratio < INNER
    count = np.bincount(same, inside)
    mean = (np.bincount(same, part.intensity * inside) / np.maximum(count, 1))[same]
    strong = (count[same] >= 3) & (mean > 3 * np.median(part.sigma))
    rows = []
    for low, high in SHELLS:
        chosen = strong & (size >= low) & (size < high)
        place = np.digitize(ratio[chosen], BINS) - 1
        total, expected = (
            np.bincount(place, x[chosen], len(BINS))[: len(BINS) - 1]
            for x in (part.intensity, mean)
        )
        rows.append(_row(f"measured, {low} to {high} 1/A", total / expected))
    return rows


def expected(opening: float, blur: float) -> dict:
    """Return the same of a cone (degree) blurred by a Gaussian (degree) along its radius."""
    azimuth = np.linspace(0, 2 * np.pi, 20001)[:-1]
    nodes = np.linspace(-4, 4, 81)
    place = np.abs(np.cos(azimuth)[:, None] + blur / opening * nodes)
    weight = np.broadcast_to(np.exp(-(nodes**2) / 2), place.shape)
    density, _ = np.histogram(place, BINS, weights=weight)
    return _row(f"cone, mosaic spread {blur}", density / density[BINS[:-1] < INNER - 1e-9].mean())


def _row(name: str, values) -> dict:
    return {
        "|S| / dS up to": name,
        **{f"{b:.1f}": v for b, v in zip(BINS[1:], values, strict=True)},
    }


def agreement(geometry: str) -> dict:
    """Return R1 of some frames with nothing refined, taken as of a geometry."""
    folder = common.data_folder()
    options = api.Options(selection=Selection(geometry=geometry))
    job = api.load([folder / FILE], folder / MODEL, options)
    frame = job.problem.scan.frame
    chosen = frame % EVERY == EVERY // 2
    problem = validation.keep_blocks(job.problem, chosen)
    r1, thickness = validation.quick_r1(problem, dataclasses.replace(options.model, depth=DEPTH))
    return {
        "taken as": geometry,
        "frames": len(torch.unique(frame[chosen])),
        "observed": int(problem.observations.observed.sum()),
        "R1": r1,
        "thickness / A": thickness,
    }


def sampling() -> list[dict]:
    """Return R1 of two frames with nothing refined, and how near amplitudes are to the densest."""
    found = {}
    for step in reversed(STEPS):
        job = api.load(
            [common.data_folder() / FILE],
            common.data_folder() / MODEL,
            api.Options(sampling=Sampling(1.0, step)),
        )
        kept = job.problem.scan.frame % 25 == 12
        by_s = validation.keep_blocks(job.problem, kept)
        equal = by_s.replace(observations=by_s.observations.replace(link_weight=None))
        settings = dataclasses.replace(job.options.model, depth=DEPTH, **FEW_BEAMS)
        for weights, problem in (("by S", by_s), ("equal", equal)):
            found[step, weights] = _amplitudes(problem, settings)
    fo = losses.amplitudes(by_s.observations.intensity[by_s.observations.observed])
    finest = found[STEPS[-1], "by S"]
    return [
        {
            "step / degrees": step,
            "weights": weights,
            "R(calc)": _r(finest, fc),
            "R1": _r(fo, fc),
        }
        for (step, weights), fc in found.items()
    ]


@torch.no_grad()
def _amplitudes(problem, settings) -> torch.Tensor:
    model = HybridModel(problem, settings)
    intensity = model.intensities(model.value_profiles())
    return losses.amplitudes(intensity)[problem.observations.observed]


def _r(reference: torch.Tensor, fc: torch.Tensor) -> float:
    """R of amplitudes on the scale that fits best."""
    scale = (reference * fc).sum() / fc.square().sum()
    return float((reference - scale * fc).abs().sum() / reference.sum())


def main() -> None:
    """Print the tables and write benchmarks/results/precession.json."""
    if not (common.data_folder() / FILE).is_file():
        print(f"paracetamol: no data in {common.data_folder()}; set DIALS_HYBRID_DATA")
        return
    (part,) = io_pets.load([common.data_folder() / FILE], PRECESSION).parts
    opening = float(part.half_width.mean())
    profile = [*measured(part), *(expected(opening, blur) for blur in BLURS)]
    found = [agreement(geometry) for geometry in ("rotation", PRECESSION)]
    samples = sampling()
    common.save("precession", [*profile, *found, *samples])
    common.print_table("Brightness of reflections", profile)
    common.print_table("Nothing refined", found)
    common.print_table("Samples on the cone", samples)


if __name__ == "__main__":
    main()
