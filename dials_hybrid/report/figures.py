"""The figures of the page, each one an <svg> element.

Drawn with matplotlib's object interface, so that no global state is touched. Text stays
text, and the colours of axes and data are variables of the style sheet.
"""

from __future__ import annotations

import io
import math
import re

import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from . import picture
from .arrays import Arrays, r1_by

# Told apart by the colour-blind and on a grey printer; readable on white and black, for
# bitmaps have them fixed.
_DYNAMICAL, _KINEMATIC, _FREE = "#2b7bba", "#8d939c", "#d4601e"
_INK, _MUTED, _LINE = "#1c2126", "#5c6570", "#d9dde2"
# In the SVG they become variables of the style sheet, which follow the page to dark mode.
_VARIABLES = {
    _DYNAMICAL: "var(--dynamical)",
    _KINEMATIC: "var(--kinematic)",
    _FREE: "var(--free)",
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
}

_MAX_VECTOR_POINTS = 2000  # per figure; beyond, the points become one embedded bitmap
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label with a dollar sign is no formula
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.titlesize": 9,
    "axes.titlecolor": _INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "text.color": _INK,
    "font.size": 9,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "lines.linewidth": 1.5,
}


def _edges(centre: np.ndarray, width: float) -> np.ndarray:
    """Return cell borders (n + 1,) halfway between centres, `width` for a lone one."""
    if len(centre) == 1:
        return np.array([centre[0] - width / 2, centre[0] + width / 2])
    halfway = (centre[1:] + centre[:-1]) / 2
    return np.concatenate([[2 * centre[0] - halfway[0]], halfway, [2 * centre[-1] - halfway[-1]]])


def _density(data: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Return depth borders (D + 1,) A and p(t) (F, D) in per cent per A."""
    borders = np.maximum(_edges(data.depth, 1.0), 0)
    return borders, 100 * data.thickness / np.diff(borders)


def _svg(name: str, size: tuple[float, float], draw, data: Arrays) -> str:
    """Draw a figure of `size` inch and return it as an <svg> element."""
    style = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.style.context(["default", style]):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, data)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", dpi=180, metadata={"Date": None})
    return _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Make an SVG file fit to stand in a page beside others.

    Ids become unique on the page, the size is left to the style sheet, and what would
    act on the whole page (<style>) or points to the network (<metadata>) goes.
    """
    view = re.search(r'viewBox="[^"]*"', svg).group()
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    # hundredths of a point are enough, and most of the size is coordinates
    body = re.sub(
        r'\b(?:x|y|d)="[^"]*"',
        lambda attribute: re.sub(r"(\.\d\d)\d+", r"\1", attribute.group()),
        body,
    )
    body = re.sub(r"\n\s*", "\n", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    return f"<svg {view}>{body}"


def _legend(figure: Figure, axes, **options) -> None:
    """Put the legend of `axes` into a strip above all plots, where it hides no data."""
    strip = 0.24 / figure.get_figheight()
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - strip))
    handles, labels = axes.get_legend_handles_labels()
    look = {"ncol": 3, "columnspacing": 1.2, "handlelength": 1.4, "borderpad": 0.1}
    place = {"loc": "upper left", "bbox_to_anchor": (0.08, 1)}
    figure.legend(handles, labels, **look, **place, **options)


