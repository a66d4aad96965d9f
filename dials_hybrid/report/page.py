"""The HTML page: words, tables, and the template that holds them.

The page is one file that works offline: figures are inline SVG, the style sheet is
inline, there is no script. Agreement factors are given in per cent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np

from ..data import Problem, Result, replacing
from ..notation import with_uncertainty
from .arrays import Arrays, arrays, as_numpy
from .figures import draw_all

_N_WORST = 20
_UNFOLDED = 30  # bonds or angles; a longer table is folded


def percent(value: float | None) -> str:
    """Return a fraction in per cent, three figures below 10 %."""
    if value is None:
        return "–"
    return f"{100 * value:.{2 if abs(value) < 0.0995 else 1}f} %"


def duration(seconds: float | None) -> str:
    """Return a time as a person says it."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes / 60:.1f} h"


def verdict(contract: dict) -> str:
    """Return the outcome in one sentence."""
    kinematic, final = contract["kinematic"]["r1_obs"], contract["final"]["r1_obs"]
    free = contract["free"]
    if final is None:
        outcome = "No dynamical agreement factor was computed"
    elif kinematic is None:
        outcome = f"R1 of the dynamical model is {percent(final)}"
    elif final < kinematic:
        outcome = (
            f"Dynamical refinement lowered R1 from {percent(kinematic)} (kinematic) "
            f"to {percent(final)}"
        )
    else:
        outcome = (
            f"Dynamical refinement did not lower R1: {percent(kinematic)} kinematic, "
            f"{percent(final)} dynamical"
        )
    if contract["n_obs"] is not None:
        outcome += f" over {contract['n_obs']} reflections with I > 3σ"
    if free["r1_obs"] is not None:
        outcome += f", and {percent(free['r1_obs'])} over {free['n']} held out"
    end = "it converged" if contract["converged"] else "it stopped before convergence"
    reason = contract["stop_reason"]
    return f"{outcome}; {end}{f' ({reason})' if reason else ''}."


def _facts(mapping: Mapping | None, prefix: str = "") -> list[tuple[str, str]]:
    """Return (name, value) rows of a nested mapping; lists of mappings are left out."""
    rows = []
    for key, value in (mapping or {}).items():
        name = prefix + key.replace("r1_obs", "R1").replace("_", " ")
        if isinstance(value, Mapping):
            rows += _facts(value, prefix=f"{name}, ")
        elif isinstance(value, list):
            if not any(isinstance(item, Mapping) for item in value):
                rows.append((name, ", ".join(map(_scalar, value))))
        elif key.startswith(("r1_", "wr2_")):
            rows.append((name, percent(value)))
        else:
            rows.append((name, _scalar(value)))
    return rows


