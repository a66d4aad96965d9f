"""The records that every room shares: what is measured, and what comes out.

Lengths in Angstrom, reciprocal lengths in A^-1 (no factor 2 pi), angles in radian, vectors in
the DIALS laboratory frame. Records are frozen, hold torch tensors, validate themselves, and
travel as HDF5.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .noise import Noise
from .records import InputError, Record, load_records, save_records

# A^2, principal U of an atom; beyond, exp(-2 pi^2 g^2 U) grows until the waves are no numbers
LOWEST_U = -0.05


@dataclass(frozen=True)
class Freedom(Record):
    """The free parameters of a structure of A atoms: what changes per unit of each one.

    P parameters of sites, Q of displacements, O of occupancies; see the room freedom.
    """

    site: Tensor  # (P, A, 3) fractional shift per A
    u_iso: Tensor  # (Q, A) U_iso per A^2
    u_star: Tensor  # (Q, A, 6) u_star per A^2
    occ: Tensor  # (O, A) occupancy per unit
    parent: Tensor  # (A,) the atom that this one rides on, -1 if none
    u_parent: Tensor | None = None  # (A,) the atom whose U_eq U_iso follows, -1 if none

    def __post_init__(self):
        a, q = len(self.parent), len(self.u_iso)
        self._expect("site", len(self.site), a, 3)
        self._expect("u_iso", q, a)
        self._expect("u_star", q, a, 6)
        self._expect("occ", len(self.occ), a)

    @property
    def count(self) -> int:
        """The number P + Q + O of parameters."""
        return len(self.site) + len(self.u_iso) + len(self.occ)

    @property
    def torsions(self) -> Tensor:
        """(P,) whether a parameter of sites turns riding atoms about a bond, and moves no other."""
        return ~(self.site[:, self.parent < 0] != 0).flatten(1).any(1)


@dataclass(frozen=True)
class Structure(Record):
    """A crystal structure with what the physics needs of its symmetry.

    A atoms, S operators (centring included), K scattering types, G Gaussians.
    """

    cell: Tensor  # (6,) A, degree
    hall_symbol: str
    sym_rot: Tensor  # (S, 3, 3), acts on fractional coordinates
    sym_trans: Tensor  # (S, 3)
    site: Tensor  # (A, 3) fractional
    u_iso: Tensor  # (A,) A^2; used where `anisotropic` is false
    u_star: Tensor  # (A, 6) 11 22 33 12 13 23, used where `anisotropic` is true
    anisotropic: Tensor  # (A,) bool
    occ: Tensor  # (A,) site occupancy, without the multiplicity
    weight: Tensor  # (A,) multiplicity / order of the space group
    site_projector: Tensor  # (A, 3, 3) allowed shifts of each site, fractional
    adp_projector: Tensor  # (A, 6, 6) allowed changes of each u_star
    type: Tensor  # (A,) index into ff_a, ff_b
    ff_a: Tensor  # (K, G) A
    ff_b: Tensor  # (K, G) A^2, f(s) = sum a exp(-b s^2), s = |g| / 2
    labels: tuple  # (A,) str
    elements: tuple  # (K,) str
    freedom: Freedom | None = None  # None: what the symmetry leaves, occupancies fixed

    def __post_init__(self):
        a, s = len(self.labels), len(self.sym_rot)
        k, g = self.ff_a.shape
        shapes = {
            "cell": (6,),
            "sym_rot": (s, 3, 3),
            "sym_trans": (s, 3),
            "site": (a, 3),
            "u_iso": (a,),
            "u_star": (a, 6),
            "anisotropic": (a,),
            "occ": (a,),
            "weight": (a,),
            "site_projector": (a, 3, 3),
            "adp_projector": (a, 6, 6),
            "type": (a,),
            "ff_b": (k, g),
        }
        for name, shape in shapes.items():
            self._expect(name, *shape)
        if a == 0:
            raise ValueError("Structure without atoms")
        if self.freedom is not None and len(self.freedom.parent) != a:
            raise ValueError("Structure.freedom: made for another number of atoms")


@dataclass(frozen=True)
class Scan(Record):
    """Orientation samples: F blocks of T samples each, cut from one or several sweeps."""

    setting: Tensor  # (F, T, 3, 3) A^-1, takes hkl to the laboratory frame
    angle: Tensor  # (F, T) rad, rotation angle of each sample
    sample_width: Tensor  # (F, T) rad, the angle that each sample stands for
    s0: Tensor  # (F, 3) A^-1, incident beam
    normal: Tensor  # (F, 3) unit vector, exit direction of the surface normal
    sweep: Tensor  # (F,) index of the sweep
    axis: Tensor  # (F, 3) unit vector, rotation axis

    def __post_init__(self):
        f, t = self.angle.shape
        self._expect("setting", f, t, 3, 3)
        self._expect("sample_width", f, t)
        self._expect("sweep", f)
        for name in ("s0", "normal", "axis"):
            self._expect(name, f, 3)
        if f == 0 or t == 0:
            raise ValueError("Scan without orientation samples")

    def chosen(self, blocks: Tensor) -> Scan:
        """Return some of the blocks, a mask (F,) or indices."""
        return type(self)(
            **{f.name: getattr(self, f.name)[blocks] for f in dataclasses.fields(self)}
        )

    @property
    def block_angle(self) -> Tensor:
        """Mean rotation angle of each block, (F,) rad."""
        return self.angle.mean(dim=1)

    @property
    def frame(self) -> Tensor:
        """(F,) number of the frame of each block, from 0.

        A frame of PETS2 is cut into blocks, which follow each other and have its angle; in a sweep
        of DIALS each block is its own.
        """
        place = torch.stack([self.sweep.to(self.angle), self.block_angle], 1)
        return torch.unique_consecutive(place, dim=0, return_inverse=True)[1]

    @property
    def frame_start(self) -> Tensor:
        """(G,) the first block of each frame."""
        frame = self.frame
        return torch.searchsorted(frame, torch.arange(int(frame[-1]) + 1, device=frame.device))

    @property
    def wavelength(self) -> float:
        """Wavelength in A; all sweeps share it."""
        return float(1 / self.s0[0].norm())


@dataclass(frozen=True)
class Observations(Record):
    """R measured reflections and L links to the samples over which each one was integrated."""

    hkl: Tensor  # (R, 3) int64
    intensity: Tensor  # (R,)
    sigma: Tensor  # (R,) > 0
    row: Tensor  # (R,) row in the source table
    free: Tensor  # (R,) bool, kept out of the refinement
    sweep: Tensor  # (R,) index of the sweep
    angle: Tensor  # (R,) rad, rotation angle of the centroid
    link_observation: Tensor  # (L,) index into the R observations
    link_block: Tensor  # (L,) index into the F blocks
    link_first: Tensor  # (L,) first sample in that block
    link_last: Tensor  # (L,) last sample in that block, inclusive
    # (L, T) rad, what each sample of that block counts for; None: its sample_width in the scan
    link_weight: Tensor | None = None

    def __post_init__(self):
        r, n = len(self.intensity), len(self.link_block)
        self._expect("hkl", r, 3)
        for name in ("sigma", "row", "free", "sweep", "angle", "intensity"):
            self._expect(name, r)
        for name in ("link_observation", "link_first", "link_last"):
            self._expect(name, n)
        if self.link_weight is not None and len(self.link_weight) != n:
            raise ValueError("Observations.link_weight is not that of the links")
        if r == 0:
            raise ValueError("no observations")
        if not (self.sigma > 0).all():
            raise ValueError("Observations.sigma must be positive")
        if len(torch.unique(self.link_observation)) != r:
            raise ValueError("an observation is linked to no block")

    def chosen(self, rows: Tensor, links: Tensor, blocks: Tensor) -> Observations:
        """Return some rows, ascending indices (r,), and those of their links in `links` (l,).

        `blocks` (l,) are the blocks of these links in the scan that goes with them.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        picked = {
            name: value[links if name.startswith("link_") else rows]
            for name, value in values.items()
            if value is not None
        }
        place = torch.searchsorted(rows, picked["link_observation"])
        return type(self)(**picked | {"link_observation": place, "link_block": blocks})

    @functools.cached_property
    def noise(self) -> Noise:
        """The variance of the integration as a function of the intensity; free ones say nothing."""
        return Noise.of(self.intensity, self.sigma, self.sweep, ~self.free)

    @property
    def observed(self) -> Tensor:
        """(R,) bool, I > 3 sigma."""
        return self.intensity > 3 * self.sigma


