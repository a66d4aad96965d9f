"""
Refine a crystal structure against integrated 3D electron diffraction data, with dynamical
(multiple) scattering.

Atoms, displacement parameters, the crystal's orientation, a smooth scale and the
distribution of the crystal's thickness are refined together. A small neural network learns
how the thickness changes over the rotation. The results are the refined structure (.cif),
corrected data (.mtz), the refined orientations (.expt), the reflections with calculated
intensities (.refl), a report (.html) and its figures (.json). If asked, also: the difference
potential in CCP4 format (output.map), virtual frames with refined orientations for Jana2020
(.cif_pets, output.pets), and the start of a kinematical refinement (.res and .hkl,
output.shelx).

The data are of DIALS (.expt and .refl) or virtual frames of PETS2 (.cif_pets), which have no .expt
and .refl to write back to.

The structure may be a CIF, a SHELX .res or .ins file or a PDB file. A refinement that was
stopped continues from its checkpoint; a finished one whose two hands were not compared yet is
compared then.

Examples::

  dials.hybrid_refine integrated.expt integrated.refl model.cif

  dials.hybrid_refine sweep1.expt sweep1.refl sweep2.expt sweep2.refl model.res

  dials.hybrid_refine data_dyn.cif_pets model.cif

  dials.hybrid_refine integrated.expt integrated.refl model.cif thickness.model=single

  dials.hybrid_refine hybrid_refined.h5

  dials.hybrid_refine integrated.expt integrated.refl model.cif output.problem_only=True
"""

from __future__ import annotations

import logging
import math
import shlex
import sys
from pathlib import Path

import libtbx.phil
import torch
from libtbx import Auto

from .. import api, io_shelx_write
from ..checkpoint import RefineSettings
from ..corrections import Term
from ..history import Progress
from ..io_dials import Sampling, Selection
from ..model_settings import ModelSettings
from ..nuisance import KINDS
from ..phil_files import phil_text
from ..propagation import METHODS, DepthGrid, Splitting
from ..records import InputError
from ..thickness import ThicknessPrior
from ..valence import ValenceSettings
from . import common
from .log_outcome import log_outcome
from .progress import Reporter

logger = logging.getLogger("dials.hybrid.command_line.hybrid_refine")

phil_scope = libtbx.phil.parse(phil_text("hybrid_refine.phil"))

OUTPUTS = (
    *("experiments", "reflections", "structure", "mtz", "map", "shelx"),
    *("problem", "html", "json", "pets"),
)
STRUCTURES = (".cif", ".mmcif", ".res", ".ins", ".pdb", ".ent")
MAX_THREADS = 8
DEFAULTS = api.Options()
# what of the parameters holds for a continued problem; its file has all others
ON_CONTINUING = (
    *("output.", "pets.", "hand_and_indexing."),
    *("refinement.iterations", "refinement.checkpoint_seconds"),
    *("compute.device", "compute.threads", "compute.memory"),
)
CITATIONS = (
    "DIALS: G. Winter et al. (2018) Acta Cryst. D74, 85-97. "
    "https://doi.org/10.1107/S2059798317017235",
    "cctbx: R. W. Grosse-Kunstleve et al. (2002) J. Appl. Cryst. 35, 126-136. "
    "https://doi.org/10.1107/S0021889801017824",
    "Hybrid refinement: Malik et al. (2026) Nat. Commun. "
    "https://doi.org/10.1038/s41467-026-71673-9",
)


@common.reports_input_errors
def run(args: list[str] | None = None, phil: libtbx.phil.scope = phil_scope) -> None:
    """Run dials.hybrid_refine as from the command line.

    Args:
        args: the arguments of the user (default: sys.argv[1:])
        phil: the PHIL scope of the parameters
    """
    usage = "dials.hybrid_refine [options] integrated.expt integrated.refl model.cif"
    parser = common.Parser(usage=usage, phil=phil, epilog=__doc__)
    params, options, files = parser.parse(args)
    names = ("problem", "log") if params.output.problem_only else (*OUTPUTS, "log")
    outputs = {f"output.{n}": getattr(params.output, n) for n in names}
    outputs |= _shelx_files(outputs.pop("output.shelx", None))
    continued = len(files) == 1 and files[0].endswith(".h5")
    common.check_outputs(outputs, [] if continued else files)
    _check_problem_only(params, continued)
    torch.set_num_threads(_threads(params.compute.threads))
    with common.logging_to(params.output.log, options.verbose):
        common.log_parameters(parser)
        chosen = refine_options(params)
        if continued:
            warn_of_ignored(parser.diff_phil)
            job = api.resume(files[0], chosen)
        else:
            data, structure = sort_files(files)
            job = api.choose_setting(api.load(data, structure, chosen))
        if params.output.problem_only:
            write_problem(job, params.output.problem)
            return
        refine_job(job, params)
        common.log_citations(CITATIONS)


