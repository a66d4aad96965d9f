"""Refine quartz from Python: files in, cctbx objects out."""

import sys

from dials_hybrid import api

expt, refl, model = sys.argv[1:4]
job = api.choose_setting(api.load([expt, refl], model))
outcome = api.refine(job)
outcome.structure.show_summary().show_scatterers()  # cctbx.xray.structure
for name, array in outcome.miller_arrays.items():  # cctbx.miller.array
    array.show_summary(prefix=f"{name}: ")
print("R1(obs)", outcome.contract["final"]["r1_obs"])
api.write(outcome, api.Outputs(structure="refined.cif", mtz="refined.mtz"))
