"""The unit cell's contents as displacement ellipsoids and bonds, seen along a cell axis."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse

from ..data import Structure
from .arrays import Arrays, as_numpy
from .contacts import BOND_MARGIN, IONIC, SAME, axes, cartesian_u, elements, images, radii

HALF_PROBABILITY = 1.5382  # radius of the sphere that holds half of a 3D normal distribution
FACE = 0.02  # fractional, atoms that near to a face are drawn at both
MOST = 500  # atoms drawn
SPURIOUS = 0.4  # A, nearer atoms are alternatives of one place and not bonded
_AXIS_NAMES = "abc"
_COLOURS = {
    "H": "#c3c9cf",
    "C": "#6b7480",
    "N": "#3f62d8",
    "O": "#d8453c",
    "F": "#4aa35a",
    "Na": "#8f5cc9",
    "Al": "#a39a8e",
    "Si": "#c99a34",
    "P": "#e0812b",
    "S": "#cdb020",
    "Cl": "#3fa34d",
    "Br": "#98503a",
    "Cs": "#7a55b5",
    "Pb": "#5a7a86",
}
_OTHER = ("#2f8f8b", "#b0588f", "#7d8f2f", "#8a6a4f", "#4c86c6")


@dataclass(frozen=True)
class Drawing:
    """N atoms in Cartesian coordinates of the page (x, y, towards the eye), in A."""

    place: np.ndarray  # (N, 3)
    tensor: np.ndarray  # (N, 3, 3) A^2
    atom: np.ndarray  # (N,) index of the atom of the structure
    first: np.ndarray  # (N,) bool, the atom as the structure lists it
    bonds: np.ndarray  # (M, 2) places of the partners
    view: np.ndarray  # (3, 3) takes fractional coordinates to the page
    along: str  # name of the axis that points to the eye


def compose(structure: Structure) -> Drawing:
    """Return what is drawn: the atoms of one cell and those bonded to them.

    The shortest axis points to the eye. Of a structure too large to be seen, the asymmetric unit.
    """
    along = int(as_numpy(structure.cell)[:3].argmin())
    turn = _to_the_eye(axes(structure), along)
    view = turn @ axes(structure)
    site, atom, operator = _cell_contents(structure)
    place = site @ view.T
    size, names = radii(structure)[atom], np.array(elements(structure))[atom]
    inside = ((site > -FACE) & (site < 1 + FACE)).all(1)
    if inside.sum() > MOST:
        inside = np.arange(len(atom)) < len(structure.labels)
    bonds = _bonds(place, size, np.isin(names, list(IONIC)), inside)
    drawn = inside.copy()
    drawn[bonds.ravel()] = True
    kept = np.cumsum(drawn) - 1
    rotation = axes(structure) @ as_numpy(structure.sym_rot) @ np.linalg.inv(axes(structure))
    turned = turn @ rotation[operator]
    tensor = turned @ cartesian_u(structure)[atom] @ turned.transpose(0, 2, 1)
    first = np.zeros(len(atom), dtype=bool)
    first[[np.flatnonzero(drawn & (atom == i))[0] for i in np.unique(atom[drawn])]] = True
    return Drawing(
        place[drawn],
        tensor[drawn],
        atom[drawn],
        first[drawn],
        kept[bonds],
        view,
        _AXIS_NAMES[along],
    )


def _to_the_eye(cell: np.ndarray, along: int) -> np.ndarray:
    """Return the rotation (3, 3) that turns an axis to the eye and the next one to the right."""
    eye = cell[:, along] / np.linalg.norm(cell[:, along])
    right = cell[:, (along + 1) % 3]
    right = right - (right @ eye) * eye
    right = right / np.linalg.norm(right)
    return np.stack([right, np.cross(eye, right), eye])


def _cell_contents(structure: Structure):
    """Return sites (N, 3), atoms (N,) and operators (N,) from half a cell before to half after.

    Images that fall together, on special positions, are there once. Atoms as the structure lists
    them, moved into the cell, come first.
    """
    every = images(structure)
    shifts = np.array(list(itertools.product((-1, 0, 1), repeat=3)), dtype=float)
    shifts = shifts[np.argsort(np.abs(shifts).sum(1), kind="stable")]
    operators, atoms = every.shape[:2]
    base = every - np.floor(every)
    site = (base + shifts[:, None, None]).reshape(-1, 3)
    operator = np.tile(np.repeat(np.arange(operators), atoms), len(shifts))
    atom = np.tile(np.arange(atoms), operators * len(shifts))
    near = ((site > -0.5) & (site < 1.5)).all(1)
    site, operator, atom = site[near], operator[near], atom[near]
    key = np.round(site @ axes(structure).T / SAME).astype(int)
    _, once = np.unique(np.column_stack([atom, key]), axis=0, return_index=True)
    once.sort()
    return site[once], atom[once], operator[once]


def _bonds(place, size, ionic, inside) -> np.ndarray:
    """Return pairs (M, 2) of bonded atoms of which one at least is inside."""
    pairs = []
    for i in np.flatnonzero(inside & ~ionic):
        distance = np.linalg.norm(place - place[i], axis=1)
        bonded = (distance > SPURIOUS) & (distance < size + size[i] + BOND_MARGIN) & ~ionic
        pairs += [(i, j) for j in np.flatnonzero(bonded) if j > i or not inside[j]]
    return np.array(pairs, dtype=int).reshape(-1, 2)


def colours(names) -> dict[str, str]:
    """Return a colour for each element, the usual ones where there are."""
    others = itertools.cycle(_OTHER)
    return {name: _COLOURS.get(name) or next(others) for name in sorted(set(names))}


def outline(tensor: np.ndarray) -> tuple[float, float, float]:
    """Return width and height in A, and angle in degree, of an ellipsoid (3, 3) seen along z.

    The ellipsoid holds the atom with a probability of a half. Directions in which U is negative
    have no width.
    """
    squares, directions = np.linalg.eigh(tensor[:2, :2])
    width, height = 2 * HALF_PROBABILITY * np.sqrt(np.maximum(squares, 0))
    return width, height, float(np.degrees(np.arctan2(directions[1, 0], directions[0, 0])))


def draw(figure: Figure, data: Arrays) -> None:
    """Draw the unit cell, what is nearer to the eye over what is behind."""
    structure = data.structure
    drawing = compose(structure)
    ink = matplotlib.rcParams["text.color"]
    colour = colours(elements(structure))
    paint = [colour[name] for name in elements(structure)]
    axis = figure.subplots()
    _draw_cell(axis, drawing.view)
    for i, j in drawing.bonds:
        middle = (drawing.place[i] + drawing.place[j]) / 2
        for k in (i, j):
            x, y, z = np.stack([drawing.place[k], middle], axis=1)
            style = {"color": paint[drawing.atom[k]], "linewidth": 2.2, "alpha": 0.75}
            axis.plot(x, y, zorder=3 + 1e-3 * z.mean(), solid_capstyle="butt", **style)
    for place, tensor, atom, first in zip(
        drawing.place, drawing.tensor, drawing.atom, drawing.first, strict=True
    ):
        width, height, angle = outline(tensor)
        order = 4 + 1e-3 * place[2]
        patch = {"angle": angle, "facecolor": paint[atom], "edgecolor": ink, "linewidth": 0.6}
        axis.add_patch(Ellipse(place[:2], width, height, zorder=order, **patch))
        if first:
            offset = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 7.5}
            axis.annotate(structure.labels[atom], place[:2], zorder=6, **offset)
    _finish(axis, drawing, colour)


def _draw_cell(axis, view: np.ndarray) -> None:
    """Draw the edges of the cell, and the names of its axes at their ends."""
    style = {"color": matplotlib.rcParams["axes.edgecolor"], "linewidth": 0.8, "zorder": 1}
    for k in range(3):
        others = [i for i in range(3) if i != k]
        for corner in itertools.product((0.0, 1.0), repeat=2):
            ends = np.zeros((2, 3))
            ends[:, others], ends[1, k] = corner, 1.0
            axis.plot(*(ends @ view.T)[:, :2].T, **style)
        tip = view[:2, k]
        if np.linalg.norm(tip) > 1e-6:
            axis.annotate(_AXIS_NAMES[k], tip, xytext=1.06 * tip, ha="center", va="center")


def _finish(axis, drawing: Drawing, colour: dict[str, str]) -> None:
    """Set limits and legend; coordinates are no use here."""
    axis.set_aspect("equal")
    axis.set_axis_off()
    axis.margins(0.04)
    dot = {"marker": "o", "linestyle": "", "markersize": 6}
    handles = [Line2D([], [], color=c, label=name, **dot) for name, c in colour.items()]
    place = {"loc": "upper left", "bbox_to_anchor": (0.0, 0.0), "ncol": 8}
    axis.legend(handles=handles, columnspacing=1.0, **place)
    axis.set_title(f"along {drawing.along}", loc="left")
