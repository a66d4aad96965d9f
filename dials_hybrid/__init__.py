"""Hybrid (dynamical + neural) refinement of crystal structures against 3D electron diffraction."""

__version__ = "0.1.0"

import os as _os
import sys as _sys
import warnings as _warnings

# Before torch is imported: idle OpenMP threads that spin make a shared machine several times
# slower, and waiting passively costs little on a quiet one.
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Before cctbx is: it brings stand-ins for OpenMP by which there is one thread, number 0. Those that
# are loaded first answer torch, which then works on one core; and what torch and MKL start in
# threads all the same is done by each of them: products that add, sorts and sums go wrong.
if "boost_adaptbx" in _sys.modules and "torch" not in _sys.modules:
    _os.environ["OMP_NUM_THREADS"] = "1"
import torch as _torch  # noqa: E402


def _threads_answer() -> bool:
    """Whether torch is answered by an OpenMP library that knows of threads."""
    before = _torch.get_num_threads()
    _torch.set_num_threads(2)
    answered = _torch.get_num_threads() == 2
    _torch.set_num_threads(before)
    return answered


if not _threads_answer():
    _warnings.warn(
        "cctbx was imported before torch, which therefore has one core, and gives wrong results "
        "where it is told to use more; import torch, or dials_hybrid, before cctbx",
        RuntimeWarning,
        stacklevel=2,
    )
