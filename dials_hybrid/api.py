"""From files to a refined structure, for Python scripts and for the commands.

from dials_hybrid import api

job = api.load(["integrated.expt", "integrated.refl"], "model.cif")
job = api.choose_setting(job)
outcome = api.refine(job)
outcome.structure.show_summary().show_scatterers()      # cctbx.xray.structure
outcome.miller_arrays["FOBS_corr"].show_summary()       # cctbx.miller.array
api.write(outcome, api.Outputs(structure="refined.cif", mtz="refined.mtz"))
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import os
import warnings
from dataclasses import dataclass, field

import torch
from dials.util.version import dials_version

from . import accuracy, io_cif_mtz, io_dials, io_results, io_settings, report, validation
from .data import InputError, Problem, Result
from .io_cctbx import reconcile, to_structure, update_xray_structure
from .io_dials import Loaded, Sampling, Selection
from .io_structures import read_structure
from .model import ModelSettings
from .propagation import DepthGrid
from .refine import (
    Checkpoint,
    Progress,
    Refinement,
    RefineSettings,
    State,
    out_of_memory_explained,
)

logger = logging.getLogger("dials.hybrid.api")

SEARCH_DEPTH = 2000.0  # A, thickness to which the search before the refinement goes
SEARCH_BLOCKS = 40
MEMORY_ADVICE = (
    "lower compute.memory, or use fewer beams (beams.s_max, beams.g_max) or a coarser sampling.step"
)
USUAL_PASSES = 5  # with derivatives, counting the partial ones between them


@dataclass(frozen=True)
class Numerics:
    """Errors that numerical choices may make, and which choices are made by them.

    `error` is max |dI| of the propagation, the incident beam being one; `substeps` fixes the
    steps between depths. `auto` names cut-offs and steps ("g_max", "s_max", "sampling") that
    are as coarse as a change of R1 by `r_change` allows.
    """

    error: float = 1e-4
    substeps: int | None = None
    auto: tuple[str, ...] = ()
    r_change: float = 5e-4


@dataclass(frozen=True)
class Options:
    """All choices of a refinement. Thicknesses in A; None is found from the data."""

    selection: Selection = Selection(d_min=0.625)
    sampling: Sampling = Sampling(1.0, 0.05)
    model: ModelSettings = ModelSettings()
    refine: RefineSettings = RefineSettings()
    free_fraction: float = 0.04
    block: str | None = None
    depth_max: float | None = None
    thickness_start: float | None = None
    test_settings: bool = True
    minimum_gain: float = 0.002
    numerics: Numerics = Numerics()


@dataclass(frozen=True)
class Job:
    """A problem with what its results are written back to."""

    problem: Problem
    xray_structure: object  # cctbx.xray.structure, in the experiment's cell
    loaded: Loaded | None  # None if the files of a continued problem are gone
    options: Options
    indexing: dict = field(default_factory=dict)
    state: State | None = None
    messages: tuple = ()  # warnings so far
    numerics: dict = field(default_factory=dict)  # what was chosen by its error
    result: Result | None = None  # of a continued problem that needs no more refinement


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

    def names(self) -> list[str]:
        """Return the names that are given."""
        return [n for n in dataclasses.asdict(self).values() if n is not None]


def _remembering_warnings(function):
    """Make a function that returns a Job add the warnings logged meanwhile to the job."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with collected_warnings() as messages:
            job = function(*args, **kwargs)
        return dataclasses.replace(job, messages=(*job.messages, *messages))

    return wrapped