def sample_weights(observations: Observations, scan: Scan, links: Tensor) -> Tensor:
    """Return what the samples of their blocks count for in some links (l,), (l, T) rad."""
    o, sample = observations, torch.arange(scan.angle.shape[1], device=links.device)
    inside = (sample >= o.link_first[links, None]) & (sample <= o.link_last[links, None])
    if o.link_weight is not None:
        return inside * o.link_weight[links]
    return inside * scan.sample_width[o.link_block[links]]


def block_of(observations: Observations, scan: Scan) -> Tensor:
    """Return (R,) the block of the same sweep whose middle angle is the nearest; -1 for none."""
    middle, out = scan.block_angle, torch.full_like(observations.sweep, -1)
    for sweep in torch.unique(scan.sweep):
        members = torch.nonzero(scan.sweep == sweep).flatten()
        members = members[torch.argsort(middle[members], stable=True)]
        halfway = (middle[members][1:] + middle[members][:-1]) / 2
        mine = observations.sweep == sweep
        out[mine] = members[torch.searchsorted(halfway, observations.angle[mine])]
    return out


@dataclass(frozen=True)
class Restraints(Record):
    """N restraints on a structure and their M members, atoms moved by symmetry operators.

    `kind` names a value that the members have and that should be `target` +- `sigma`; see the
    room restraints. The members of a restraint stand together, in the order of the restraints.
    """

    kind: tuple  # (N,) str
    target: Tensor  # (N,) A, degree or A^3; zero for differences, which should vanish
    sigma: Tensor  # (N,) > 0; A, degree, A^3 or, for displacement parameters, A^2
    owner: Tensor  # (M,) index of the restraint, ascending
    atom: Tensor  # (M,) index of the atom
    rot: Tensor  # (M, 3, 3) acts on fractional coordinates
    trans: Tensor  # (M, 3)

    def __post_init__(self):
        n, m = len(self.kind), len(self.atom)
        for name in ("target", "sigma"):
            self._expect(name, n)
        self._expect("owner", m)
        self._expect("rot", m, 3, 3)
        self._expect("trans", m, 3)
        if not (self.sigma > 0).all():
            raise ValueError("Restraints.sigma must be positive")
        if not torch.equal(torch.unique_consecutive(self.owner).cpu(), torch.arange(n)):
            raise ValueError("Restraints: members out of order, or a restraint without any")


