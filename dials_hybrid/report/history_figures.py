"""Figures of the way that the refinement took."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .arrays import Arrays
from .canvas import DYNAMICAL, FREE, MUTED, legend

# of the names of stages, in points: the axis they stand above, a letter, a row
_WIDTH, _LETTER, _ROW = 270, 4.2, 9


def _series(history: tuple, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return iteration and value where the history has a finite one."""
    pairs = [(h["iteration"], h.get(key)) for h in history]
    kept = [(i, v) for i, v in pairs if v is not None and math.isfinite(v)]
    return tuple(np.array(kept, dtype=float).reshape(-1, 2).T)


def _mark_stages(axes, history: tuple) -> None:
    """Draw a line where each stage begins, with its name above, in a row where there is room."""
    first, last = history[0]["iteration"], history[-1]["iteration"]
    per_point = max(last - first, 1) / _WIDTH
    taken: list[float] = []  # of each row, the iteration up to which it is
    before = None
    for entry in history:
        x, name = entry["iteration"], str(entry.get("stage"))
        if name == before:
            continue
        before = name
        row = next((i for i, end in enumerate(taken) if end < x), len(taken))
        taken[row : row + 1] = [x + per_point * _LETTER * (len(name) + 2)]
        axes.axvline(x, color=MUTED, linewidth=0.7, linestyle=":")
        axes.annotate(
            name,
            (x, 1),
            (-2, 3 + _ROW * row),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=7.5,
            color=MUTED,
        )


def _iterations(axes) -> None:
    """Label the horizontal axis, in whole numbers."""
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def draw_loss(figure: Figure, data: Arrays) -> None:
    axes = figure.subplots()
    x, loss = _series(data.history, "loss")
    axes.plot(x, loss, color=DYNAMICAL)
    if len(loss) and loss.min() > 0 and loss.max() > 5 * loss.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    _mark_stages(axes, data.history)
    _iterations(axes)
    axes.set_ylabel("loss")


def draw_r1_history(figure: Figure, data: Arrays) -> None:
    axes = figure.subplots()
    series = (("r1_obs", DYNAMICAL, "refined against"), ("r1_free", FREE, "held out"))
    for key, colour, label in series:
        x, r1 = _series(data.history, key)
        if len(x):
            axes.plot(x, 100 * r1, color=colour, label=label)
    _mark_stages(axes, data.history)
    _iterations(axes)
    axes.set_ylabel("R1 (%)")
    legend(figure, axes)
