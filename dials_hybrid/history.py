"""The history of a refinement: a row for every iteration, as a line and for who listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

HEADER = (
    f"  {'step':>4} {'stage':<10} {'loss':>10} {'R1(obs)':>8} {'R1(free)':>8} "
    f"{'shift/A':>8} {'time/s':>7}"
)


def format_row(row: dict) -> str:
    """Return one row of the history as a line below HEADER."""
    free = "-" if row["r1_free"] is None else f"{row['r1_free']:.4f}"
    return (
        f"  {row['iteration']:>4} {row['stage']:<10} {row['loss']:>10.1f} {row['r1_obs']:>8.4f} "
        f"{free:>8} {row['site_shift']:>8.4f} {row['time']:>7.1f}"
    )


@dataclass
class Progress:
    """What a caller may listen to: `report(row)` after every iteration, `save` for checkpoints."""

    report: Callable[[dict], None] = lambda row: None
    checkpoint: str | None = None