@dataclass(frozen=True)
class Problem(Record):
    """All that a refinement needs. This is what travels to a GPU machine."""

    structure: Structure
    scan: Scan
    observations: Observations
    provenance: dict = field(default_factory=dict)  # files, hashes, versions, settings
    restraints: Restraints | None = None

    def save(self, path) -> None:
        """Write an HDF5 file; an existing file is replaced only when all is written."""
        save_records(path, problem=self)

    @staticmethod
    def load(path) -> Problem:
        """Read an HDF5 file written by `save` or a checkpoint that holds a problem.

        Raises InputError when the file is not such a file.
        """
        problem = load_records(path).get("problem")
        if not isinstance(problem, Problem):
            raise InputError(f"{path}: holds no refinement problem")
        return problem


@dataclass(frozen=True)
class Fourier(Record):
    """M structure factors, both Friedel mates, and what the data say of them; see room fourier."""

    hkl: Tensor  # (M, 3) int64
    f_calc: Tensor  # (M,) complex, A, of the refined model with its charges and dipoles
    gradient: Tensor  # (1 + P, M) complex, A^-1: of the residuals, then of P random signs
    change: Tensor | None = None  # (M,) complex, A, what the data ask for; not in old files

    def __post_init__(self):
        m = len(self.hkl)
        self._expect("f_calc", m)
        if self.change is not None:
            self._expect("change", m)
        self._expect("gradient", len(self.gradient), m)


