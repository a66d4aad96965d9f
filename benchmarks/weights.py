"""How the variance of integrated intensities goes with the intensity, in real data."""

from __future__ import annotations

import torch

from dials_hybrid import api

from . import common

# folder -> files of the data, model, options
SETS = {
    "quartz_dials": (["integrated.expt", "integrated.refl"], "quartz_xray.cif", {}),
    "quartz_pets": (["quartz.cif_pets"], "quartz_kinematical.cif", {}),
    "cspbbr3_pets": (["CsPbBr_P67-crot-050_dyn.cif_pets"], "cspbbr3.cif", {}),
    "paracetamol_pets": (["APAP_dyn_reference.cif_pets"], "paracetamol.cif", {}),
    "albite_jana": (
        ["pets2_albite.cif_pets"],
        "jana2006_albite.cif",
        {"block": "albite_kinematical"},
    ),
}


def row_of(name: str) -> dict:
    """Return gain and square of a data set, and by how much of a sigma they would pull."""
    files, model, options = SETS[name]
    folder = common.data_folder() / name
    job = api.load(
        [str(folder / file) for file in files], str(folder / model), api.Options(**options)
    )
    o = job.problem.observations
    weak = o.intensity.abs() < 3 * o.sigma
    rest = o.noise.background / o.sigma.square()
    return {
        "data": name,
        "reflections": len(o.intensity),
        "g": float(o.noise.gain[0]),
        "q": float(o.noise.square[0]),
        "sigma of the weak, median": float(o.sigma[weak].median()),
        "g / sigma": float((o.noise.gain / o.sigma)[weak].median()),
        "b / sigma^2 of the strongest tenth": float(
            rest[torch.argsort(o.intensity)[-len(weak) // 10 :]].median()
        ),
    }


def main() -> None:
    """Print the table and write benchmarks/results/weights.json."""
    present = [name for name in SETS if (common.data_folder() / name).is_dir()]
    if not present:
        raise SystemExit(f"no data in {common.data_folder()}; set DIALS_HYBRID_DATA")
    rows = [row_of(name) for name in present]
    common.save("weights", rows)
    common.print_table("Variance of the integration, v = b + g I + q I^2", rows)


if __name__ == "__main__":
    main()
