"""Widths of priors that the data choose while a refinement goes on (MacKay's evidence).

A prior that is wider than what it holds lets that fit noise, or what is another's: a scale that
bends as it likes takes the place of a thickness that changes. A nuisance term of one number that
the data do not ask for is held at nothing.
"""

from __future__ import annotations

import logging
import math

from torch import Tensor

from . import uncertainty
from .checkpoint import State
from .linear import CheapModel
from .model import HybridModel
from .nuisance import NOTHING, Nuisance

logger = logging.getLogger("dials.hybrid.evidence")

STEADY = 0.2  # change of the logarithm of a variance that is none
LEAST = 0.1  # part of a prior's information that the data must add to say anything


class Evidence:
    """Chooses the widths of priors of scale, orientations and terms, as far as settings leave it.

    The state keeps what has been found; a model that continues from it gets that.
    """

    def __init__(self, model: HybridModel, state: State):
        self.model, self.state = model, state
        self.changed = math.inf  # last change of the logarithm of a variance
        self.terms = model.nuisance.following
        if not state.term_widths:
            state.term_widths = [NOTHING] * len(self.terms)
        for term, width in zip(self.terms, state.term_widths, strict=True):
            term.width = width
        model.orientation.width = state.orientation_width
        self.stiffens = model.settings.scale_stiffness is None
        if self.stiffens:
            model.scale.stiffness = state.scale_stiffness

    def update(self, cheap: CheapModel) -> None:
        """Take the widths that the data make most likely at the point of linearisation."""
        state, curve, parts = self.state, self.model.orientation, cheap.parts
        turned = self.model.settings.orientation_sigma is None and bool(curve.offset.any())
        if not turned and not self._following:
            return
        posterior = uncertainty.curvature_of(cheap, state.error_model).posterior
        if turned:
            own = posterior[parts.orientation, parts.orientation]
            curve.width = curve.likely_width(curve.offset.detach().flatten(), own)
            state.orientation_width = curve.width
        changes = [0.0]
        if state.terms_follow:
            changes += self._choose(posterior[parts.nuisance, parts.nuisance].diagonal())
        if state.scale_follows:
            changes.append(self._stiffen(posterior[parts.scale, parts.scale]))
        self.changed = max(changes)
        cheap.priors_near = None

    @property
    def _following(self) -> bool:
        return self.state.terms_follow or self.state.scale_follows

    def _stiffen(self, covariance: Tensor) -> float:
        """Take the likely stiffness of the scale; return the change of its logarithm."""
        scale = self.model.scale
        before = scale.stiffness
        scale.stiffness = scale.likely_stiffness(covariance)
        self.state.scale_stiffness = scale.stiffness
        return abs(math.log(scale.stiffness / before))

    def _choose(self, variances: Tensor) -> list[float]:
        """Take the likely widths of the terms' priors; return the changes of their logarithms."""
        if self.state.terms_opened:
            self.state.terms_opened = False
            return [math.inf]
        changes = []
        for term, variance in zip(self.terms, self.model.nuisance.followed(variances), strict=True):
            before = term.width
            term.width = likely_width(term, variance)
            changes.append(2 * abs(math.log(term.width / before)))
        self.state.term_widths = [term.width for term in self.terms]
        return changes

    def is_loose(self) -> bool:
        """Whether what the data are to choose has yet to become what they say.

        To be asked once steps have settled, since it begins then: all else would follow a scale
        that is stiff too early to ends that fit worse, and terms of the detector would take
        what is the atoms'. The terms come first, the scale once they have settled: thickness and
        scale have until then answered for what the terms now take.
        """
        state = self.state
        if self._following and self.changed > STEADY:
            return True
        if self.terms and not state.terms_follow:
            state.terms_follow = state.terms_opened = True
            for term in self.terms:
                term.width = 1.0
            state.term_widths = [1.0] * len(self.terms)
            logger.info("Steps have settled; from here on the data choose terms of the detector")
            return True
        if self.stiffens and not state.scale_follows:
            state.scale_follows, self.changed = True, math.inf
            logger.info("Steps have settled; from here on the scale is as stiff as the data say")
            return True
        return False


def likely_width(term: Nuisance, variance: float) -> float:
    """Return the relative width of a term's prior that the data make most likely, at most 1.

    `variance` is the posterior one of the parameter that it follows. Without a prior that would be
    x with variance v, and the most likely variance of the prior is x^2 - v (MacKay's fixed point,
    doi:10.1162/neco.1992.4.3.415, of a single number). Where that is not positive, or the data tell
    little beside the prior, they do not ask for the term; it is NOTHING, and stays so.
    """
    if term.width == NOTHING:
        return NOTHING
    determined = 1 - variance / term.width**2
    if determined < LEAST:
        return NOTHING
    best = float(getattr(term, term.follows).detach()) / determined
    likely = best**2 - variance / determined
    return min(1.0, math.sqrt(likely)) if likely > NOTHING**2 else NOTHING
