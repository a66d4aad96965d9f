"""Corrections of intensities that diffraction does not explain, each a small module.

A term is a `Nuisance` built as `Kind(about, sigma)`. It gets the calculated intensities of all
observations on the way from the propagation, which is linear in them, to the scale, and returns
them corrected:

- `forward(intensity, about) -> (R,)`: each observation by its own intensity alone, and as it came
  where all parameters are zero;
- `prior_residuals() -> (m,)`, half of whose squared sum is the negative log prior; by default
  the parameters themselves, which are then in units of `sigma`, their expected size.

The refinement needs nothing else: derivatives, standard uncertainties and cross-validation follow.
`About` holds no observed intensity, since a term that saw it could fit it.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacfwd, jvp

from . import beams
from .crystal import reciprocal_length_sq
from .data import InputError, Problem, Record, block_of

SPREAD = 0.35  # of the thickness, standard deviation over mean, for kinematic intensities
_MODULE_ADVICE = "nuisance.module is FILE.py:CLASS or PACKAGE.MODULE:CLASS"


@dataclass(frozen=True)
class About(Record):
    """What a term may know of the R observations, beside their calculated intensities."""

    block: Tensor  # (R,) index of the block (of a PETS2 frame), or the nearest one of several
    sweep: Tensor  # (R,) index of the sweep
    angle: Tensor  # (R,) rad, rotation angle
    s_sq: Tensor  # (R,) (sin theta / lambda)^2 in A^-2
    # (R,) |S| in the middle of the window over dS from there to its end: R_Sg of a PETS2 row
    offset: Tensor
    sigma: Tensor  # (R,) of the integration
    exposure: Tensor  # (R,) kinematic intensity of |U_g / 2K| = 1 A^-1, in A^2 rad
    power: Tensor  # (R,) |U_g / 2K|^2 in A^-2 of the structure as it is

    @property
    def kinematic(self) -> Tensor:
        """(R,) intensities without multiple scattering, comparable to the calculated ones."""
        return self.exposure * self.power

    @classmethod
    def of(cls, problem: Problem, wavenumber: Tensor, thickness: float) -> About:
        """Collect it for a problem; wavenumber (F,) A^-1, mean thickness in A; power is zero."""
        o, scan = problem.observations, problem.scan
        s, weight = _excitation(problem, wavenumber)

        def total(values: Tensor) -> Tensor:
            return torch.zeros_like(o.intensity).index_add(0, o.link_observation, values.sum(1))

        norm = total(weight).clamp(min=1e-12)
        mean = total(weight * s) / norm
        # a window of even weight reaches sqrt(3) standard deviations from its middle
        reach = (3 * (total(weight * s * s) / norm - mean.square()).clamp(min=0)).sqrt()
        return cls(
            block=block_of(o, scan),
            sweep=o.sweep,
            angle=o.angle,
            s_sq=reciprocal_length_sq(problem.structure.cell, o.hkl) / 4,
            offset=mean.abs() / reach.clamp(min=1e-9),
            sigma=o.sigma,
            exposure=total(weight * kinematic_rocking(s, thickness)),
            power=torch.zeros_like(o.intensity),
        )


def _excitation(problem: Problem, wavenumber: Tensor) -> tuple[Tensor, Tensor]:
    """S_g in A^-1 and the weight in rad of each sample in the links' windows, both (L, T)."""
    o, scan = problem.observations, problem.scan
    hkl = o.hkl[o.link_observation].to(torch.float64)
    g = torch.einsum("ltij,lj->lti", scan.setting[o.link_block], hkl)
    s = beams.excitation_errors(g, scan.s0[o.link_block], wavenumber[o.link_block])
    sample = torch.arange(s.shape[1], device=s.device)
    inside = (sample >= o.link_first[:, None]) & (sample <= o.link_last[:, None])
    return s, inside * scan.sample_width[o.link_block]