def _shelx_files(prefix: str | None) -> dict:
    """Return the two files of output.shelx by what they are called in messages."""
    files = () if prefix is None else io_shelx_write.names(prefix)
    return {f"output.shelx ({Path(name).suffix})": name for name in files}


def _check_problem_only(params, continued: bool) -> None:
    if not params.output.problem_only:
        return
    if continued:
        raise InputError("output.problem_only=True: the file given is such a problem already")
    if params.output.problem is None:
        raise InputError("output.problem_only=True needs a name in output.problem")


def warn_of_ignored(changed: libtbx.phil.scope) -> None:
    """Warn of parameters that differ from their defaults and mean nothing to a continued problem.

    `changed` has the parameters that differ.
    """
    paths = dict.fromkeys(definition.path for definition in changed.all_definitions())
    ignored = [path for path in paths if not path.startswith(ON_CONTINUING)]
    if ignored:
        logger.warning(
            "No effect on a continued problem, whose file holds these choices: %s; start from the "
            "data files to change them",
            ", ".join(ignored),
        )


def write_problem(job: api.Job, path: str) -> None:
    """Write the problem, not refined, and log how to go on."""
    api.write_problem(job, path)
    logger.info(
        "Written: %s\n\nTo refine it where torch, numpy and h5py are, without DIALS:\n\n"
        "  python -m dials_hybrid %s --output refined.h5\n\n"
        "then, here again, for the structure, the data and the report:\n\n"
        "  dials.hybrid_refine refined.h5\n",
        path,
        shlex.quote(path),
    )


def refine_job(job: api.Job, params) -> None:
    """Refine unless that is done, write the outputs and log what was found."""
    cutting = api.Cutting(params.pets.frame_step, _given(params.pets.frame_width, None))
    pets = api.pets_files(job, params.output.pets, cutting) if params.output.pets else []
    if params.output.pets and not pets:
        logger.warning("%s is not written: it needs the data files", params.output.pets)
    with Reporter(params.refinement.iterations) as reporter:
        progress = Progress(reporter.row, params.output.problem)
        if job.result is not None:
            logger.info("The refinement is complete already\n")
            outcome = api.finished(job, progress)
        else:
            outcome = api.refine(job, progress)
    outputs = api.Outputs(**{n: getattr(params.output, n) for n in OUTPUTS})
    written = api.write(outcome, outputs, cutting)
    log_outcome(outcome)
    if not job.writes_back:
        logger.info("No .expt and .refl: there are no DIALS files to write back to")
    logger.info("Written: %s\n", ", ".join(written))


def sort_files(files: list[str]) -> tuple[list[str], str]:
    """Return (data files, structure file).

    Raises InputError unless there is exactly one structure and some data.
    """
    structures = [f for f in files if Path(f).suffix.lower() in STRUCTURES]
    data = [f for f in files if f not in structures]
    if len(structures) != 1:
        found = f"{len(structures)} ({', '.join(structures)})" if structures else "none"
        raise InputError(
            f"give exactly one structure (.cif, .res, .ins or .pdb) beside the data; found {found}"
        )
    if not data:
        raise InputError(
            f"{structures[0]}: no data with it; give the .expt and .refl of dials.integrate too, "
            "or the .cif_pets of PETS2"
        )
    return data, structures[0]


def refine_options(params) -> api.Options:
    """Translate the PHIL parameters.

    Raises InputError when CUDA is asked for and absent, or for a bad nuisance.module.
    """
    start = None if params.thickness.start is Auto else params.thickness.start
    longest = None if params.depth.max is Auto else params.depth.max
    refinement, selection = params.refinement, params.selection
    return api.Options(
        selection=Selection(
            intensity=selection.intensity,
            partiality=selection.partiality,
            zeta=selection.zeta,
            d_min=selection.d_min,
            d_max=selection.d_max,
            i_over_sigma=selection.i_over_sigma,
            rsg_max=selection.rsg_max,
            rocking_curve=selection.rocking_curve,
            geometry=selection.geometry,
            dsg_min=selection.dsg_min,
        ),
        sampling=Sampling(
            params.sampling.block_width, _given(params.sampling.step, DEFAULTS.sampling.step)
        ),
        model=_model_settings(params),
        refine=RefineSettings(
            iterations=refinement.iterations,
            seed=refinement.seed,
            large=refinement.large,
            checkpoint_seconds=refinement.checkpoint_seconds,
            device=_device(params.compute.device),
        ),
        free_fraction=params.free.fraction,
        free_by=params.free.by,
        block=params.structure.block,
        depth_max=longest,
        thickness_start=start,
        test_settings=params.hand_and_indexing.test,
        minimum_gain=params.hand_and_indexing.minimum_gain,
        # PHIL takes the choice none as no choice
        refine_settings=params.hand_and_indexing.refine or "none",
        numerics=_numerics(params),
        parameters=_parameters(params.parameters),
        restraints=_restraints(params.restraints),
    )


