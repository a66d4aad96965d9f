"""A refinement to be done: the problem, what its results are written back to, all choices."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from dataclasses import dataclass, field

from . import io_dials, validation
from .checkpoint import RefineSettings, State
from .data import Problem, Result
from .io_cctbx import reconcile, to_structure
from .io_dials import Loaded, Sampling, Selection
from .io_structures import read_structure
from .model import ModelSettings

logger = logging.getLogger("dials.hybrid.job")


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


def remembering_warnings(function):
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


@remembering_warnings
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
    scan, observations = observed(loaded, rows, options)
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


def observed(loaded: Loaded, rows, options: Options):
    """Return the scan and the observations of the selected rows of the reflection table."""
    scan = io_dials.scan_from_experiments(loaded.experiments, options.sampling)
    observations = io_dials.observations_from_reflections(
        loaded.reflections, rows, loaded.experiments, scan, options.selection
    )
    return scan, observations
