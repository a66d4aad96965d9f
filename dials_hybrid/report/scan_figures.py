"""Figures of what changes over the rotation: agreement, thickness, orientation, scale."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .arrays import Arrays, r1_by
from .canvas import DYNAMICAL, FREE, INK, KINEMATIC, MUTED, legend


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
            column[0].set_title(f"sweep {i + 1}", color=MUTED)
    figure.supxlabel("rotation angle (°)", fontsize=9)
    return list(zip(data.sweeps, grid.T, strict=True))


def draw_frames(figure: Figure, data: Arrays) -> None:
    """R1 of each block above the number of reflections that it rests on."""
    use, n = data.observed & ~data.free, len(data.block_angle)
    count = np.bincount(data.block[use], minlength=n)
    columns = _scan_axes(figure, data, heights=(3, 1))
    series = (
        (data.i_kinematic, KINEMATIC, "kinematic"),
        (data.i_dynamical, DYNAMICAL, "dynamical"),
    )
    for i_calc, colour, label in series:
        r1 = 100 * r1_by(data.block[use], n, data.i_obs[use], i_calc[use])
        for blocks, (top, _) in columns:
            x, y = data.block_angle[blocks], r1[blocks]
            top.plot(x, y, "o-", color=colour, label=label, markersize=3, linewidth=1)
    for blocks, (_, bottom) in columns:
        x, width = data.block_angle[blocks], data.block_width[blocks]
        bottom.bar(x, count[blocks], 0.9 * width, color=KINEMATIC)
    first = columns[0][1]
    first[0].set(ylabel="R1 (%)", ylim=(0, None))
    first[1].set(ylabel="n")
    first[1].yaxis.set_major_locator(MaxNLocator(2, integer=True))
    legend(figure, first[0])


def draw_thickness_map(figure: Figure, data: Arrays) -> None:
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


def draw_thickness_scan(figure: Figure, data: Arrays) -> None:
    """Mean of p(t) over the rotation angle with its s.u., and the s.d. of p(t) about it."""
    mean = data.thickness @ data.depth
    spread = np.sqrt(np.maximum(data.thickness @ data.depth**2 - mean**2, 0))
    bands = [(spread, KINEMATIC, 0.2, "s.d. of p(t)")]
    if data.thickness_mean_su is not None:
        bands.append((data.thickness_mean_su, DYNAMICAL, 0.4, "mean ± s.u."))
    columns = _scan_axes(figure, data)
    for blocks, (axes,) in columns:
        x, y = data.block_angle[blocks], mean[blocks]
        for half, colour, alpha, label in bands:
            low, high = y - half[blocks], y + half[blocks]
            axes.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0, label=label)
        axes.plot(x, y, ".-", color=DYNAMICAL, markersize=4)
    columns[0][1][0].set(ylabel="thickness t (Å)", ylim=(0, None))
    legend(figure, columns[0][1][0])


def draw_thickness_mean(figure: Figure, data: Arrays) -> None:
    """p(t) averaged over the blocks with its s.u., their range and each block's mean."""
    borders, density = _density(data)
    axes = figure.subplots()
    low, high = np.percentile(density, [10, 90], axis=0)
    axes.fill_between(
        data.depth,
        low,
        high,
        color=DYNAMICAL,
        alpha=0.2,
        linewidth=0,
        label="10–90 % of the blocks",
    )
    average = density.mean(0)
    if data.thickness_average_su is not None:
        su = 100 * data.thickness_average_su / np.diff(borders)
        below, above = np.maximum(average - su, 0), average + su
        look = {"color": DYNAMICAL, "alpha": 0.4, "linewidth": 0}
        axes.fill_between(data.depth, below, above, label="± s.u.", **look)
    axes.plot(data.depth, average, color=DYNAMICAL, label="average p(t)")
    means = data.thickness @ data.depth
    axes.axvline(means.mean(), color=INK, linewidth=0.9, linestyle="--")
    axes.plot(means, 0 * means, "|", color=FREE, alpha=0.6, markersize=8, label="block means")
    axes.set(xlabel="thickness t (Å)", ylabel="p(t) (% per Å)", ylim=(0, None))
    axes.set_xlim(0, data.depth.max() * 1.02)
    legend(figure, axes)


def draw_orientation(figure: Figure, data: Arrays) -> None:
    columns = _scan_axes(figure, data)
    labels = ("about the rotation axis", "across axis and beam")
    for blocks, (axes,) in columns:
        x = data.block_angle[blocks]
        axes.axhline(0, color=MUTED, linewidth=0.8)
        styles = zip(data.tilt[blocks].T, labels, (DYNAMICAL, FREE), strict=True)
        for y, label, colour in styles:
            axes.plot(x, y, ".-", color=colour, label=label, markersize=4)
    columns[0][1][0].set_ylabel("orientation shift (°)")
    legend(figure, columns[0][1][0])


def draw_scale(figure: Figure, data: Arrays) -> None:
    """Scale of each block, relative to the mean, over the rotation."""
    columns = _scan_axes(figure, data)
    relative = data.scale / data.scale.mean()
    for blocks, (axes,) in columns:
        axes.axhline(1, color=MUTED, linewidth=0.8)
        axes.plot(
            data.block_angle[blocks],
            relative[blocks],
            ".-",
            color=DYNAMICAL,
            markersize=4,
        )
    columns[0][1][0].set(ylabel="scale / mean scale", ylim=(0, 1.1 * relative.max()))
