"""Figures of the reflections: observed against calculated, resolution, residuals."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure

from .arrays import Arrays, r1_by
from .canvas import DYNAMICAL, FREE, INK, KINEMATIC, legend

_MAX_VECTOR_POINTS = 2000  # per figure; beyond, the points become one embedded bitmap


def _points(axes, data: Arrays, x, y) -> None:
    """Draw one point per reflection: weak, observed, held out."""
    strong = data.observed & ~data.free
    kinds = (
        (~data.observed & ~data.free, KINEMATIC, "I ≤ 3σ", 0.45),
        (strong, DYNAMICAL, "I > 3σ", 0.55),
        (data.free, FREE, "held out", 0.8),
    )
    for which, colour, label, alpha in kinds:
        if which.any():
            axes.plot(
                x[which],
                y[which],
                "o",
                color=colour,
                label=label,
                alpha=alpha,
                markersize=3.2,
                markeredgewidth=0,
                rasterized=len(x) > _MAX_VECTOR_POINTS,
            )


def _draw_scatter(figure: Figure, data: Arrays, i_calc: np.ndarray) -> None:
    f_obs, f_calc = (np.sqrt(np.maximum(i, 0)) for i in (data.i_obs, i_calc))
    # one range for both panels, so that they can be compared by eye
    largest = max(data.i_obs.max(), data.i_dynamical.max(), data.i_kinematic.max())
    top = 1.03 * math.sqrt(max(largest, 1e-12))
    axes = figure.subplots()
    axes.plot([0, top], [0, top], color=INK, linewidth=0.9)
    _points(axes, data, f_calc, f_obs)
    axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    axes.set(xlabel="|Fc|", ylabel="|Fo|")
    legend(figure, axes, markerscale=1.6)


def draw_scatter_kinematic(figure: Figure, data: Arrays) -> None:
    _draw_scatter(figure, data, data.i_kinematic)


def draw_scatter_dynamical(figure: Figure, data: Arrays) -> None:
    _draw_scatter(figure, data, data.i_dynamical)


def draw_shells(figure: Figure, data: Arrays) -> None:
    """R1 in shells of equal reciprocal volume, with the number of reflections."""
    use = data.observed & ~data.free
    n = int(np.clip(use.sum() // 15, 1, 10))
    borders = np.linspace(data.d.max() ** -3, data.d.min() ** -3, n + 1)
    shell = np.clip(np.searchsorted(borders, data.d**-3, side="right") - 1, 0, n - 1)
    axes = figure.subplots()
    series = (
        (data.i_kinematic, KINEMATIC, "kinematic", -0.2),
        (data.i_dynamical, DYNAMICAL, "dynamical", 0.2),
    )
    tallest = np.zeros(n)
    for i_calc, colour, label, offset in series:
        r1 = r1_by(shell[use], n, data.i_obs[use], i_calc[use])
        height = 100 * np.nan_to_num(r1)
        axes.bar(np.arange(n) + 0.5 + offset, height, 0.38, color=colour, label=label)
        tallest = np.maximum(tallest, height)
    for i, count in enumerate(np.bincount(shell[use], minlength=n)):
        place = (i + 0.5, tallest[i])
        axes.annotate(count, place, (0, 2), textcoords="offset points", ha="center", fontsize=7.5)
    labels = [f"{border ** (-1 / 3):.2f}" for border in borders]
    axes.set_xticks(np.arange(n + 1), labels)
    axes.grid(False, axis="x")
    axes.set(xlabel="resolution d (Å)", ylabel="R1 (%)")
    axes.margins(y=0.1)
    legend(figure, axes)


def _delta_limit(delta: np.ndarray) -> float:
    """Return where residual plots end: outliers are drawn on the border."""
    return max(4.0, 1.5 * float(np.percentile(np.abs(delta), 99)))


def draw_normal(figure: Figure, data: Arrays) -> None:
    """Sorted residuals against the quantiles of the normal distribution."""
    order = np.argsort(data.delta)
    rank = (torch.arange(len(order), dtype=torch.float64) + 0.5) / len(order)
    quantile = torch.special.ndtri(rank).numpy()
    limit = _delta_limit(data.delta)
    axes = figure.subplots()
    span = [quantile[0], quantile[-1]]
    axes.plot(span, span, color=INK, linewidth=0.9)
    expected = np.empty_like(quantile)
    expected[order] = quantile
    _points(axes, data, expected, np.clip(data.delta, -limit, limit))
    axes.set(xlabel="expected of a normal distribution", ylabel="(Io − Ic) / σ")
    legend(figure, axes, markerscale=1.6)


def draw_residual(figure: Figure, data: Arrays) -> None:
    axes = figure.subplots()
    limit = _delta_limit(data.delta)
    axes.axhspan(-3, 3, color=KINEMATIC, alpha=0.15, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.9)
    f_obs = np.sqrt(np.maximum(data.i_obs, 0))
    _points(axes, data, f_obs, np.clip(data.delta, -limit, limit))
    axes.set(xlabel="|Fo|", ylabel="(Io − Ic) / σ", xlim=(0, None))
    legend(figure, axes, markerscale=1.6)
