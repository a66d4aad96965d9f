"""Hybrid (dynamical + neural) refinement of crystal structures against 3D electron diffraction."""

__version__ = "0.1.0"

import os as _os

# Before torch is imported: idle OpenMP threads that spin make a shared machine several times
# slower, and waiting passively costs little on a quiet one.
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Before cctbx is: both bring a libgomp, the first one serves both, and with the one of the system
# sums of torch in two threads go wrong or end in a corrupted heap.
import torch as _torch  # noqa: E402, F401
