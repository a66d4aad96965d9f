"""Figures of the way that the refinement took."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .arrays import Arrays
from .canvas import DYNAMICAL, FREE, MUTED


def _series(history: tuple, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return iteration and value where the history has a finite one."""
    pairs = [(h["iteration"], h.get(key)) for h in history]
    kept = [(i, v) for i, v in pairs if v is not None and math.isfinite(v)]
    return tuple(np.array(kept, dtype=float).reshape(-1, 2).T)


def _mark_stages(axes, history: tuple) -> None:
    """Draw a line where each stage begins, with its name."""
    before = None
    for entry in history:
        stage = entry.get("stage")
        if stage != before:
            x = entry["iteration"]
            axes.axvline(x, color=MUTED, linewidth=0.7, linestyle=":")
            axes.annotate(
                str(stage),
                (x, 1),
                (-2, 3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                rotation=25,
                rotation_mode="anchor",
                fontsize=7.5,
                color=MUTED,
            )
        before = stage


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
    axes.set(xlabel="iteration", ylabel="loss")


def draw_r1_history(figure: Figure, data: Arrays) -> None:
    axes = figure.subplots()
    series = (("r1_obs", DYNAMICAL, "refined against"), ("r1_free", FREE, "held out"))
    for key, colour, label in series:
        x, r1 = _series(data.history, key)
        if len(x):
            axes.plot(x, 100 * r1, color=colour, label=label)
    _mark_stages(axes, data.history)
    axes.set(xlabel="iteration", ylabel="R1 (%)")
    axes.legend(loc="upper right")
