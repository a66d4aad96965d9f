"""One thing to look at, as the automatic checks find it."""

from __future__ import annotations

from dataclasses import dataclass

ALERT, NOTE = "alert", "note"
_NAMED = 6


@dataclass(frozen=True)
class Check:
    """One thing to look at. `kind` is for programs, `text` for people."""

    kind: str
    severity: str  # ALERT, something is wrong; NOTE, something is unusual
    text: str


def listed(words) -> str:
    """Return a list in words, cut after the first few."""
    words = list(words)
    rest = len(words) - _NAMED
    return ", ".join(words[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