def kinematic_rocking(s: Tensor, thickness: float) -> Tensor:
    """Return |psi_g|^2 / |U_g / 2K|^2 in A^2 of a weak beam at S_g in A^-1.

    |2 pi sin(pi S t) / (pi S)|^2 (P. B. Hirsch et al. 1965, Electron Microscopy of Thin Crystals,
    chapter 4), the mean over thicknesses t in A of a normal distribution SPREAD times as wide.
    Integrated over S it is (2 pi)^2 t.
    """
    phase = 2 * math.pi * thickness * s
    damped = 1 - torch.exp(-0.5 * (SPREAD * phase).square()) * phase.cos()
    at_zero = 0.5 * (1 + SPREAD**2) * torch.ones_like(s)
    near = phase.abs() < 1e-3
    shape = torch.where(near, at_zero, damped / torch.where(near, 1.0, phase).square())
    return 2 * (2 * math.pi * thickness) ** 2 * shape


class Nuisance(nn.Module):
    """Base of the terms; see the docstring of this room. `sigma` is the size it may well have."""

    def __init__(self, about: About, sigma: float):
        super().__init__()
        self.sigma = sigma

    def forward(self, intensity: Tensor, about: About) -> Tensor:
        """Return the corrected intensities (R,)."""
        raise NotImplementedError("subclasses correct the intensities")

    def prior_residuals(self) -> Tensor:
        """Return the residuals (m,) of the priors; here the parameters, in units of sigma."""
        return torch.cat([p.flatten() for p in self.parameters()])

    def quantities(self) -> dict[str, Tensor]:
        """Return what the results tell of the term, by its name: sigma times the parameters."""
        return {name: self.sigma * p for name, p in self.named_parameters()}


def zeros(*shape: int) -> nn.Parameter:
    """Return a parameter of zeros in double precision."""
    return nn.Parameter(torch.zeros(*shape, dtype=torch.float64))


class FrameScale(Nuisance):
    """exp of a deviation of every block from the smooth scale; sigma is that of the logarithm."""

    def __init__(self, about: About, sigma: float):
        super().__init__(about, sigma)
        self.log_scale = zeros(int(about.block.max()) + 1)

    def forward(self, intensity: Tensor, about: About) -> Tensor:
        """See the base class."""
        return intensity * (self.sigma * self.log_scale)[about.block].exp()


class Background(Nuisance):
    """Crystal that scatters kinematically, beside the rest; sigma is that of its share.

    So do electrons that lose their phase on the way, and blocks of a bent or strained crystal too
    thin for more: what they add to a reflection goes with |F|^2.
    """

    def __init__(self, about: About, sigma: float):
        super().__init__(about, sigma)
        self.share = zeros(1)

    def forward(self, intensity: Tensor, about: About) -> Tensor:
        """See the base class."""
        return intensity + self.sigma * self.share * about.kinematic


class Window(Nuisance):
    """1 + a (|S| / dS)^2, for reflections that are cut by the end of their frame.

    sigma is that of a, the change of an intensity whose S = 0 lies at the very end.
    """

    def __init__(self, about: About, sigma: float):
        super().__init__(about, sigma)
        self.at_end = zeros(1)

    def forward(self, intensity: Tensor, about: About) -> Tensor:
        """See the base class."""
        return intensity * (1 + self.sigma * self.at_end * about.offset.square())


class ResolutionScale(Nuisance):
    """exp(-2 B s^2) with s = sin(theta) / lambda; sigma is that of B, in A^2.

    It is not the same as a common addition to all U, which weakens the potential that the waves
    travel in, but the data hardly tell the two apart where scattering is weak.
    """

    def __init__(self, about: About, sigma: float):
        super().__init__(about, sigma)
        self.b = zeros(1)

    def forward(self, intensity: Tensor, about: About) -> Tensor:
        """See the base class."""
        return intensity * torch.exp(-2 * self.sigma * self.b * about.s_sq)


KINDS = {
    "frame_scale": FrameScale,
    "background": Background,
    "window": Window,
    "resolution": ResolutionScale,
}


