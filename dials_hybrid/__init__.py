"""Hybrid (dynamical + neural) refinement of crystal structures against 3D electron diffraction."""

__version__ = "0.1.0"

import os as _os

# Before torch is imported: idle OpenMP threads that spin make a shared machine several times
# slower, and waiting passively costs little on a quiet one.
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Before cctbx is: it brings stand-ins for OpenMP by which there is one thread, number 0. Those that
# are loaded first answer torch, which then works on one core; and what torch and MKL start in
# threads all the same is done by each of them: products that add, sorts and sums go wrong.
import torch as _torch  # noqa: E402, F401
