"""A refinement to be done: the problem, what its results are written back to, all choices."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from dataclasses import dataclass, field

from . import io_constraints, io_dials, io_pets, io_riding, io_shelx
from .checkpoint import RefineSettings, State
from .cross_validation import choose_free, unique_groups
from .data import Problem, Result, Structure, block_of
from .freedom import Constraints
from .io_cctbx import to_structure, write_cell
from .io_constraints import Parameters
from .io_dials import Sampling, Selection, format_table
from .io_disorder import KEY, Parts, cif_columns, parts_of
from .io_measurement import stated
from .io_restraints import RestraintOptions, count_kinds, in_basis, restraints_of
from .io_structures import read_structure
from .model_settings import ModelSettings
from .records import InputError
from .refine import Refinement

logger = logging.getLogger("dials.hybrid.job")

INTERRUPTED = "interrupted"  # in the stop reason of a result


@dataclass(frozen=True)
class Numerics:
    """Errors that numerical choices may make, and which choices are made by them.

    `error` is max |dI| of the propagation, the incident beam being one; `substeps` fixes the
    steps between depths. Unless that is given, `any_method` lets another method than that of the
    model's settings be taken where it is less work. `auto` names cut-offs and steps ("g_max",
    "s_max", "sampling") that are as coarse as a change of R1 by `r_change` allows.
    """

    error: float = 1e-4
    substeps: int | None = None
    any_method: bool = True
    auto: tuple[str, ...] = ()
    r_change: float = 5e-4


@dataclass(frozen=True)
class Options:
    """All choices of a refinement. Thicknesses in A; None is found from the data.

    `refine_settings` says what is refined beside the chosen setting, to compare: "hand" (the
    mirror image of a structure that is not centrosymmetric) or "all" (the other indexing settings
    too, which are otherwise compared as they stand); with "none" nothing is compared.
    """

    selection: Selection = Selection(d_min=0.625)
    sampling: Sampling = Sampling(1.0, 0.05)
    model: ModelSettings = ModelSettings()
    refine: RefineSettings = RefineSettings()
    free_fraction: float = 0.04
    free_by: str = "reflections"  # or "frames": whole blocks of the rotation
    block: str | None = None
    depth_max: float | None = None
    thickness_start: float | None = None
    test_settings: bool = True
    minimum_gain: float = 0.002
    refine_settings: str = "hand"
    numerics: Numerics = Numerics()
    parameters: Parameters = Parameters()
    restraints: RestraintOptions = RestraintOptions()


@dataclass(frozen=True)
class Job:
    """A problem with what its results are written back to."""

    problem: Problem
    xray_structure: object  # cctbx.xray.structure, in the experiment's cell
    # what the files hold; None if those of a continued problem are gone
    loaded: io_dials.Loaded | io_pets.Loaded | None
    options: Options
    indexing: dict = field(default_factory=dict)
    state: State | None = None
    messages: tuple = ()  # warnings so far
    numerics: dict = field(default_factory=dict)  # what was chosen by its error
    constraints: Constraints = Constraints()  # those in problem.structure.freedom
    result: Result | None = None  # of a continued problem that needs no more refinement

    @property
    def parts(self) -> Parts:
        """Parts of a disorder that the atoms belong to; empty without."""
        return tuple(self.problem.provenance.get(KEY, ()))

    @property
    def writes_back(self) -> bool:
        """Whether there are DIALS files to write back to: PETS2 has none of this kind."""
        return isinstance(self.loaded, io_dials.Loaded)


@dataclass(frozen=True)
class Refined:
    """A job, its refinement, which has run, and the result."""

    job: Job
    refinement: Refinement
    result: Result


def in_setting(job: Job, structure: Structure, operator: str, hand: str) -> Problem:
    """Return the job's problem for its structure reindexed ("h,k,l" notation) and then inverted.

    `structure` is the moved one, `hand` is "given" or "inverted"; constraints and restraints of
    the job hold for it as well, in the setting that it has.
    """
    constraints = io_constraints.in_basis(job.constraints, operator)
    return job.problem.replace(
        structure=io_constraints.with_freedom(structure, constraints),
        restraints=in_basis(
            job.problem.restraints, operator, hand == "inverted", job.xray_structure
        ),
    )


def context(job: Job) -> dict:
    """Return what a continuation of the job needs beside the numbers, for its checkpoints."""
    return {
        "structure_cif": cif_text(job.xray_structure, job.parts),
        "indexing": job.indexing,
        "messages": list(job.messages),
        "numerics": job.numerics,
        "constraints": job.constraints.to_dict(),
    }


def cif_text(xray_structure, parts: Parts = ()) -> str:
    """Return a CIF of a cctbx structure, with the parts of a disorder, data block start."""
    import iotbx.cif.model
    from cctbx.array_family import flex

    block = xray_structure.as_cif_block(format="coreCIF")
    write_cell(block, xray_structure.crystal_symmetry(), digits=9)
    model = iotbx.cif.model.cif()
    model["start"] = block
    if parts:
        for name, column in cif_columns(parts).items():
            block.get_loop("_atom_site")[name] = flex.std_string(column)
    return str(model)


def remembering_warnings(function):
    """Make a function that returns a Job add the warnings logged meanwhile to the job, once."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with collected_warnings() as messages:
            job = function(*args, **kwargs)
        return dataclasses.replace(job, messages=tuple(dict.fromkeys([*job.messages, *messages])))

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


