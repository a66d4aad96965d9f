"""The PHIL files of this package, in a checkout and in an installed copy."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# installed as package data; in a checkout the folder stands beside the package
FOLDERS = (_PACKAGE / "phil", _PACKAGE.parent / "phil")


def phil_text(name: str) -> str:
    """Return the text of a PHIL file, such as "hybrid_simulate.phil".

    Raises FileNotFoundError, naming the places searched, when there is none.
    """
    for folder in FOLDERS:
        path = folder / name
        if path.is_file():
            return path.read_text(encoding="utf-8")
    places = " or ".join(str(folder) for folder in FOLDERS)
    raise FileNotFoundError(f"{name} is neither in {places}; the installation is not complete")
