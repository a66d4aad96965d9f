"""Does an atom that is left out come back? Real data, one atom removed, only thickness fitted.

python -m benchmarks.missing_atoms [PARACETAMOL.cif]: a refined structure of paracetamol, from which
hydrogen atoms are left out, too. Each takes half an hour, the others two minutes together.

The highest peak of the difference map should lie within 0.1 A of it. The expected height is that
of the atom's potential to the same resolution: the map leaves alone what the data do not tell.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import torch
from cctbx import crystal, sgtbx
from cctbx.array_family import flex

from dials_hybrid import api, io_maps, validation
from dials_hybrid.io_elements import ELECTRON_TABLE
from dials_hybrid.io_structures import read_structure
from dials_hybrid.valence import INDEPENDENT_ATOMS

from . import common

# with nothing of the structure free there are no derivatives by it, which would take longest
OPTIONS = api.Options(
    model=api.ModelSettings(valence=INDEPENDENT_ATOMS),
    parameters=api.Parameters(fix=("all all",)),
    refine=api.RefineSettings(iterations=0),
    test_settings=False,
    refine_settings="none",
)
# files, atom, and every how many-th frame
SETS = (
    ("quartz_dials/integrated.expt", "quartz_dials/integrated.refl", "O1", 1),
    ("cspbbr3_pets/CsPbBr_P67-crot-050_dyn.cif_pets", None, "Br1", 8),
    ("cspbbr3_pets/CsPbBr_P67-crot-050_dyn.cif_pets", None, "Br2", 8),
)
PARACETAMOL = "paracetamol_pets/APAP_dyn_reference.cif_pets"
HYDROGENS = ("H2", "H3", "H6")  # of the ring, of the hydroxyl group, on nitrogen
MODELS = {"quartz_dials": common.MODEL, "cspbbr3_pets": "cspbbr3_pets/cspbbr3.cif"}


def run_case(data: str, more: str | None, label: str, every: int, models: dict) -> dict:
    """Return the row of the table of one atom left out of the set's model."""
    folder = common.data_folder()
    files = [folder / name for name in (data, more) if name]
    set_name = data.split("/")[0]
    whole = read_structure(folder / models[set_name])
    chosen = flex.bool([atom.label == label for atom in whole.scatterers()])
    partial, missing = whole.select(~chosen), whole.select(chosen)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "partial.cif"
        common.write_structure(partial, path)
        job = api.load(files, path, OPTIONS)
    frame = job.problem.scan.frame
    kept = frame % every == 0
    problem = validation.keep_blocks(job.problem, kept)
    job = dataclasses.replace(job, problem=problem, loaded=None)
    outcome = api.refine(api.choose_setting(job))
    first, second = outcome.contract["map_peaks"]["peaks"][:2]
    settings = crystal.special_position_settings(partial.crystal_symmetry())
    images = settings.sym_equiv_sites(first["xyz"])
    off = sgtbx.min_sym_equiv_distance_info(images, missing.scatterers()[0].site).dist()
    return {
        "set": set_name,
        "left out": label,
        "frames": len(torch.unique(frame[kept])),
        "R1": outcome.contract["final"]["r1_obs"],
        "off the atom / A": off,
        "height / V": first["height"],
        "of the atom / V": _height(missing, outcome),
        "height / r.m.s.": first["sigma"],
        "next peak / V": second["height"],
    }


def _height(missing, outcome) -> float:
    """Height in V of an atom's potential, to the resolution of the map."""
    symmetry = missing.crystal_symmetry()
    terms = io_maps.map_coefficients(symmetry, outcome.result.fourier)["difference"]
    missing.scattering_type_registry(table=ELECTRON_TABLE)
    f = terms.structure_factors_from_scatterers(missing, algorithm="direct").f_calc()
    values = io_maps.potential_map(f).real_map_unpadded().as_numpy_array()
    return float(values.max()) * io_maps.VOLT


def main() -> None:
    """Print the table and write benchmarks/results/missing_atoms.json."""
    refined = {"paracetamol_pets": Path(sys.argv[1]).resolve()} if sys.argv[1:] else {}
    hydrogens = [(PARACETAMOL, None, label, 1) for label in HYDROGENS] if refined else []
    sets = (*SETS, *hydrogens)
    known = [case for case in sets if (common.data_folder() / case[0]).is_file()]
    if not known:
        print(f"missing atoms: no data in {common.data_folder()}; set DIALS_HYBRID_DATA")
        return
    rows = [run_case(*case, MODELS | refined) for case in known]
    common.save("missing_atoms", rows)
    common.print_table("Highest peak of the difference map without one atom", rows)


if __name__ == "__main__":
    main()