@contextlib.contextmanager
def collected_warnings():
    """Yield a list that receives the warnings of this package while the body runs."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    own = logging.getLogger("dials.hybrid")
    own.addHandler(handler)
    try:
        yield messages
    finally:
        own.removeHandler(handler)


@_remembering_warnings
def load(files, structure, options: Options = Options()) -> Job:
    """Read .expt and .refl files and a structure file; return the job.

    Raises InputError, with one sentence for the user, when something cannot be used.
    """
    xray_structure = read_structure(structure, options.block)
    loaded = io_dials.load(files)
    xray_structure = reconcile(
        xray_structure, loaded.experiments, structure, ", ".join(loaded.expt_files)
    )
    rows, table = io_dials.select_reflections(loaded.reflections, options.selection)
    logger.info("Selection of reflections:\n%s\n", io_dials.format_table(table))
    scan, observations = _observed(loaded, rows, options)
    record = to_structure(xray_structure)
    free = validation.choose_free(
        record, observations.hkl, options.free_fraction, options.refine.seed
    )
    problem = Problem(
        record, scan, observations.replace(free=free), io_dials.provenance(loaded, structure)
    )
    logger.info(
        "%d reflections (%d above 3 sigma, %d free), %d blocks of %d orientation samples",
        len(free),
        int(observations.observed.sum()),
        int(free.sum()),
        *scan.angle.shape,
    )
    return Job(problem, xray_structure, loaded, options)


def _observed(loaded: Loaded, rows, options: Options):
    """Return the scan and the observations of the selected rows of the reflection table."""
    scan = io_dials.scan_from_experiments(loaded.experiments, options.sampling)
    observations = io_dials.observations_from_reflections(
        loaded.reflections, rows, loaded.experiments, scan, options.selection
    )
    return scan, observations


@_remembering_warnings
def choose_setting(job: Job) -> Job:
    """Find the hand, the indexing setting and the thickness that agree best with the data.

    Returns the job with the structure in that setting, the depth grid and, where asked for,
    the beams and the sampling of the rotation chosen.
    """
    options = job.options
    grid = DepthGrid(options.model.depth.step, math.ceil(SEARCH_DEPTH / options.model.depth.step))
    settings = dataclasses.replace(options.model, depth=grid)
    part = validation.part_of(job.problem, SEARCH_BLOCKS)
    found = [("h,k,l", "given", job.xray_structure)]
    if options.test_settings:
        found = io_settings.candidates(job.xray_structure)
    scores, thickness = [], []
    for operator, hand, candidate in found:
        r1, depth = validation.quick_r1(
            part.replace(structure=to_structure(candidate)), settings, options.refine.device
        )
        symbol = str(candidate.space_group_info())
        scores.append(validation.Candidate(operator, hand, symbol, r1))
        thickness.append(depth)
    best = min(range(len(found)), key=lambda i: scores[i].r1_obs)
    if scores[0].r1_obs - scores[best].r1_obs < options.minimum_gain:
        best = 0
    _log_candidates(scores, thickness, best)
    indexing = {
        "operator": scores[best].operator,
        "inverted": scores[best].hand == "inverted",
        "changed": best != 0,
        "candidates": [dataclasses.asdict(s) for s in scores],
    }
    chosen = found[best][2]
    job = dataclasses.replace(
        job,
        problem=job.problem.replace(structure=to_structure(chosen)),
        xray_structure=chosen,
        indexing=indexing,
        options=_with_depth(options, thickness[best]),
    )
    return _with_sampling(_with_cutoffs(job))


def _with_cutoffs(job: Job) -> Job:
    """Choose g_max and s_max, those that are to be chosen."""
    options, numerics = job.options, job.options.numerics
    free = tuple(name for name in ("s_max", "g_max") if name in numerics.auto)
    if not free:
        return job
    model, rungs = accuracy.choose_cutoffs(
        job.problem, options.model, numerics.r_change, free, options.refine.device
    )
    logger.info(
        "Beams, nothing refined; chosen: g_max %g, s_max %g\n%s\n",
        model.g_max,
        model.s_max,
        accuracy.format_rungs(rungs),
    )
    found = {"g_max": model.g_max, "s_max": model.s_max, "tried": _plain(rungs)}
    return dataclasses.replace(
        job,
        options=dataclasses.replace(options, model=model),
        numerics={**job.numerics, "beams": found},
    )


def _with_sampling(job: Job) -> Job:
    """Choose the step of the rotation, if it is to be chosen."""
    options, numerics = job.options, job.options.numerics
    if "sampling" not in numerics.auto:
        return job
    step, rungs = accuracy.choose_sampling(
        lambda step: _resampled(job, step), options.model, numerics.r_change, options.refine.device
    )
    logger.info(
        "Sampling of the rotation, nothing refined; chosen: %.3g degrees\n%s\n",
        step,
        accuracy.format_rungs(rungs),
    )
    sampling = dataclasses.replace(options.sampling, step=step)
    return dataclasses.replace(
        job,
        problem=_resampled(job, step),
        options=dataclasses.replace(options, sampling=sampling),
        numerics={**job.numerics, "sampling": {"step": step, "tried": _plain(rungs)}},
    )


def _plain(rungs: list[accuracy.Rung]) -> list[dict]:
    return [dataclasses.asdict(rung) for rung in rungs]


def _resampled(job: Job, step: float) -> Problem:
    """Return the job's problem with another step of the rotation, in degree."""
    options = dataclasses.replace(
        job.options, sampling=dataclasses.replace(job.options.sampling, step=step)
    )
    rows, _ = io_dials.select_reflections(job.loaded.reflections, options.selection)
    with collected_warnings():
        scan, observations = _observed(job.loaded, rows, options)
    old = job.problem.observations
    free = torch.isin(observations.row, old.row[old.free])
    return job.problem.replace(scan=scan, observations=observations.replace(free=free))


