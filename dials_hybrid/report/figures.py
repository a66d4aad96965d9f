"""All figures of the page, each one an <svg> element."""

from __future__ import annotations

from . import history_figures, picture, reflection_figures, scan_figures
from .arrays import Arrays
from .canvas import svg

_PANEL, _SQUARE = (4.6, 3.1), (4.6, 4.6)
_FIGURES = {
    "structure": (picture.draw, _SQUARE),
    "scatter_kinematic": (reflection_figures.draw_scatter_kinematic, _SQUARE),
    "scatter_dynamical": (reflection_figures.draw_scatter_dynamical, _SQUARE),
    "shells": (reflection_figures.draw_shells, _PANEL),
    "normal": (reflection_figures.draw_normal, _PANEL),
    "residual": (reflection_figures.draw_residual, _PANEL),
    "thickness_mean": (scan_figures.draw_thickness_mean, _PANEL),
}
_SCAN_FIGURES = {
    "frames": scan_figures.draw_frames,
    "thickness_map": scan_figures.draw_thickness_map,
    "thickness_scan": scan_figures.draw_thickness_scan,
    "orientation": scan_figures.draw_orientation,
    "scale": scan_figures.draw_scale,
}
_HISTORY_FIGURES = {
    "loss": history_figures.draw_loss,
    "r1_history": history_figures.draw_r1_history,
}


def draw_all(data: Arrays) -> dict[str, str]:
    """Return every figure as SVG text, by name."""
    drawn = {name: svg(name, s, draw, data) for name, (draw, s) in _FIGURES.items()}
    # many sweeps side by side need the width of the page
    size = _PANEL if len(data.sweeps) <= 3 else (9.6, _PANEL[1])
    for name, draw in _SCAN_FIGURES.items():
        drawn[name] = svg(name, size, draw, data)
    if data.history:
        for name, draw in _HISTORY_FIGURES.items():
            drawn[name] = svg(name, _PANEL, draw, data)
    return drawn
