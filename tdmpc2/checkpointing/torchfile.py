"""Reads what `torch.save` writes, released models and training states alike, without unpickling it.

`tdmpc2/archive.py` reads the archive and the pickle's instructions. Here are the names that such files may hold, and
how tensors are made: every size that is declared is compared with the bytes that are there before anything is made;
every member is compared with its checksum, which torch itself does not do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc2.archive import MAX_AXES, Archive, Damaged, Name, read_pickle, refusing, whole_numbers
from tdmpc2.errors import CheckpointError, printable

_MAX_PICKLE_BYTES = 16 << 20  # the largest released model's has less than 1 MiB
_MAX_INSTRUCTIONS = 250_000  # a training state's has some 10,000
_MAX_REUSE = 4  # current released files name the bytes of Q three times
_STORAGES: dict[str, torch.dtype] = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "QInt8Storage": torch.qint8,
}


class ForeignObject(CheckpointError):
    """The file holds something other than tensors, numbers, texts and their containers."""


@dataclass(frozen=True)
class _Storage:
    """A member's bytes."""

    bytes: torch.UntypedStorage
    dtype: torch.dtype


def read_torch_file(path: Path, *, mapped: bool) -> object:
    """The content of a file of `torch.save`: dict, list, tuple, str, int, float, bool, None and CPU tensors.

    Args:
        path: the file.
        mapped: tensors stay on disk until they are used (the file must stay as it is); else they are copied.

    Raises:
        CheckpointError: when the file cannot be read, is damaged, or declares more than it holds.
        ForeignObject: when its pickle holds anything else; nothing of it was run.
    """

    def damaged(reason: str) -> str:
        return f"truncated or not a torch checkpoint ({printable(reason)})."

    with refusing(path, CheckpointError, damaged):
        archive = Archive(path, max_pickle_bytes=_MAX_PICKLE_BYTES, verify=True)
        root = read_pickle(archive.pickle, _Tensors(path, archive, mapped), _MAX_INSTRUCTIONS)
        if isinstance(root, Name | _Storage):
            raise Damaged("its pickle ends in the middle")
        return root


class _Tensors:
    """Makes tensors of the storages and calls that a pickle names (an `archive.Maker`)."""

    def __init__(self, path: Path, archive: Archive, mapped: bool) -> None:
        self._path = path
        self._archive = archive
        self._mapped = mapped
        self._file = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=archive.size)
        self._storages: dict[str, _Storage] = {}
        self._made_bytes = 0

    def foreign(self, what: str) -> ForeignObject:
        return ForeignObject(
            f"{self._path}: holds objects other than tensors, which are never loaded ({printable(what)})."
        )

    def name(self, name: Name) -> Name:
        return name

    def build(self, target: object, state: object) -> None:
        # torch keeps a version number in the attributes of a state dict: of no use here.
        if not isinstance(target, dict):
            raise self.foreign("attributes of an object")

    def call(self, called: object, arguments: tuple[Any, ...]) -> object:
        if not isinstance(called, Name):
            raise self.foreign("a call")
        match (called.module, called.name):
            case ("torch._utils", "_rebuild_tensor_v2") if len(arguments) >= 4:
                return self._tensor(*arguments[:4])
            case ("torch._utils", "_rebuild_qtensor") if len(arguments) >= 5:
                return self._quantised(*arguments[:5])
            case ("torch._utils", "_rebuild_parameter") if arguments and isinstance(arguments[0], Tensor):
                return arguments[0]
            case ("collections", "OrderedDict") if not arguments:
                return {}
            case ("torch", "Size") if len(arguments) == 1 and whole_numbers(arguments[0]) is not None:
                return tuple(arguments[0])
            case ("torch", "device"):
                return None  # where a tensor once was; all are read to the CPU
        raise self.foreign(str(called))

    def storage(self, pid: object) -> _Storage:
        match pid:
            case ("storage", Name("torch", kind), str(key), str(_), int(count)) if kind in _STORAGES:
                dtype = _STORAGES[kind]
            case _:
                raise Damaged("its pickle names a storage in an unknown way")
        offset, nbytes = self._archive.place(key)
        if count * dtype.itemsize != nbytes:
            raise Damaged(f"'data/{key}' has {nbytes} bytes, expected {count} elements of {dtype}")
        if key not in self._storages:
            part = self._file[offset : offset + nbytes]
            self._storages[key] = _Storage(part if offset % dtype.itemsize == 0 else part.clone(), dtype)
        if self._storages[key].dtype != dtype:
            raise Damaged(f"'data/{key}' is named with two types")
        return self._storages[key]

    def _tensor(self, storage: object, offset: object, size: object, stride: object) -> Tensor:
        storage, start, sizes, strides = self._place(storage, offset, size, stride)
        if storage.dtype == torch.qint8:
            raise Damaged("a quantised tensor has no scale")
        tensor = torch.empty(0, dtype=storage.dtype).set_(storage.bytes, start, sizes, strides)
        return tensor if self._mapped else tensor.clone()

    def _quantised(self, storage: object, offset: object, size: object, stride: object, quantiser: object) -> Tensor:
        storage, start, sizes, strides = self._place(storage, offset, size, stride)
        match quantiser:
            case (Name("torch", "per_tensor_affine"), float(scale), int(zero)) if storage.dtype == torch.qint8:
                if not (math.isfinite(scale) and scale > 0 and -128 <= zero <= 127):
                    raise Damaged(f"a quantised tensor has scale {scale} and zero point {zero}")
            case _:
                raise Damaged("a tensor is quantised in an unknown way")
        tensor: Tensor = torch._empty_affine_quantized(sizes, scale=scale, zero_point=zero, dtype=torch.qint8)
        tensor.set_(storage.bytes, start, sizes, strides)
        return tensor if self._mapped else tensor.clone()

    def _place(
        self, storage: object, offset: object, size: object, stride: object
    ) -> tuple[_Storage, int, tuple[int, ...], tuple[int, ...]]:
        """The same, checked: within the storage, and no more elements than it has."""
        sizes, strides, start = whole_numbers(size), whole_numbers(stride), whole_numbers((offset,))
        if not isinstance(storage, _Storage) or sizes is None or strides is None or start is None:
            raise Damaged("a tensor's storage, shape, strides or offset are no such thing")
        if len(sizes) != len(strides) or len(sizes) > MAX_AXES:
            raise Damaged(f"a tensor has {len(sizes)} axes and {len(strides)} strides")
        count = math.prod(sizes)
        last = start[0] + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
        held = storage.bytes.nbytes() // storage.dtype.itemsize
        if max(sizes, default=0) > held or count > held or (count and last >= held):
            raise Damaged(f"a tensor of shape {list(sizes)} leaves its storage of {held} elements")
        self._made_bytes += count * storage.dtype.itemsize
        if self._made_bytes > _MAX_REUSE * self._archive.size:
            raise Damaged("its tensors together are far larger than the file")
        return storage, start[0], sizes, strides