def _with_depth(options: Options, found: float) -> Options:
    start = options.thickness_start or found
    step = options.model.depth.step
    longest = options.depth_max or max(1.5 * start, 20 * step)
    model = dataclasses.replace(
        options.model,
        depth=DepthGrid(step, max(8, math.ceil(longest / step))),
        thickness_start=start,
    )
    return dataclasses.replace(options, model=model)


def _log_candidates(scores, thickness, best: int) -> None:
    lines = [
        f"  {s.operator:<16} {s.hand:<9} {s.space_group:<14} {s.r1_obs:8.4f} {t:8.0f}"
        for s, t in zip(scores, thickness, strict=True)
    ]
    head = f"  {'indexing':<16} {'hand':<9} {'space group':<14} {'R1(obs)':>8} {'t / A':>8}"
    logger.info("Hand, indexing and thickness, nothing refined:\n%s\n", "\n".join([head, *lines]))
    if best != 0:
        logger.warning(
            "The %s structure indexed as %s (%s) agrees better (R1 %.4f) than the given one (%.4f) "
            "and is refined instead; hand_and_indexing.test=False keeps the given one",
            scores[best].hand,
            scores[best].operator,
            scores[best].space_group,
            scores[best].r1_obs,
            scores[0].r1_obs,
        )


def refine(job: Job, progress: Progress | None = None) -> Outcome:
    """Refine the job and return the outcome; logs an estimate of time and memory first.

    Raises InputError when memory runs out.
    """
    with collected_warnings() as messages, out_of_memory_explained(MEMORY_ADVICE):
        job = _with_step(job)
        refinement = _make_refinement(job, progress)
        seconds, memory = refinement.estimate()
        logger.info(
            "Estimated time: %.0f s (%.1f s per pass with derivatives, about %d of them); "
            "memory: %.1f GB\n",
            USUAL_PASSES * seconds,
            seconds,
            USUAL_PASSES,
            memory / 1e9,
        )
        result = refinement.run()
    return outcome_of(job, refinement.checkpoint(result), messages)


def finished(job: Job) -> Outcome:
    """Return the outcome of a continued job whose file holds the final result."""
    return outcome_of(job, _checkpoint(job), [])


def write_problem(job: Job, path) -> None:
    """Write a job that is not refined yet, for another machine; `resume` reads it back."""
    io_results.check_writable([path])
    _checkpoint(_with_step(job)).save(path)


def _checkpoint(job: Job) -> Checkpoint:
    return Checkpoint(
        job.problem,
        job.options.model,
        job.options.refine,
        job.state or State(),
        _context(job),
        job.result,
    )


def _with_step(job: Job) -> Job:
    """Choose the step of the propagation, unless the job has begun."""
    if job.state is not None:
        return job
    options, numerics = job.options, job.options.numerics
    allowed = accuracy.SUBSTEPS if numerics.substeps is None else (numerics.substeps,)
    model, check = accuracy.choose_step(
        job.problem, options.model, numerics.error, options.refine.device, allowed
    )
    return dataclasses.replace(
        job,
        options=dataclasses.replace(options, model=model),
        numerics={**job.numerics, "propagation": dataclasses.asdict(check)},
    )


def _make_refinement(job: Job, progress: Progress | None) -> Refinement:
    refinement = Refinement(job.problem, job.options.model, job.options.refine, progress, job.state)
    refinement.context = _context(job)
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
    structure = update_xray_structure(job.xray_structure, result.structure)
    summary = {
        **result.summary,
        **job.numerics,
        "indexing": job.indexing,
        "absolute_structure": _hands(job),
    }
    result = result.replace(summary=summary)
    contract = report.contract(
        job.problem,
        result,
        space_group=str(structure.space_group_info()),
        warnings=[*job.messages, *messages],
        dials_version=dials_version(),
    )
    return Outcome(job, result, structure, contract, dataclasses.replace(checkpoint, result=result))


