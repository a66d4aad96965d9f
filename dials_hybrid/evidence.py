"""Widths of priors that the data choose while a refinement goes on (MacKay's evidence).

A prior that is wider than what it holds lets that fit noise, or what is another's: a scale that
bends as it likes takes the place of a thickness that changes.
"""

from __future__ import annotations

import logging
import math

from . import uncertainty
from .checkpoint import State
from .linear import CheapModel
from .model import HybridModel

logger = logging.getLogger("dials.hybrid.evidence")

STEADY = 0.2  # change of the logarithm of a stiffness that is none


class Evidence:
    """Chooses the widths of the priors of scale and orientations, as far as settings leave it to.

    The state keeps what has been found; a model that continues from it gets that.
    """

    def __init__(self, model: HybridModel, state: State):
        self.model, self.state = model, state
        self.stiffened = math.inf  # last change of the logarithm of the scale's stiffness
        model.orientation.width = state.orientation_width
        if model.settings.scale_stiffness is None:
            model.scale.stiffness = state.scale_stiffness

    def update(self, cheap: CheapModel) -> None:
        """Take the widths that the data make most likely at the point of linearisation."""
        state, curve, parts = self.state, self.model.orientation, cheap.parts
        turned = self.model.settings.orientation_sigma is None and bool(curve.offset.any())
        if not turned and not state.scale_follows:
            return
        posterior = uncertainty.curvature_of(cheap, state.error_model).posterior
        if turned:
            own = posterior[parts.orientation, parts.orientation]
            curve.width = curve.likely_width(curve.offset.detach().flatten(), own)
            state.orientation_width = curve.width
        if state.scale_follows:
            scale = self.model.scale
            before = scale.stiffness
            scale.stiffness = scale.likely_stiffness(posterior[parts.scale, parts.scale])
            state.scale_stiffness = scale.stiffness
            self.stiffened = abs(math.log(scale.stiffness / before))
        cheap.priors_near = None

    def scale_is_loose(self) -> bool:
        """Whether the scale has yet to become as stiff as the data say, if they are to say it.

        To be asked once steps have settled, since it begins then: all else would follow a scale
        that is stiff too early to ends that fit worse.
        """
        if self.model.settings.scale_stiffness is not None:
            return False
        if self.state.scale_follows:
            return self.stiffened > STEADY
        self.state.scale_follows = True
        logger.info("Steps have settled; from here on the scale is as stiff as the data say")
        return True
