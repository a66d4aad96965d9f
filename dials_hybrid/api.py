"""From files to a refined structure, for Python scripts and for the commands.

from dials_hybrid import api

job = api.load(["integrated.expt", "integrated.refl"], "model.cif")
job = api.choose_setting(job)
outcome = api.refine(job)
outcome.structure.show_summary().show_scatterers()      # cctbx.xray.structure
outcome.miller_arrays["corrected"].show_summary()       # cctbx.miller.array
api.write(outcome, api.Outputs(structure="refined.cif", mtz="refined.mtz"))
"""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from dataclasses import dataclass

from dials.util.version import dials_version

from . import (
    io_cif_mtz,
    io_dials,
    io_maps,
    io_pets,
    io_pets_write,
    io_results,
    io_shelx_write,
    report,
)
from .checkpoint import Checkpoint, RefineSettings, State
from .choices import choose_setting, hands, with_step
from .data import Problem, Result
from .freedom import Constraints
from .history import Progress
from .ideal_hydrogens import settled
from .io_bonds import bonds_and_angles, cell_covariance
from .io_cctbx import as_recorded, update_xray_structure
from .io_constraints import Parameters
from .io_contacts import close_contacts
from .io_dials import Sampling, Selection
from .io_measurement import cell_su
from .io_pets_write import Cutting
from .io_restraints import RestraintOptions
from .io_restraints_manager import manager_of
from .io_site_symmetry import with_general_positions
from .io_structures import read_structure
from .job import (
    Job,
    Numerics,
    Options,
    Refined,
    cif_text,
    collected_warnings,
    context,
    load,
    read,
    remembering_warnings,
)
from .model_settings import ModelSettings
from .other_settings import compared, decide
from .plan import format_plan
from .records import InputError
from .refine import Refinement, out_of_memory_explained

__all__ = [
    "Cutting",
    "Job",
    "ModelSettings",
    "Numerics",
    "Options",
    "Outcome",
    "Outputs",
    "Parameters",
    "Progress",
    "RefineSettings",
    "RestraintOptions",
    "Sampling",
    "Selection",
    "choose_setting",
    "cif_text",
    "finished",
    "load",
    "pets_files",
    "read_structure",
    "refine",
    "resume",
    "write",
    "write_problem",
]

logger = logging.getLogger("dials.hybrid.api")

MEMORY_ADVICE = (
    "lower compute.memory, or use fewer beams (beams.s_max, beams.g_max) or a coarser sampling.step"
)
CUTTING = Cutting()


@dataclass(frozen=True)
class Outcome:
    """A refined job. `contract` is what the JSON file holds."""

    job: Job
    result: Result
    structure: object  # cctbx.xray.structure
    contract: dict
    checkpoint: Checkpoint

    @property
    def miller_arrays(self) -> dict:
        """Observed, calculated and corrected data as cctbx.miller.array by name."""
        return io_cif_mtz.miller_arrays(self.structure, self.job.problem, self.result)

    @property
    def restraints_manager(self):
        """The restraints as a smtbx.refinement.restraints.manager, as far as cctbx has them."""
        return manager_of(self.job.problem.restraints)[0]


@dataclass(frozen=True)
class Outputs:
    """Names of the files to write; None leaves one out."""

    experiments: str | None = None
    reflections: str | None = None
    structure: str | None = None
    mtz: str | None = None
    problem: str | None = None
    html: str | None = None
    json: str | None = None
    pets: str | None = None  # with several sweeps or files, one each: see `pets_files`
    map: str | None = None
    shelx: str | None = None  # prefix of a .res and a .hkl

    def names(self) -> list[str]:
        """Return the names that are given."""
        named = {k: n for k, n in dataclasses.asdict(self).items() if n is not None}
        prefix = named.pop("shelx", None)
        return [*named.values(), *(io_shelx_write.names(prefix) if prefix else ())]


def refine(job: Job, progress: Progress | None = None) -> Outcome:
    """Refine the job and return the outcome; logs an estimate of time and memory first.

    Raises InputError when memory runs out.
    """
    with collected_warnings() as messages, out_of_memory_explained(MEMORY_ADVICE):
        job = with_step(job)
        refinement = _make_refinement(job, progress)
        seconds, memory = refinement.estimate()
        logger.info(
            "Estimated time of the refinement: %.0f s; memory: %.1f GB%s\n",
            seconds,
            memory / 1e9,
            "" if len(refinement.plan) == 1 else "\n" + format_plan(refinement.plan),
        )
        progress = progress or Progress()
        first = settled(Refined(job, refinement, refinement.run()), progress)
        if progress.checkpoint is not None:  # a long comparison may be cut off
            first.refinement.save(progress.checkpoint, first.result)
        return _ended(decide(first, progress), messages)


