"""The nuisance terms of a model: how they are chosen, loaded from users' files, and composed.

What a term is says the room nuisance.
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

from .calls import call
from .nuisance import KINDS, NOTHING, About, Nuisance
from .records import InputError

_MODULE_ADVICE = "nuisance.module is FILE.py:CLASS or PACKAGE.MODULE:CLASS"


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

        Raises InputError when it is not as the docstring of the room nuisance asks.
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
    by_scale: Tensor  # (R,) by the logarithm of its own scale
    by_power: Tensor | None  # (R,) by its own |U_g / 2K|^2; None where no term asks for it
    by_parameter: Tensor  # (R, n) by the parameters of all terms


class Terms(nn.Module):
    """The scale and all terms of a model, one after the other; n parameters in one vector.

    There may be none. Those of what was recorded come after the scale (R,), all others before.
    `power`, |U_g / 2K|^2 (R,) in A^-2, is None unless a term `asks_power`.
    """

    def __init__(self, terms: tuple[Term, ...], about: Callable[[], About]):
        super().__init__()
        self.about = about() if terms else None
        self.terms = nn.ModuleList(term.build(self.about) for term in terms)
        self.kinds = tuple(term.kind for term in terms)
        self.register_buffer("none", torch.zeros(0, dtype=torch.float64), persistent=False)

    def move(self, device: str) -> None:
        """Take what is known of the observations to the device."""
        self.about = None if self.about is None else self.about.to(device)

    @property
    def asks_power(self) -> bool:
        """Whether any term does."""
        return any(term.asks_power for term in self.terms)

    def forward(self, intensity: Tensor, power: Tensor | None, scale: Tensor) -> Tensor:
        """Return the corrected intensities (R,), with their scale."""
        about = self.about if power is None else self.about.replace(power=power)
        for term in self.terms:
            intensity = intensity if term.recorded else term(intensity, about)
        intensity = intensity * scale
        for term in self.terms:
            intensity = term(intensity, about) if term.recorded else intensity
        return intensity

    def prior_residuals(self) -> Tensor:
        """Return the residuals (m,) of the priors of all terms."""
        return torch.cat([self.none, *(term.prior_residuals() for term in self.terms)])

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
        return torch.cat([self.none, *(p.detach().flatten() for p in self.parameters())])

    @torch.no_grad()
    def assign(self, flat: Tensor) -> None:
        """Set the parameters (n,)."""
        for name, value in self._named(flat).items():
            self.get_parameter(name).copy_(value)

    def corrected(
        self, flat: Tensor, intensity: Tensor, power: Tensor | None, scale: Tensor
    ) -> Tensor:
        """Return what `forward` does, with parameters (n,)."""
        return functional_call(self, self._named(flat), (intensity, power, scale))

    def slopes(
        self, flat: Tensor, intensity: Tensor, power: Tensor | None, scale: Tensor
    ) -> Slopes:
        """Return the derivatives of `corrected`."""
        if not self.terms:
            return Slopes(scale, intensity * scale, None, intensity.new_zeros(len(intensity), 0))
        one, by_power = torch.ones_like(intensity), None
        if power is not None:
            by_power = jvp(lambda p: self.corrected(flat, intensity, p, scale), (power,), (one,))[1]
        return Slopes(
            jvp(lambda i: self.corrected(flat, i, power, scale), (intensity,), (one,))[1],
            jvp(lambda s: self.corrected(flat, intensity, power, s), (scale,), (scale,))[1],
            by_power,
            jacfwd(lambda x: self.corrected(x, intensity, power, scale))(flat),
        )

    def penalties(self, flat: Tensor) -> Tensor:
        """Return what `prior_residuals` does, with parameters (n,)."""
        return call(lambda terms: terms.prior_residuals(), self, self._named(flat))

    def penalty_slopes(self, flat: Tensor) -> Tensor:
        """Return the derivatives (m, n) of `penalties`."""
        return jacfwd(self.penalties)(flat) if len(flat) else flat.new_zeros(0, 0)

    @property
    def following(self) -> list[Nuisance]:
        """The terms that follow the data."""
        return [term for term in self.terms if term.follows is not None]

    def followed(self, flat: Tensor) -> list[float]:
        """Return, of numbers (n,) for the parameters, those for what the `following` follow."""
        named = self._named(flat)
        return [
            float(named[f"terms.{i}.{term.follows}"])
            for i, term in enumerate(self.terms)
            if term.follows is not None
        ]

    def summary(self, covariance: Tensor) -> list[dict]:
        """Return what every term came to, as plain values; covariance (n, n).

        Beside its quantities with their s.u. that is its `expected` size, the `width` that the
        data gave its prior relative to that, 0 where they do not ask for the term, and by how many
        standard deviations the priors are `stretched` at most.
        """
        out, start = [], 0
        for kind, term in zip(self.kinds, self.terms, strict=True):
            stop = start + sum(p.numel() for p in term.parameters())
            stretch = term.prior_residuals().detach().abs()
            size = {
                "expected": term.sigma,
                "width": 0.0 if term.width == NOTHING else term.width,
                "stretched": float(stretch.max()) if len(stretch) else 0.0,
            }
            told = _told(term, covariance[start:stop, start:stop])
            out.append({"term": kind, **size, **told})
            start = stop
        return out

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        named = dict(self.named_parameters())
        parts = flat.split([p.numel() for p in named.values()]) if named else ()
        return {k: v.view(p.shape) for (k, p), v in zip(named.items(), parts, strict=True)}


def _told(term: Nuisance, covariance: Tensor) -> dict:
    """Values of a term's quantities and their s.u. from the covariance (k, k) of its parameters."""
    given = {name: p.detach() for name, p in term.named_parameters()}
    slopes = jacfwd(lambda values: call(_quantities, term, values))(given)
    by_parameter = torch.cat([s.flatten(1) for s in slopes.values()], 1)
    variance = torch.einsum("qi,ij,qj->q", by_parameter, covariance, by_parameter)
    found = {name: value.detach() for name, value in term.quantities().items()}
    errors = variance.clamp(min=0).sqrt().split([v.numel() for v in found.values()])
    return {
        name: {"value": value.flatten().tolist(), "su": su.tolist()}
        for (name, value), su in zip(found.items(), errors, strict=True)
    }


def _quantities(term: Nuisance) -> Tensor:
    """A term's quantities in one vector."""
    return torch.cat([q.flatten() for q in term.quantities().values()])