def _hands(job: Job) -> dict:
    """What the test before the refinement says of the two hands of the chosen indexing."""
    chosen = job.indexing.get("operator")
    scores = {c["hand"]: c for c in job.indexing.get("candidates", []) if c["operator"] == chosen}
    if len(scores) < 2:
        return {"tested": False}
    refined = "inverted" if job.indexing["inverted"] else "given"
    other = "given" if refined == "inverted" else "inverted"
    return {
        "tested": True,
        "space_group": scores[refined]["space_group"],
        "r1_obs": scores[refined]["r1_obs"],
        "r1_obs_other_hand": scores[other]["r1_obs"],
    }


def write(outcome: Outcome, outputs: Outputs) -> None:
    """Write the chosen files, each complete or not at all.

    Raises InputError, before anything is written, when one cannot be.
    """
    io_results.check_writable(outputs.names())
    job, result = outcome.job, outcome.result
    problem = job.problem
    if job.loaded is not None and outputs.experiments:
        io_results.write_experiments(outputs.experiments, job.loaded.experiments, problem, result)
    if job.loaded is not None and outputs.reflections:
        io_results.write_reflections(outputs.reflections, job.loaded.reflections, problem, result)
    if outputs.structure:
        io_cif_mtz.write_cif(
            outputs.structure, outcome.structure, problem, result, outcome.contract
        )
    if outputs.mtz:
        io_cif_mtz.write_mtz(outputs.mtz, outcome.structure, problem, result)
    if outputs.problem:
        outcome.checkpoint.save(outputs.problem)
    if outputs.json:
        report.write_json(outputs.json, outcome.contract)
    if outputs.html:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # font remarks of matplotlib mean nothing to users
            report.write_html(outputs.html, problem, result, outcome.contract)


def _context(job: Job) -> dict:
    """What a continuation needs beside the numbers."""
    return {
        "structure_cif": cif_text(job.xray_structure),
        "indexing": job.indexing,
        "messages": list(job.messages),
        "numerics": job.numerics,
    }


def cif_text(xray_structure) -> str:
    """Return a CIF of a cctbx structure, data block start."""
    import iotbx.cif.model

    model = iotbx.cif.model.cif()
    model["start"] = xray_structure.as_cif_block(format="coreCIF")
    return str(model)


@_remembering_warnings
def resume(path, options: Options | None = None) -> Job:
    """Return the job of a saved problem or checkpoint, to be refined on.

    The settings of the file hold; of `options`, only what belongs to the machine (device,
    memory, checkpoint interval) and the number of iterations are taken. A job that holds a
    result needs no more refinement and goes to `finished`. Raises InputError when the file is
    not of this kind.
    """
    stored = Checkpoint.load(path)
    context, settings, model = stored.context, stored.settings, stored.model_settings
    if "structure_cif" not in context:
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
    finished = dataclasses.replace(stored, settings=settings).finished
    return Job(
        stored.problem,
        _structure_from_cif(context["structure_cif"]),
        _reload(stored.problem, path),
        Options(model=model, refine=settings),
        context["indexing"],
        stored.state,
        tuple(context["messages"]),
        context.get("numerics", {}),
        stored.result if finished else None,
    )


def _structure_from_cif(text: str):
    import iotbx.cif

    return iotbx.cif.reader(input_string=text).build_crystal_structures()["start"]


def _reload(problem: Problem, path) -> Loaded | None:
    """Read the experiment files again, if they are where they were and unchanged."""
    provenance = problem.provenance
    prints = [*provenance.get("experiments", []), *provenance.get("reflections", [])]
    names = [p["file"] for p in prints]
    gone = [n for n in names if not os.path.isfile(n)]
    if gone or not names:
        logger.warning(
            "%s: the original files (%s) are not there; .expt and .refl will not be written",
            path,
            ", ".join(gone) or "not recorded",
        )
        return None
    changed = [p["file"] for p in prints if io_dials.fingerprint(p["file"]) != p]
    if changed:
        logger.warning(
            "%s: %s changed since; .expt and .refl will not be written", path, ", ".join(changed)
        )
        return None
    return io_dials.load(names)