def finished(job: Job, progress: Progress | None = None) -> Outcome:
    """Return the outcome of a continued job whose file holds the final result.

    What the result lacks is made: riding hydrogen atoms put back to their places, and the
    comparison with the other hand or settings, if it is wanted. A machine without DIALS can make
    neither, and a run may have been killed meanwhile. Raises InputError when memory runs out.
    """
    with collected_warnings() as messages, out_of_memory_explained(MEMORY_ADVICE):
        end = compared(job, progress or Progress())
        if end is None:
            return outcome_of(job, _checkpoint(job), messages)
        return _ended(end, messages)


def _ended(end: Refined, messages) -> Outcome:
    """Return the outcome of a refinement that has been compared, with its difference map."""
    refinement, result = end.refinement, end.result
    if result.fourier is None:
        result = refinement.with_fourier(result)
    refinement.context = context(end.job)
    return outcome_of(end.job, refinement.checkpoint(result), messages)


def write_problem(job: Job, path) -> None:
    """Write a job that is not refined yet, for another machine; `resume` reads it back."""
    io_results.check_writable([path])
    _checkpoint(with_step(job)).save(path)


def _checkpoint(job: Job) -> Checkpoint:
    return Checkpoint(
        job.problem,
        job.options.model,
        job.options.refine,
        job.state or State(),
        context(job),
        job.result,
    )


def _make_refinement(job: Job, progress: Progress | None) -> Refinement:
    refinement = Refinement(job.problem, job.options.model, job.options.refine, progress, job.state)
    refinement.context = context(job)
    counts = refinement.model.beams.counts
    logger.info(
        "Beams per block: %.0f on average, %d at most; depths %g to %g A",
        float(counts.double().mean()),
        int(counts.max()),
        job.options.model.depth.step,
        job.options.model.depth.step * job.options.model.depth.count,
    )
    return refinement


def outcome_of(job: Job, checkpoint: Checkpoint, messages) -> Outcome:
    """Combine the result of a checkpoint with the job into what is reported."""
    result = checkpoint.result
    if result.fourier is not None and result.fourier.change is None:  # of an earlier version
        result = result.replace(fourier=None)
    structure = update_xray_structure(job.xray_structure, result.structure)
    summary = {
        **result.summary,
        **job.numerics,
        "indexing": job.indexing,
        "absolute_structure": {**hands(job), **result.summary.get("absolute_structure", {})},
    }
    result = result.replace(summary=summary)
    cell_cov = cell_covariance(structure, cell_su(job.problem))
    contract = report.contract(
        job.problem,
        result,
        **bonds_and_angles(structure, result, cell_cov, job.parts),
        contacts=close_contacts(structure, job.parts),
        space_group=str(structure.space_group_info()),
        warnings=list(dict.fromkeys([*job.messages, *messages])),
        dials_version=dials_version(),
        map_peaks=io_maps.map_summary(structure, result),
    )
    return Outcome(job, result, structure, contract, dataclasses.replace(checkpoint, result=result))


def pets_files(job: Job, path, cutting: Cutting = CUTTING) -> list[str]:
    """Return the names of the .cif_pets files that `write` will write: none without data files.

    Raises InputError when one would overwrite the data, or when the virtual frames of a sweep
    would hold no reflection whole.
    """
    if job.loaded is None:
        return []
    if job.writes_back:
        names = io_pets_write.file_names(path, len(io_pets_write.cut(job.problem, cutting)))
        given = [*job.loaded.expt_files, *job.loaded.refl_files]
    else:
        names = io_pets_write.file_names(path, len(job.loaded.files))
        given = job.loaded.files
    inputs = {os.path.realpath(name) for name in given}
    for name in names:
        if os.path.realpath(name) in inputs:
            raise InputError(f"output.pets: {name} is an input; give another name")
    return names


def _write_pets(outcome: Outcome, names: list[str], cutting: Cutting) -> None:
    job, result = outcome.job, outcome.result
    if job.writes_back:
        experiments = job.loaded.experiments
        every = io_pets_write.virtual_frames(job.problem, result, experiments, cutting)
    else:
        every = io_pets_write.refined_frames(job.loaded, job.problem, result)
    for name, frames in zip(names, every, strict=True):
        io_pets_write.write(name, frames)


