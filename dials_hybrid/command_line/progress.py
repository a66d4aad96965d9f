"""Progress of a refinement: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

from ..history import HEADER, format_row

logger = logging.getLogger("dials.hybrid.command_line.progress")


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
        logger.info("%s", format_row(row))
        self.bar.set_postfix_str(f"R1 {row['r1_obs']:.4f}", refresh=False)
        self.bar.n = row["iteration"]
        self.bar.refresh()
