"""The rows of tables on data, agreement, thickness, corrections and correlations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ..data import Problem
from ..notation import ROUNDING, with_uncertainty
from .arrays import Arrays
from .words import duration, facts, percent, scalar, trimmed

_N_WORST = 20
_MODELS = ("kinematic", "start", "final", "free", "cross_validated")


def agreement(contract: dict) -> list[tuple]:
    """Return rows of the summary table: name, kinematic, start, final, held out, each left out."""
    models = [contract[key] for key in _MODELS]
    names = {
        "r1_obs": "R1, I > 3σ",
        "r1_all": "R1, all",
        "wr2_all": "wR2, all",
        "r1_obs_frame_mean": "R1, frame mean",
    }
    rows = [(label, *(percent(m.get(key)) for m in models)) for key, label in names.items()]
    gof = [f"{m['gof']:.2f}" if m.get("gof") is not None else scalar(None) for m in models]
    merged = [percent(contract["merged"]["r1_obs"] if m == "final" else None) for m in _MODELS]
    return [*rows, ("R1, merged", *merged), ("GooF", *gof)]


def conditions(contract: dict, data: Arrays) -> list[tuple]:
    """Return (name, value) rows on the crystal, the data and the run, of what is known."""
    crystal, radiation = contract["crystal"], contract["radiation"]
    size = contract["orientation"]["sigma"]
    names = {
        "Formula": crystal["formula"],
        "Space group, Z": f"{scalar(contract['space_group'])}, {crystal['formula_units']}",
        "Cell": _cell(crystal["cell"], crystal["cell_su"]),
        "Volume": f"{crystal['volume']:.2f} Å³",
        "Temperature": crystal["temperature"] and f"{crystal['temperature']} K",
        "Radiation": f"electrons of {radiation['voltage']:.1f} kV, {radiation['wavelength']:.5f} Å",
        "Resolution": f"{data.d.max():.3f}–{data.d.min():.3f} Å",
        "Sweeps, blocks": f"{len(data.sweeps)}, {len(data.block_angle)}",
        "Reflections": f"{scalar(contract['n_all'])}, of them {scalar(contract['n_obs'])} with "
        f"I > 3σ; {contract['free']['n'] or 0} held out",
        "Prior of orientations": size and f"{size:.3f}°",
        "Parameters": contract["n_parameters"],
        "Stop reason": contract["stop_reason"],
        "Wall time": duration(contract["wall_time_s"]),
        "Device": contract["device"],
    }
    error_model = facts(contract["error_model"], prefix="Error model, ")
    numerics = facts(contract["propagation"], prefix="Propagation, ")
    plain = [(name, scalar(value)) for name, value in names.items() if value is not None]
    return [*plain, *error_model, *numerics]


def _cell(cell: list[float], su: list[float] | None) -> str:
    """Return the cell with its s.u. where it is known, or else with all digits that are."""
    errors = su or [0.0] * 6
    words = [
        with_uncertainty(value, error) if error > ROUNDING else trimmed(value, 5)
        for value, error in zip(cell, errors, strict=True)
    ]
    return f"{', '.join(words[:3])} Å; {', '.join(words[3:])}°"


def file_names(problem: Problem) -> list[str]:
    """Return the names of the input files, without their folders."""
    provenance = problem.provenance
    entries = [*provenance.get("experiments", []), *provenance.get("reflections", [])]
    entries += [provenance["structure"]] if "structure" in provenance else []
    return [Path(entry["file"]).name for entry in entries]


def worst(data: Arrays) -> list[dict]:
    """Return the reflections with the largest |Io - Ic| / sigma."""
    order = np.argsort(-np.abs(data.delta))[:_N_WORST]
    return [
        {
            "hkl": "".join(f"{index:4d}" for index in data.hkl[i]),
            "d": f"{data.d[i]:.3f}",
            "angle": f"{data.angle[i]:.2f}",
            "sweep": int(data.sweep[i]),
            "i_obs": scalar(float(data.i_obs[i])),
            "i_calc": scalar(float(data.i_dynamical[i])),
            "sigma": scalar(float(data.sigma[i])),
            "delta": f"{data.delta[i]:+.1f}",
            "free": bool(data.free[i]),
        }
        for i in order
    ]


def thickness(data: Arrays) -> list[dict]:
    """Return per sweep the mean thickness, its range, and the weight at both ends.

    Weight at either end says that the grid is too short or that p(t) has collapsed.
    """
    tenth = max(1, len(data.depth) // 10)
    rows = []
    for i, blocks in enumerate(data.sweeps):
        p = data.thickness[blocks]
        mean = p @ data.depth
        spread = np.sqrt(np.maximum(p @ data.depth**2 - mean**2, 0))
        rows.append(
            {
                "sweep": i + 1,
                "blocks": len(blocks),
                "mean": f"{mean.mean():.0f}",
                "range": f"{mean.min():.0f}–{mean.max():.0f}",
                "spread": f"{spread.mean():.0f}",
                "first": percent(p[:, :tenth].sum(1).mean()),
                "last": percent(p[:, -tenth:].sum(1).mean()),
            }
        )
    return rows


def corrections(contract: dict) -> list[dict]:
    """Return what the nuisance terms came to: the value, or the root mean square of several."""
    rows = []
    for term in contract["nuisance"]:
        if term.get("width") == 0:  # the data do not ask for it
            continue
        for name, found in term.items():
            if not isinstance(found, dict):  # the term's name and size
                continue
            value, su = found["value"], found["su"]
            rms = math.sqrt(sum(x * x for x in value) / max(len(value), 1))
            one = len(value) == 1
            rows.append(
                {
                    "term": term["term"].rpartition(":")[2].replace("_", " "),
                    "name": name.replace("_", " "),
                    "value": with_uncertainty(value[0], su[0], 4) if one else f"r.m.s. {rms:.3g}",
                    "number": len(value),
                    "expected": scalar(term.get("expected")),
                    "stretched": scalar(term.get("stretched")),
                }
            )
    return rows


def condition(contract: dict) -> list[tuple]:
    """Return (name, value) rows on the normal matrix, none if it is not known."""
    found = contract["condition"]
    names = {
        "structure": "Condition number, structure",
        "all": "Condition number, all parameters",
        "undetermined": "Directions without information",
        "strong_correlations": "Correlations above 0.5",
    }
    if all(value is None for value in found.values()):
        return []
    return [(label, scalar(found.get(key))) for key, label in names.items()]