@dataclass(frozen=True)
class Term:
    """The choice of a term: a name in KINDS, or FILE.py:CLASS, or PACKAGE.MODULE:CLASS."""

    kind: str
    sigma: float = 1.0

    @classmethod
    def named(cls, text: str) -> Term:
        """Return the term of a module that a user names, an own sigma perhaps after it.

        The path of a file is made absolute. Raises InputError when there is no such term.
        """
        kind, _, last = text.strip().rpartition(" ")
        try:
            sigma = float(last) if kind else 1.0
        except ValueError:
            kind, sigma = text, 1.0
        kind = (kind or last).strip()
        if not 0 < sigma < math.inf:
            raise InputError(f"nuisance.module={text}: sigma must be a positive number")
        place, _, name = kind.rpartition(":")
        if place.endswith(".py"):
            kind = f"{Path(place).resolve()}:{name}"
        load_class(kind)
        return cls(kind, sigma)

    def build(self, about: About) -> Nuisance:
        """Return the module.

        Raises InputError when it is not as the docstring of this room asks.
        """
        kind = KINDS.get(self.kind) or load_class(self.kind)
        try:
            module = kind(about, self.sigma)
            _check(module, about)
        except InputError as error:
            raise InputError(f"{self.kind}: {error}") from error
        except Exception as error:  # the code is the user's
            raise InputError(
                f"{self.kind}: fails with {type(error).__name__} ({error}); correct the class"
            ) from error
        return module


def load_class(text: str) -> type[Nuisance]:
    """Return the class of a term by FILE.py:CLASS or PACKAGE.MODULE:CLASS.

    Raises InputError when it cannot be imported or is no `Nuisance`.
    """
    place, _, name = text.rpartition(":")
    if not place or not name:
        raise InputError(f"{text!r} names no class; {_MODULE_ADVICE}")
    if place.endswith(".py") and not Path(place).is_file():
        raise InputError(f"{text}: there is no such file; {_MODULE_ADVICE}")
    try:
        module = _module_of(place)
    except Exception as error:  # the code is the user's
        raise InputError(
            f"{text}: importing it fails with {type(error).__name__} ({error})"
        ) from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Nuisance)):
        raise InputError(
            f"{text}: holds no class {name} derived from dials_hybrid.nuisance.Nuisance"
        )
    return found


def _module_of(place: str):
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check(module: Nuisance, about: About) -> None:
    """Raise InputError unless the term starts as the identity, one observation by itself."""
    generator = torch.Generator().manual_seed(0)
    intensity = 1 + torch.rand(len(about.sigma), generator=generator, dtype=torch.float64)
    given = {name: p.detach() for name, p in module.named_parameters()}
    if not given or any(p.dtype != torch.float64 for p in given.values()):
        raise InputError("its parameters must be there, and of torch.float64")

    def corrected(values: Tensor) -> Tensor:
        return functional_call(module, given, (values, about))

    out = corrected(intensity)
    if out.shape != intensity.shape or not torch.allclose(out, intensity, rtol=1e-12):
        raise InputError("it must return intensities (R,), unchanged where its parameters start")
    given = {
        name: p + 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for name, p in given.items()
    }
    signs = torch.randint(0, 2, out.shape, generator=generator).double() * 2 - 1
    gain = jvp(corrected, (intensity,), (torch.ones_like(signs),))[1]
    if not torch.allclose(jvp(corrected, (intensity,), (signs,))[1], gain * signs):
        raise InputError("it must correct every observation by its own intensity alone")


@dataclass(frozen=True)
class Slopes:
    """Derivatives of R corrected intensities."""

    by_intensity: Tensor  # (R,) by its own intensity
    by_power: Tensor | None  # (R,) by its own |U_g / 2K|^2; None without terms
    by_parameter: Tensor  # (R, n) by the parameters of all terms