def write(outcome: Outcome, outputs: Outputs, cutting: Cutting = CUTTING) -> list[str]:
    """Write the chosen files, each complete or not at all; return the names of those written.

    Files for which the outcome holds nothing are left out; `cutting` is for virtual frames.
    Raises InputError, before anything is written, when one cannot be.
    """
    job, result = outcome.job, outcome.result
    problem = job.problem
    pets = pets_files(job, outputs.pets, cutting) if outputs.pets else []
    outputs = _possible(outcome, outputs)
    written = [*outputs.names(), *pets]
    io_results.check_writable(written)
    if outputs.experiments:
        io_results.write_experiments(outputs.experiments, job.loaded.experiments, problem, result)
    if outputs.reflections:
        io_results.write_reflections(outputs.reflections, job.loaded.reflections, problem, result)
    if outputs.structure:
        io_cif_mtz.write_cif(
            outputs.structure, outcome.structure, problem, result, outcome.contract
        )
    if outputs.mtz:
        io_cif_mtz.write_mtz(outputs.mtz, outcome.structure, problem, result)
    if pets:
        _write_pets(outcome, pets, cutting)
    if outputs.map:
        io_maps.write_map(outputs.map, outcome.structure, result)
    if outputs.shelx:
        io_shelx_write.write_shelx(
            outputs.shelx, outcome.structure, problem, result, job.constraints
        )
    if outputs.problem:
        outcome.checkpoint.save(outputs.problem)
    if outputs.json:
        report.write_json(outputs.json, outcome.contract)
    if outputs.html:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # font remarks of matplotlib mean nothing to users
            report.write_html(outputs.html, problem, result, outcome.contract)
    return written


def _possible(outcome: Outcome, outputs: Outputs) -> Outputs:
    """Return the outputs, less .cif_pets, without those that the outcome holds nothing for."""
    without = {"pets": None}
    if not outcome.job.writes_back:
        without |= {"experiments": None, "reflections": None}
    if outputs.map and outcome.result.fourier is None:
        logger.warning("%s: not written; this result is of a version without maps", outputs.map)
        without |= {"map": None}
    return dataclasses.replace(outputs, **without)


@remembering_warnings
def resume(path, options: Options | None = None) -> Job:
    """Return the job of a saved problem or checkpoint, to be refined on.

    The settings of the file hold; of `options`, only what belongs to the machine (device,
    memory, checkpoint interval), the number of iterations and the comparison of settings are
    taken. A job that holds a result needs no more refinement and goes to `finished`. Raises
    InputError when the file is not of this kind.
    """
    stored = Checkpoint.load(path)
    held, settings, model = stored.context, stored.settings, stored.model_settings
    if "structure_cif" not in held:
        raise InputError(
            f"{path}: holds no structure for DIALS; only problems that dials.hybrid_refine "
            "prepared can be continued here"
        )
    if options is not None:
        settings = dataclasses.replace(
            settings,
            iterations=options.refine.iterations,
            device=options.refine.device,
            checkpoint_seconds=options.refine.checkpoint_seconds,
        )
        model = dataclasses.replace(model, memory=options.model.memory)
    else:
        options = Options()
    finished = dataclasses.replace(stored, settings=settings).finished
    return Job(
        stored.problem,
        as_recorded(_structure_from_cif(held["structure_cif"]), stored.problem.structure),
        _reload(stored.problem, path),
        dataclasses.replace(options, model=model, refine=settings),
        held["indexing"],
        stored.state,
        tuple(held["messages"]),
        held.get("numerics", {}),
        result=stored.result if finished else None,
        constraints=Constraints.from_dict(held.get("constraints", {})),
    )


def _structure_from_cif(text: str):
    import iotbx.cif

    reader = iotbx.cif.reader(input_string=text)
    structure = reader.build_crystal_structures()["start"]
    return with_general_positions(structure, reader.model()["start"])


def _reload(problem: Problem, path) -> io_dials.Loaded | io_pets.Loaded | None:
    """Read the data files again, if they are where they were and unchanged."""
    provenance = problem.provenance
    prints = [*provenance.get("experiments", []), *provenance.get("reflections", [])]
    names = [p["file"] for p in prints]
    gone = [n for n in names if not os.path.isfile(n)]
    changed = [p["file"] for p in prints if p["file"] not in gone and _differs(p)]
    if names and not gone and not changed:
        return read(names, io_pets.geometry_taken(provenance.get("measurement", {})))
    if not any(map(io_pets.is_pets, names)):  # nothing is written back to those of PETS2
        what = f"{', '.join(changed)} changed since"
        if gone or not names:
            what = f"the original files ({', '.join(gone) or 'not recorded'}) are not there"
        logger.warning("%s: %s; .expt and .refl will not be written", path, what)
    return None


def _differs(entry: dict) -> bool:
    return io_dials.fingerprint(entry["file"]) != entry
