"""Runs commands in processes that cannot import DIALS, cctbx or what else a bare machine lacks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOREIGN = ("dials", "dxtbx", "cctbx", "iotbx", "libtbx", "scitbx", "smtbx")
FOREIGN += ("tqdm", "matplotlib", "numba", "llvmlite")

# imported at the start of every process that has the folder of this file in PYTHONPATH
HIDE = f"""
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in {FOREIGN!r}
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""


def environment(folder: Path, **extra: str) -> dict[str, str]:
    """Return the environment of a bare machine; `folder` receives a file that hides modules."""
    (folder / "sitecustomize.py").write_text(HIDE)
    paths = f"{folder}{os.pathsep}{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **extra}


def start(arguments, folder: Path, **extra: str) -> subprocess.Popen:
    """Start Python with the arguments in a folder, as the head of a group of processes."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment(folder, **extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, seconds: float) -> tuple[str, str]:
    """Return (stdout, stderr); ends the whole group if it takes longer than that."""
    try:
        return process.communicate(timeout=seconds)
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """End the process with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