class Terms(nn.Module):
    """All terms of a model, one after the other; n parameters in one vector, perhaps none.

    `power` is asked for |U_g / 2K|^2 (R,) in A^-2 where there are terms.
    """

    def __init__(self, terms: tuple[Term, ...], about: Callable[[], About]):
        super().__init__()
        self.about = about() if terms else None
        self.terms = nn.ModuleList(term.build(self.about) for term in terms)
        self.kinds = tuple(term.kind for term in terms)

    def move(self, device: str) -> None:
        """Take what is known of the observations to the device."""
        self.about = None if self.about is None else self.about.to(device)

    def forward(self, intensity: Tensor, power: Tensor | None) -> Tensor:
        """Return the corrected intensities (R,)."""
        for term in self.terms:
            intensity = term(intensity, self.about.replace(power=power))
        return intensity

    def prior_residuals(self) -> Tensor:
        """Return the residuals (m,) of the priors of all terms."""
        found = [term.prior_residuals() for term in self.terms]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    def names(self) -> list[str]:
        """Return a name for each of the n parameters: the term's kind, the parameter, a number."""
        out = []
        for kind, term in zip(self.kinds, self.terms, strict=True):
            kind = kind.rpartition(":")[2]
            for name, p in term.named_parameters():
                numbers = [""] if p.numel() == 1 else [f" {i + 1}" for i in range(p.numel())]
                out += [f"{kind} {name}{number}" for number in numbers]
        return out

    def flat(self) -> Tensor:
        """Return the parameters, (n,)."""
        found = [p.detach().flatten() for p in self.parameters()]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    @torch.no_grad()
    def assign(self, flat: Tensor) -> None:
        """Set the parameters (n,)."""
        for name, value in self._named(flat).items():
            self.get_parameter(name).copy_(value)

    def corrected(self, flat: Tensor, intensity: Tensor, power: Tensor | None) -> Tensor:
        """Return what `forward` does, with parameters (n,)."""
        return functional_call(self, self._named(flat), (intensity, power))

    def slopes(self, flat: Tensor, intensity: Tensor, power: Tensor | None) -> Slopes:
        """Return the derivatives of `corrected`."""
        one = torch.ones_like(intensity)
        if power is None:
            return Slopes(one, None, intensity.new_zeros(len(intensity), 0))
        return Slopes(
            jvp(lambda i: self.corrected(flat, i, power), (intensity,), (one,))[1],
            jvp(lambda p: self.corrected(flat, intensity, p), (power,), (one,))[1],
            jacfwd(lambda x: self.corrected(x, intensity, power))(flat),
        )

    def penalties(self, flat: Tensor) -> Tensor:
        """Return what `prior_residuals` does, with parameters (n,)."""
        named = {f"module.{k}": v for k, v in self._named(flat).items()}
        return functional_call(_Priors(self), named, ())

    def penalty_slopes(self, flat: Tensor) -> Tensor:
        """Return the derivatives (m, n) of `penalties`."""
        return jacfwd(self.penalties)(flat) if len(flat) else flat.new_zeros(0, 0)

    def summary(self, covariance: Tensor) -> list[dict]:
        """Return the quantities of every term with their s.u., plain values; covariance (n, n)."""
        out, start = [], 0
        for kind, term in zip(self.kinds, self.terms, strict=True):
            stop = start + sum(p.numel() for p in term.parameters())
            out.append({"term": kind, **_told(term, covariance[start:stop, start:stop])})
            start = stop
        return out

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        named = dict(self.named_parameters())
        parts = flat.split([p.numel() for p in named.values()]) if named else ()
        return {k: v.view(p.shape) for (k, p), v in zip(named.items(), parts, strict=True)}


class _Priors(nn.Module):
    """Calls terms for their prior residuals in a functional call."""

    def __init__(self, module: Terms):
        super().__init__()
        self.module = module

    def forward(self) -> Tensor:
        return self.module.prior_residuals()


def _told(term: Nuisance, covariance: Tensor) -> dict:
    """Values of a term's quantities and their s.u. from the covariance (k, k) of its parameters."""
    given = {f"term.{name}": p.detach() for name, p in term.named_parameters()}
    slopes = jacfwd(lambda values: functional_call(_Quantities(term), values, ()))(given)
    by_parameter = torch.cat([s.flatten(1) for s in slopes.values()], 1)
    variance = torch.einsum("qi,ij,qj->q", by_parameter, covariance, by_parameter)
    found = {name: value.detach() for name, value in term.quantities().items()}
    errors = variance.clamp(min=0).sqrt().split([v.numel() for v in found.values()])
    return {
        name: {"value": value.flatten().tolist(), "su": su.tolist()}
        for (name, value), su in zip(found.items(), errors, strict=True)
    }


class _Quantities(nn.Module):
    """Calls a term for its quantities, in one vector, in a functional call."""

    def __init__(self, term: Nuisance):
        super().__init__()
        self.term = term

    def forward(self) -> Tensor:
        return torch.cat([q.flatten() for q in self.term.quantities().values()])
