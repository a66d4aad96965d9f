"""Frozen records that check themselves and travel as HDF5, and the error meant for users."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import h5py
import torch
from torch import Tensor

FORMAT = "dials_hybrid"
FORMAT_VERSION = 1


class InputError(Exception):
    """Something in the user's input is wrong; the message is one sentence meant for the user."""


class Record:
    """Base of the frozen records: conversion, validation and HDF5."""

    kinds: ClassVar[dict[str, type[Record]]] = {}  # all of them by name, as files name them

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        Record.kinds[cls.__name__] = cls

    def to(self, device=None, dtype=None):
        """Return a copy on `device` with floating-point tensors as `dtype`; None keeps either."""

        def convert(value):
            if isinstance(value, Tensor):
                return value.to(device, dtype if value.is_floating_point() else None)
            return value.to(device, dtype) if isinstance(value, Record) else value

        values = {f.name: convert(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return type(self)(**values)

    def replace(self, **changes):
        """Return a copy with the named fields changed."""
        return dataclasses.replace(self, **changes)

    def write(self, group: h5py.Group) -> None:
        """Write every field below an HDF5 group."""
        for f in dataclasses.fields(self):
            _write_value(group, f.name, getattr(self, f.name))

    @classmethod
    def read(cls, group: h5py.Group):
        """Read what `write` wrote; fields with a default may be absent.

        Fields with a default may be absent, as in files of earlier versions. Raises InputError
        when another field is missing.
        """
        present = [f.name for f in dataclasses.fields(cls) if f.name in group]
        required = [f.name for f in dataclasses.fields(cls) if not _has_default(f)]
        missing = [name for name in required if name not in present]
        if missing:
            raise InputError(
                f"{group.file.filename}: {group.name} lacks {', '.join(missing)}; "
                "the file is not complete, or another version of dials_hybrid wrote it"
            )
        return cls(**{name: _read_value(group[name]) for name in present})

    def _expect(self, name: str, *shape: int) -> None:
        value = getattr(self, name)
        if tuple(value.shape) != shape:
            raise ValueError(
                f"{type(self).__name__}.{name}: shape {tuple(value.shape)}, not {shape}"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{type(self).__name__}.{name} holds NaN or infinite values")


def _has_default(f: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return f.default is not missing or f.default_factory is not missing


def _write_value(group: h5py.Group, name: str, value: Any) -> None:
    if isinstance(value, Record):
        sub = group.create_group(name)
        sub.attrs["record"] = type(value).__name__
        value.write(sub)
    elif isinstance(value, Tensor):
        group.create_dataset(name, data=value.detach().cpu().numpy())
    else:
        group.create_dataset(name, data=json.dumps(value))
        group[name].attrs["json"] = True


def _read_value(node) -> Any:
    if isinstance(node, h5py.Group):
        return Record.kinds[node.attrs["record"]].read(node)
    if node.attrs.get("json", False):
        value = json.loads(node[()])
        return tuple(value) if isinstance(value, list) else value
    return torch.as_tensor(node[()])


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path` that is renamed to it only if the body succeeds.

    A failed or killed run therefore leaves an existing file as it was.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(
        prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent
    )
    os.close(handle)
    umask = os.umask(0)
    os.umask(umask)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def save_records(path, **values) -> None:
    """Write records, tensors and JSON values by name to an HDF5 file, all or nothing."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as handle:
        handle.attrs["format"] = FORMAT
        handle.attrs["version"] = FORMAT_VERSION
        for name, value in values.items():
            _write_value(handle, name, value)


def require_file(path, advice: str = "") -> None:
    """Raise InputError, with the advice, unless there is a file of that name."""
    if Path(path).is_file():
        return
    found = "a folder, not a file" if Path(path).is_dir() else "no such file"
    raise InputError(f"{path}: {found}{'; ' if advice else ''}{advice}")


def load_records(path) -> dict:
    """Read what `save_records` wrote.

    Raises InputError when the file is missing, damaged or of another kind.
    """
    require_file(path)
    try:
        with h5py.File(path, "r") as handle:
            if handle.attrs.get("format") != FORMAT:
                raise InputError(f"{path}: an HDF5 file, but not one that dials_hybrid wrote")
            if handle.attrs["version"] != FORMAT_VERSION:
                raise InputError(
                    f"{path}: written in format {handle.attrs['version']}, this program reads "
                    f"format {FORMAT_VERSION}; refine again from the original files"
                )
            return {name: _read_value(node) for name, node in handle.items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read as HDF5 ({error})") from error