def read(files, geometry: str = "auto") -> io_dials.Loaded | io_pets.Loaded:
    """Read .expt and .refl files, or .cif_pets files, whose frames are of a `geometry`.

    Raises InputError, with one sentence for the user, when something cannot be used.
    """
    pets = [str(name) for name in files if io_pets.is_pets(name)]
    others = [str(name) for name in files if str(name) not in pets]
    if pets and others:
        raise InputError(
            f"{pets[0]} is of PETS2 and {others[0]} is not; give {io_pets.SUFFIX} files or .expt "
            "and .refl files"
        )
    return io_pets.load(files, geometry) if pets else io_dials.load(files)


@remembering_warnings
def load(files, structure, options: Options = Options()) -> Job:
    """Read data files (.expt and .refl, or .cif_pets) and a structure file; return the job.

    Raises InputError, with one sentence for the user, when something cannot be used.
    """
    xray_structure = read_structure(structure, options.block)
    shelx = io_shelx.read_instructions(structure) if io_shelx.is_shelx(structure) else None
    parts = parts_of(structure, xray_structure.scatterers().size(), options.block)
    loaded = read(files, options.selection.geometry)
    xray_structure = loaded.reconcile(xray_structure, structure)
    rows, table = loaded.select(options.selection)
    logger.info("Selection of reflections:\n%s\n", format_table(table))
    scan, observations = loaded.observed(rows, options.sampling, options.selection)
    seen = unique_groups(to_structure(xray_structure), observations.hkl[observations.observed])
    xray_structure, record, constraints = io_constraints.constrained(
        xray_structure, options.parameters, shelx, parts, unique=len(seen.unique())
    )
    if options.parameters.hydrogens == "as_given":
        io_riding.warn_of_xray_distances(record, constraints)
    by_frame = options.free_by == "frames"
    groups = block_of(observations, scan) if by_frame else unique_groups(record, observations.hkl)
    free = choose_free(groups, options.free_fraction, options.refine.seed)
    free_parameters = record.freedom
    logger.info(
        "Free parameters: %d of sites (%d torsions), %d of displacements, %d of occupancies; "
        "%d riding atoms",
        len(free_parameters.site),
        int(free_parameters.torsions.sum()),
        len(free_parameters.u_iso),
        len(free_parameters.occ),
        int((free_parameters.parent >= 0).sum()),
    )
    provenance = {**loaded.provenance(structure), **stated(structure, options.block)}
    if parts:
        provenance[KEY] = list(parts)
    problem = Problem(
        record,
        scan,
        observations.replace(free=free),
        provenance,
        restraints_of(xray_structure, options.restraints, structure, parts),
    )
    if problem.restraints is not None:
        logger.info("Restraints: %s", count_kinds(problem.restraints))
    logger.info(
        "%d reflections (%d above 3 sigma, %d free), %d blocks of %d orientation samples",
        len(free),
        int(observations.observed.sum()),
        int(free.sum()),
        *scan.angle.shape,
    )
    return Job(problem, xray_structure, loaded, options, constraints=constraints)
