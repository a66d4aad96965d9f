"""What the figures of the page share: colours, style, and the way to an <svg> element.

Drawn with matplotlib's object interface, so that no global state is touched. Text stays
text, and the colours of axes and data are variables of the style sheet.
"""

from __future__ import annotations

import io
import re

import matplotlib.style
from matplotlib.figure import Figure

from .arrays import Arrays

# Told apart by the colour-blind and on a grey printer; readable on white and black, for
# bitmaps have them fixed.
DYNAMICAL, KINEMATIC, FREE = "#2b7bba", "#8d939c", "#d4601e"
INK, MUTED, _LINE = "#1c2126", "#5c6570", "#d9dde2"
# In the SVG they become variables of the style sheet, which follow the page to dark mode.
_VARIABLES = {
    DYNAMICAL: "var(--dynamical)",
    KINEMATIC: "var(--kinematic)",
    FREE: "var(--free)",
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    _LINE: "var(--line)",
}

STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label with a dollar sign is no formula
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "font.size": 9,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "lines.linewidth": 1.5,
}


def svg(name: str, size: tuple[float, float], draw, data: Arrays) -> str:
    """Draw a figure of `size` inch by draw(figure, data), and return it as an <svg> element."""
    style = {**STYLE, "svg.hashsalt": name}
    with matplotlib.style.context(["default", style]):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, data)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", dpi=180, metadata={"Date": None})
    return _inline(buffer.getvalue(), name)


def _inline(drawn: str, name: str) -> str:
    """Make an SVG file fit to stand in a page beside others.

    Ids become unique on the page, the size is left to the style sheet, and what would
    act on the whole page (<style>) or points to the network (<metadata>) goes.
    """
    view = re.search(r'viewBox="[^"]*"', drawn).group()
    body = drawn[drawn.index(">", drawn.index("<svg")) + 1 :]
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


def legend(figure: Figure, axes, **options) -> None:
    """Put the legend of `axes` into a strip above all plots, where it hides no data."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 3 if len(labels) <= 3 else 2
    rows = -(-len(labels) // columns)
    strip = (0.04 + 0.2 * rows) / figure.get_figheight()
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - strip))
    look = {"ncol": columns, "columnspacing": 1.2, "handlelength": 1.4, "borderpad": 0.1}
    place = {"loc": "upper left", "bbox_to_anchor": (0.08, 1)}
    figure.legend(handles, labels, **look, **place, **options)
