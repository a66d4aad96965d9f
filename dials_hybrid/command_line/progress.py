"""Progress of a refinement: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

logger = logging.getLogger("dials.hybrid.command_line.progress")

HEADER = (
    f"  {'step':>4} {'stage':<10} {'loss':>10} {'R1(obs)':>8} {'R1(free)':>8} "
    f"{'shift/A':>8} {'time/s':>7}"
)


class Reporter:
    """Logs a line per iteration, and shows a bar if standard error is a terminal."""

    def __init__(self, iterations: int):
        self.bar = tqdm(
            total=iterations, disable=not sys.stderr.isatty(), leave=False, desc="Refining"
        )
        self.started = False

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *exc) -> None:
        self.bar.close()

    def row(self, row: dict) -> None:
        """Show one row of the history."""
        if not self.started:
            logger.info("%s", HEADER)
            self.started = True
        free = "-" if row["r1_free"] is None else f"{row['r1_free']:.4f}"
        logger.info(
            "  %4d %-10s %10.1f %8.4f %8s %8.4f %7.1f",
            row["iteration"],
            row["stage"],
            row["loss"],
            row["r1_obs"],
            free,
            row["site_shift"],
            row["time"],
        )
        self.bar.set_postfix_str(f"R1 {row['r1_obs']:.4f}", refresh=False)
        self.bar.n = row["iteration"]
        self.bar.refresh()
