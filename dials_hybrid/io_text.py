"""Text of files in whatever encoding they are."""

from __future__ import annotations

import codecs
from pathlib import Path


def ascii_text(path: Path) -> str:
    """Return a file's text in ASCII, which is all that iotbx reads.

    What is lost are accents in comments and names, in whatever encoding they were.
    """
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    return data.decode("ascii", errors="replace").replace("\ufffd", "?")