@dataclass(frozen=True)
class Result(Record):
    """What a refinement found. F blocks, D depths, R observations."""

    structure: Structure  # refined
    start_structure: Structure
    calculated: Tensor  # (R,) intensity on the scale of the observations
    start_calculated: Tensor  # (R,) the same before the atoms moved
    kinematic: Tensor  # (R,) kinematic intensity, scaled
    scale: Tensor  # (R,) multiplies the dynamical intensity
    sigma_weight: Tensor  # (R,) sigma of the error model
    depth: Tensor  # (D,) A, finer than the grid of the propagation
    thickness: Tensor  # (F, D) p(t) of each block, sums to one
    orientation: Tensor  # (F, 3) rad, rotation vector in the laboratory frame
    block_scale: Tensor  # (F,) scale at the middle of each block
    site_su: Tensor  # (A, 3) A, standard uncertainty along the cell axes; NaN where unknown
    u_su: Tensor  # (A,) A^2, of U_iso or U_eq; NaN where unknown
    state: dict  # parameters of the modules, as nested lists
    history: tuple  # one dict per iteration
    summary: dict  # scalars: R factors, counts, timings
    converged: bool
    stop_reason: str
    occ_su: Tensor | None = None  # (A,) of the occupancies; NaN where unknown
    site_covariance: Tensor | None = None  # (A, 3, A, 3) of the fractional coordinates
    # (A, 6) A^2, s.u. of U11 U22 U33 U12 U13 U23 as the CIF defines them; zero where isotropic
    u_aniso_su: Tensor | None = None
    fourier: Fourier | None = None  # for maps; files of earlier versions lack it
    # standard uncertainties of p(t), which files of earlier versions lack
    thickness_su: Tensor | None = None  # (F, D)
    thickness_mean_su: Tensor | None = None  # (F,) A, of the mean of p(t)
    thickness_average_su: Tensor | None = None  # (D,) of p(t) averaged over all blocks
    # (R,) what fits to all but a reflection and its equivalents predict for it, to first order
    unseen: Tensor | None = None
    # (R,) the part of `calculated` that goes with what the crystal diffracts, which nuisance terms
    # may add to; files of earlier versions lack it
    diffracted: Tensor | None = None

    def __post_init__(self):
        r, d, f = len(self.calculated), len(self.depth), len(self.orientation)
        for name in ("start_calculated", "kinematic", "scale", "sigma_weight"):
            self._expect(name, r)
        self._expect("calculated", r)
        self._expect("thickness", f, d)
        self._expect("block_scale", f)
        self._expect("orientation", f, 3)
        optional = {
            "thickness_su": (f, d),
            "thickness_mean_su": (f,),
            "thickness_average_su": (d,),
            "unseen": (r,),
            "diffracted": (r,),
        }
        for name, shape in optional.items():
            if getattr(self, name) is not None:
                self._expect(name, *shape)

    def proportional(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parts of observed and calculated intensities (R,) that go with diffraction.

        What nuisance terms add to the calculated ones is taken off both, so that ratios of the two
        are ratios of structure factors.
        """
        if self.diffracted is None:
            return observed, self.calculated
        return observed - (self.calculated - self.diffracted), self.diffracted