def _parameters(params) -> api.Parameters:
    def given(texts) -> tuple[str, ...]:
        return tuple(text for text in texts if text is not None)

    return api.Parameters(
        fix=given(params.fix),
        free=given(params.free),
        same_site=given(params.same_site),
        same_u=given(params.same_u),
        occupancies=given(params.occupancies),
        hydrogens=params.hydrogens,
        displacements=params.displacements,
        anisotropic=given(params.anisotropic),
        isotropic=given(params.isotropic),
    )


def _restraints(params) -> api.RestraintOptions:
    words = ("distance", "similar_distance", "angle", "plane", "chirality")
    return api.RestraintOptions(
        shelx=params.shelx,
        # PHIL gives [None] where there is none
        **{name: tuple(text for text in getattr(params, name) if text) for name in words},
        adp_similarity=params.adp_similarity,
        rigid_bond=params.rigid_bond,
        enhanced_rigid_bond=params.enhanced_rigid_bond,
        isotropic_adp=params.isotropic_adp,
    )


def _numerics(params) -> api.Numerics:
    choices = {
        "g_max": params.beams.g_max,
        "s_max": params.beams.s_max,
        "sampling": params.sampling.step,
    }
    substeps = _given(params.propagation.substeps, None)
    if substeps is not None and params.propagation.method == "chebyshev":
        logger.warning(
            "propagation.substeps=%d has no effect: propagation.method=chebyshev makes no steps",
            substeps,
        )
    return api.Numerics(
        error=params.propagation.error,
        substeps=substeps,
        any_method=params.propagation.method == "auto",
        auto=tuple(name for name, value in choices.items() if value is Auto),
        r_change=params.beams.r_change,
    )


def _given(value, otherwise):
    """Return a value, or what stands for Auto until it is chosen."""
    return otherwise if value is Auto else value


def _model_settings(params) -> ModelSettings:
    prior, sigma = params.thickness.prior, params.orientation.sigma
    stiffness, charge_radius = params.scale.stiffness, params.valence.charge_radius
    return ModelSettings(
        g_max=_given(params.beams.g_max, DEFAULTS.model.g_max),
        s_max=_given(params.beams.s_max, DEFAULTS.model.s_max),
        left_out=params.beams.left_out,
        perturbation=params.beams.perturbation,
        depth=DepthGrid(params.depth.step, 1),  # the number follows from the data
        propagator=METHODS.get(params.propagation.method, Splitting)(),
        absorption=common.absorption_model(params.absorption),
        precision=params.compute.precision,
        thickness=params.thickness.model,
        thickness_head=params.thickness.head,
        thickness_features=params.thickness.features,
        prior=ThicknessPrior(
            smoothness=prior.smoothness,
            entropy=prior.entropy,
            angle=prior.angle,
            stretch=prior.stretch,
            ends=prior.ends,
            dip=prior.dip,
        ),
        valence=ValenceSettings(
            model=params.valence.model or "none",  # PHIL takes the choice none as no choice
            radius=params.valence.radius,
            charge_radius=None if charge_radius is Auto else charge_radius,
            charge_sigma=params.valence.charge_sigma,
            dipole_sigma=params.valence.dipole_sigma,
        ),
        scale_spacing=math.radians(params.scale.spacing),
        scale_stiffness=None if stiffness is Auto else stiffness,
        orientation_spacing=math.radians(params.orientation.spacing),
        orientation_sigma=None if sigma is Auto else math.radians(sigma),
        orientation_stiffness=params.orientation.stiffness,
        nuisance=_nuisance(params.nuisance),
        memory=1e9 * params.compute.memory,
    )


def _nuisance(params) -> tuple[Term, ...]:
    """The terms that are switched on, those of modules last; raises InputError for a bad one."""
    sizes = {kind: getattr(params, kind) for kind in KINDS}
    own = [Term.named(text) for text in params.module if text]  # [None] where there is none
    return (*(Term(kind, sigma) for kind, sigma in sizes.items() if sigma is not None), *own)


def _device(choice: str) -> str:
    if choice == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "compute.device=cuda: torch finds no CUDA device here; use compute.device=cpu, or "
            "install a CUDA build of torch"
        )
    return "cuda" if choice != "cpu" and torch.cuda.is_available() else "cpu"


def _threads(choice) -> int:
    # more threads than this wait for each other on matrices of these sizes
    return min(MAX_THREADS, torch.get_num_threads()) if choice in (Auto, None) else choice


if __name__ == "__main__":
    run(sys.argv[1:])
