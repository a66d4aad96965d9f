"""Counts the bytes that tensors hold, by following every storage that an operation makes."""

from __future__ import annotations

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """While active, `peak` is the largest number of bytes of new storages alive at one time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run the operation and count what it made."""
        out = function(*args, **(kwargs or {}))
        given = {
            id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)
        }
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage(), given)
        return out

    def _count(self, storage, given) -> None:
        if id(storage) in given or storage in self.known:
            return
        size = storage.nbytes()
        self.known.add(storage)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size