def _scan_axes(figure: Figure, data: Arrays, heights=(1,)) -> list:
    """Return (blocks, column of axes) of each sweep, side by side on one scale."""
    spans = [max(np.ptp(data.block_angle[blocks]), 10.0) for blocks in data.sweeps]
    grid = figure.subplots(
        len(heights),
        len(spans),
        sharex="col",
        sharey="row",
        squeeze=False,
        gridspec_kw={"width_ratios": spans, "height_ratios": heights},
    )
    ticks = round(1.6 * figure.get_figwidth())
    for i, column in enumerate(grid.T):
        column[-1].xaxis.set_major_locator(MaxNLocator(max(2, ticks // len(spans))))
        if len(spans) > 1:
            column[0].set_title(f"sweep {i + 1}", color=_MUTED)
    figure.supxlabel("rotation angle (°)", fontsize=9)
    return list(zip(data.sweeps, grid.T, strict=True))


def _points(axes, data: Arrays, x, y) -> None:
    """Draw one point per reflection: weak, observed, held out."""
    strong = data.observed & ~data.free
    kinds = (
        (~data.observed & ~data.free, _KINEMATIC, "I ≤ 3σ", 0.45),
        (strong, _DYNAMICAL, "I > 3σ", 0.55),
        (data.free, _FREE, "held out", 0.8),
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
    axes.plot([0, top], [0, top], color=_INK, linewidth=0.9)
    _points(axes, data, f_calc, f_obs)
    axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    axes.set(xlabel="|Fc|", ylabel="|Fo|")
    _legend(figure, axes, markerscale=1.6)


def _draw_scatter_kinematic(figure: Figure, data: Arrays) -> None:
    _draw_scatter(figure, data, data.i_kinematic)


def _draw_scatter_dynamical(figure: Figure, data: Arrays) -> None:
    _draw_scatter(figure, data, data.i_dynamical)


def _draw_shells(figure: Figure, data: Arrays) -> None:
    """R1 in shells of equal reciprocal volume, with the number of reflections."""
    use = data.observed & ~data.free
    n = int(np.clip(use.sum() // 15, 1, 10))
    borders = np.linspace(data.d.max() ** -3, data.d.min() ** -3, n + 1)
    shell = np.clip(np.searchsorted(borders, data.d**-3, side="right") - 1, 0, n - 1)
    axes = figure.subplots()
    series = (
        (data.i_kinematic, _KINEMATIC, "kinematic", -0.2),
        (data.i_dynamical, _DYNAMICAL, "dynamical", 0.2),
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
    _legend(figure, axes)


def _draw_frames(figure: Figure, data: Arrays) -> None:
    """R1 of each block above the number of reflections that it rests on."""
    use, n = data.observed & ~data.free, len(data.block_angle)
    count = np.bincount(data.block[use], minlength=n)
    columns = _scan_axes(figure, data, heights=(3, 1))
    series = (
        (data.i_kinematic, _KINEMATIC, "kinematic"),
        (data.i_dynamical, _DYNAMICAL, "dynamical"),
    )
    for i_calc, colour, label in series:
        r1 = 100 * r1_by(data.block[use], n, data.i_obs[use], i_calc[use])
        for blocks, (top, _) in columns:
            x, y = data.block_angle[blocks], r1[blocks]
            top.plot(x, y, "o-", color=colour, label=label, markersize=3, linewidth=1)
    for blocks, (_, bottom) in columns:
        x, width = data.block_angle[blocks], data.block_width[blocks]
        bottom.bar(x, count[blocks], 0.9 * width, color=_KINEMATIC)
    first = columns[0][1]
    first[0].set(ylabel="R1 (%)", ylim=(0, None))
    first[1].set(ylabel="n")
    first[1].yaxis.set_major_locator(MaxNLocator(2, integer=True))
    _legend(figure, first[0])


def _draw_thickness_map(figure: Figure, data: Arrays) -> None:
    """p(t) over the rotation angle, with the mean of each block as a line."""
    borders, density = _density(data)
    columns = _scan_axes(figure, data)
    top = max(density.max(), 1e-12)
    for blocks, (axes,) in columns:
        x = data.block_angle[blocks]
        mesh = axes.pcolormesh(
            _edges(x, data.block_width[blocks[0]]),
            borders,
            density[blocks].T,
            vmin=0,
            vmax=top,
            cmap="viridis",
            rasterized=True,
        )
        mean = data.thickness[blocks] @ data.depth
        # white on black shows on every colour of the map
        for colour, width in (("black", 2.6), ("white", 1.2)):
            axes.plot(x, mean, ".-", color=colour, linewidth=width, markersize=width)
        axes.grid(False)
    columns[0][1][0].set_ylabel("thickness t (Å)")
    bar = figure.colorbar(mesh, ax=[column[0] for _, column in columns], pad=0.02)
    bar.set_label("p(t) (% per Å)")
    bar.outline.set_visible(False)


def _draw_thickness_scan(figure: Figure, data: Arrays) -> None:
    """Mean of p(t) over the rotation angle with its s.u., and the s.d. of p(t) about it."""
    mean = data.thickness @ data.depth
    spread = np.sqrt(np.maximum(data.thickness @ data.depth**2 - mean**2, 0))
    bands = [(spread, _KINEMATIC, 0.2, "s.d. of p(t)")]
    if data.thickness_mean_su is not None:
        bands.append((data.thickness_mean_su, _DYNAMICAL, 0.4, "mean ± s.u."))
    columns = _scan_axes(figure, data)
    for blocks, (axes,) in columns:
        x, y = data.block_angle[blocks], mean[blocks]
        for half, colour, alpha, label in bands:
            low, high = y - half[blocks], y + half[blocks]
            axes.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0, label=label)
        axes.plot(x, y, ".-", color=_DYNAMICAL, markersize=4)
    columns[0][1][0].set(ylabel="thickness t (Å)", ylim=(0, None))
    _legend(figure, columns[0][1][0])


def _draw_thickness_mean(figure: Figure, data: Arrays) -> None:
    """p(t) averaged over the blocks with its s.u., their range and each block's mean."""
    borders, density = _density(data)
    axes = figure.subplots()
    low, high = np.percentile(density, [10, 90], axis=0)
    axes.fill_between(
        data.depth,
        low,
        high,
        color=_DYNAMICAL,
        alpha=0.2,
        linewidth=0,
        label="10–90 % of the blocks",
    )
    average = density.mean(0)
    if data.thickness_average_su is not None:
        su = 100 * data.thickness_average_su / np.diff(borders)
        below, above = np.maximum(average - su, 0), average + su
        look = {"color": _DYNAMICAL, "alpha": 0.4, "linewidth": 0}
        axes.fill_between(data.depth, below, above, label="± s.u.", **look)
    axes.plot(data.depth, average, color=_DYNAMICAL, label="average p(t)")
    means = data.thickness @ data.depth
    axes.axvline(means.mean(), color=_INK, linewidth=0.9, linestyle="--")
    axes.plot(means, 0 * means, "|", color=_FREE, alpha=0.6, markersize=8, label="block means")
    axes.set(xlabel="thickness t (Å)", ylabel="p(t) (% per Å)", ylim=(0, None))
    axes.set_xlim(0, data.depth.max() * 1.02)
    _legend(figure, axes)


def _draw_orientation(figure: Figure, data: Arrays) -> None:
    columns = _scan_axes(figure, data)
    labels = ("about the rotation axis", "across axis and beam")
    for blocks, (axes,) in columns:
        x = data.block_angle[blocks]
        axes.axhline(0, color=_MUTED, linewidth=0.8)
        styles = zip(data.tilt[blocks].T, labels, (_DYNAMICAL, _FREE), strict=True)
        for y, label, colour in styles:
            axes.plot(x, y, ".-", color=colour, label=label, markersize=4)
    columns[0][1][0].set_ylabel("orientation shift (°)")
    _legend(figure, columns[0][1][0])


def _draw_scale(figure: Figure, data: Arrays) -> None:
    columns = _scan_axes(figure, data)
    relative = data.scale / data.scale.mean()
    for blocks, (axes,) in columns:
        axes.axhline(1, color=_MUTED, linewidth=0.8)
        axes.plot(
            data.block_angle[blocks],
            relative[blocks],
            ".-",
            color=_DYNAMICAL,
            markersize=4,
        )
    columns[0][1][0].set(ylabel="scale / mean scale", ylim=(0, 1.1 * relative.max()))


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
            axes.axvline(x, color=_MUTED, linewidth=0.7, linestyle=":")
            axes.annotate(
                str(stage),
                (x, 1),
                (-2, 3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                rotation=25,
                rotation_mode="anchor",
                fontsize=7.5,
                color=_MUTED,
            )
        before = stage


def _draw_loss(figure: Figure, data: Arrays) -> None:
    axes = figure.subplots()
    x, loss = _series(data.history, "loss")
    axes.plot(x, loss, color=_DYNAMICAL)
    if len(loss) and loss.min() > 0 and loss.max() > 5 * loss.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    _mark_stages(axes, data.history)
    axes.set(xlabel="iteration", ylabel="loss")


def _draw_r1_history(figure: Figure, data: Arrays) -> None:
    axes = figure.subplots()
    series = (("r1_obs", _DYNAMICAL, "refined against"), ("r1_free", _FREE, "held out"))
    for key, colour, label in series:
        x, r1 = _series(data.history, key)
        if len(x):
            axes.plot(x, 100 * r1, color=colour, label=label)
    _mark_stages(axes, data.history)
    axes.set(xlabel="iteration", ylabel="R1 (%)")
    axes.legend(loc="upper right")


def _delta_limit(delta: np.ndarray) -> float:
    """Return where residual plots end: outliers are drawn on the border."""
    return max(4.0, 1.5 * float(np.percentile(np.abs(delta), 99)))


def _draw_normal(figure: Figure, data: Arrays) -> None:
    """Sorted residuals against the quantiles of the normal distribution."""
    order = np.argsort(data.delta)
    rank = (torch.arange(len(order), dtype=torch.float64) + 0.5) / len(order)
    quantile = torch.special.ndtri(rank).numpy()
    limit = _delta_limit(data.delta)
    axes = figure.subplots()
    span = [quantile[0], quantile[-1]]
    axes.plot(span, span, color=_INK, linewidth=0.9)
    expected = np.empty_like(quantile)
    expected[order] = quantile
    _points(axes, data, expected, np.clip(data.delta, -limit, limit))
    axes.set(xlabel="expected of a normal distribution", ylabel="(Io − Ic) / σ")
    _legend(figure, axes, markerscale=1.6)


def _draw_residual(figure: Figure, data: Arrays) -> None:
    axes = figure.subplots()
    limit = _delta_limit(data.delta)
    axes.axhspan(-3, 3, color=_KINEMATIC, alpha=0.15, linewidth=0)
    axes.axhline(0, color=_INK, linewidth=0.9)
    f_obs = np.sqrt(np.maximum(data.i_obs, 0))
    _points(axes, data, f_obs, np.clip(data.delta, -limit, limit))
    axes.set(xlabel="|Fo|", ylabel="(Io − Ic) / σ", xlim=(0, None))
    _legend(figure, axes, markerscale=1.6)


_PANEL, _SQUARE = (4.6, 3.1), (4.6, 4.6)
_FIGURES = {
    "structure": (picture.draw, _SQUARE),
    "scatter_kinematic": (_draw_scatter_kinematic, _SQUARE),
    "scatter_dynamical": (_draw_scatter_dynamical, _SQUARE),
    "shells": (_draw_shells, _PANEL),
    "normal": (_draw_normal, _PANEL),
    "residual": (_draw_residual, _PANEL),
    "thickness_mean": (_draw_thickness_mean, _PANEL),
}
_SCAN_FIGURES = {
    "frames": _draw_frames,
    "thickness_map": _draw_thickness_map,
    "thickness_scan": _draw_thickness_scan,
    "orientation": _draw_orientation,
    "scale": _draw_scale,
}
_HISTORY_FIGURES = {"loss": _draw_loss, "r1_history": _draw_r1_history}


def draw_all(data: Arrays) -> dict[str, str]:
    """Return every figure as SVG text, by name."""
    drawn = {name: _svg(name, s, draw, data) for name, (draw, s) in _FIGURES.items()}
    # many sweeps side by side need the width of the page
    size = _PANEL if len(data.sweeps) <= 3 else (9.6, _PANEL[1])
    for name, draw in _SCAN_FIGURES.items():
        drawn[name] = _svg(name, size, draw, data)
    if data.history:
        for name, draw in _HISTORY_FIGURES.items():
            drawn[name] = _svg(name, _PANEL, draw, data)
    return drawn