def _scalar(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{float(f'{value:.4g}'):.10g}"  # 12340, not 1.234e+04
    return "–" if value is None else str(value)


def _worst(data: Arrays) -> list[dict]:
    """Return the reflections with the largest |Io - Ic| / sigma."""
    order = np.argsort(-np.abs(data.delta))[:_N_WORST]
    return [
        {
            "hkl": "".join(f"{index:4d}" for index in data.hkl[i]),
            "d": f"{data.d[i]:.2f}",
            "angle": f"{data.angle[i]:.2f}",
            "sweep": int(data.sweep[i]),
            "i_obs": _scalar(float(data.i_obs[i])),
            "i_calc": _scalar(float(data.i_dynamical[i])),
            "sigma": _scalar(float(data.sigma[i])),
            "delta": f"{data.delta[i]:+.1f}",
            "free": bool(data.free[i]),
        }
        for i in order
    ]


def _thickness_rows(data: Arrays) -> list[dict]:
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


def _site_rows(contract: dict) -> list[dict]:
    """Return the sites with s.u. in parentheses."""
    return [
        {
            **site,
            "xyz": [
                with_uncertainty(x, su, 5)
                for x, su in zip(site["xyz"], site["xyz_su"], strict=True)
            ],
            "u_iso": with_uncertainty(site["u_iso"], site["u_iso_su"], 4),
            "occupancy": _occupancy(site["occupancy"], site["occupancy_su"]),
        }
        for site in contract["sites"]
    ]


def _occupancy(value: float, su: float | None) -> str:
    return with_uncertainty(value, su) if su else f"{value:.4g}"


def _geometry_rows(entries: list[dict], value: str, digits: int) -> list[dict]:
    """Return bonds or angles as their (label, symmetry code) and the value with its s.u."""
    return [
        {
            "ends": list(zip(entry["atoms"], entry["symmetry"], strict=True)),
            "value": with_uncertainty(entry[value], entry["su"], digits),
        }
        for entry in entries
    ]


def _peak_rows(contract: dict) -> list[dict]:
    """Return the peaks and holes of the difference map, the largest first."""
    found = contract["map_peaks"] or {"peaks": [], "holes": []}
    both = sorted([*found["peaks"], *found["holes"]], key=lambda p: -abs(p["height"]))
    return [
        {
            "xyz": [f"{x:.4f}" for x in peak["xyz"]],
            "height": f"{peak['height']:+.2f}",
            "sigma": f"{peak['sigma']:+.1f}",
            "atom": peak["atom"],
            "distance": f"{peak['distance']:.2f}",
        }
        for peak in both
    ]


def _candidates(contract: dict) -> list[dict]:
    """Return the tested indexings and hands, the best first."""
    found = (contract["indexing"] or {}).get("candidates") or []
    scores = [(math.inf if c.get("r1_obs") is None else c["r1_obs"], c) for c in found]
    names = ("operator", "hand", "space_group")
    return [
        {**{name: _scalar(c.get(name)) for name in names}, "r1_obs": percent(c.get("r1_obs"))}
        for _, c in sorted(scores, key=lambda pair: pair[0])
    ]


def _settings(contract: dict) -> list[dict]:
    """Return the result and what it was compared with, as rows of a table."""
    return [
        {
            **row,
            "r1_obs": percent(row["r1_obs"]),
            "z": _z(row["z_score"]),
            "twin": with_uncertainty(row.get("twin_fraction"), row.get("twin_fraction_su"), 2),
            "how": "refined" if row.get("refined", True) else "as it stands",
        }
        for row in contract["settings_refined"]
    ]


def _z(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}"


def _condition(contract: dict) -> list[tuple]:
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
    return [(label, _scalar(found.get(key))) for key, label in names.items()]


_MODELS = ("kinematic", "start", "final", "free", "cross_validated")


def _agreement(contract: dict) -> list[tuple]:
    """Return rows of the summary table: name, kinematic, start, final, held out, each left out."""
    models = [contract[key] for key in _MODELS]
    names = {
        "r1_obs": "R1, I > 3σ",
        "r1_all": "R1, all",
        "wr2_all": "wR2, all",
        "r1_obs_frame_mean": "R1, frame mean",
    }
    rows = [(label, *(percent(m.get(key)) for m in models)) for key, label in names.items()]
    gof = [f"{m['gof']:.2f}" if m.get("gof") is not None else "–" for m in models]
    merged = [percent(contract["merged"]["r1_obs"] if m == "final" else None) for m in _MODELS]
    return [*rows, ("R1, merged", *merged), ("GooF", *gof)]


def _conditions(problem: Problem, contract: dict, data: Arrays) -> list[tuple]:
    """Return (name, value) rows on the data, the crystal and the run."""
    cell = [f"{x:.4g}" for x in as_numpy(problem.structure.cell)]
    free = contract["free"]["n"] or 0
    names = {
        "Space group": contract["space_group"],
        "Cell": f"{', '.join(cell[:3])} Å; {', '.join(cell[3:])}°",
        "Wavelength": f"{problem.scan.wavelength:.5f} Å",
        "Resolution": f"{data.d.max():.2f}–{data.d.min():.2f} Å",
        "Sweeps, blocks": f"{len(data.sweeps)}, {len(data.block_angle)}",
        "Reflections": f"{_scalar(contract['n_all'])}, of them "
        f"{_scalar(contract['n_obs'])} with I > 3σ; {free} held out",
        "Parameters": contract["n_parameters"],
        "Stop reason": contract["stop_reason"],
        "Wall time": duration(contract["wall_time_s"]),
        "Device": contract["device"],
    }
    error_model = _facts(contract["error_model"], prefix="Error model, ")
    numerics = _facts(contract.get("propagation"), prefix="Propagation, ")
    valence = [
        (f"Charge of {element}, e", with_uncertainty(q["value"], q["su"], 2))
        for element, q in ((contract["valence"] or {}).get("charge") or {}).items()
    ]
    plain = ((name, _scalar(value)) for name, value in names.items())
    return [*plain, *valence, *error_model, *numerics]


def _file_names(problem: Problem) -> list[str]:
    """Return the names of the input files, without their folders."""
    provenance = problem.provenance
    entries = [*provenance.get("experiments", []), *provenance.get("reflections", [])]
    entries += [provenance["structure"]] if "structure" in provenance else []
    return [Path(entry["file"]).name for entry in entries]


def write_html(path, problem: Problem, result: Result, contract: dict) -> None:
    """Write the page; an existing file is replaced only when all is drawn."""
    data = arrays(problem, result)
    assets = resources.files("dials_hybrid").joinpath("assets")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.from_string(
        assets.joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    text = template.render(
        contract=contract,
        css=assets.joinpath("report.css").read_text(encoding="utf-8"),
        figures=draw_all(data),
        files=_file_names(problem),
        verdict=verdict(contract),
        percent=percent,
        agreement=_agreement(contract),
        conditions=_conditions(problem, contract, data),
        n_sweeps=len(data.sweeps),
        thickness=_thickness_rows(data),
        worst=_worst(data),
        sites=_site_rows(contract),
        bonds=_geometry_rows(contract["bonds"], "length", digits=4),
        angles=_geometry_rows(contract["angles"], "angle", digits=2),
        unfolded=_UNFOLDED,
        peaks=_peak_rows(contract),
        candidates=_candidates(contract),
        settings=_settings(contract),
        indexing_verdict=contract["indexing_verdict"],
        condition=_condition(contract),
        indexing=_facts(contract["indexing"]),
        absolute_structure=_facts(contract["absolute_structure"]),
    )
    with replacing(path) as temporary:
        # a file name may hold bytes that are no UTF-8
        temporary.write_text(text, encoding="utf-8", errors="replace")
