"""Reads what `torch.save` writes, released models and training states alike, without unpickling it.

Such a file is a zip archive: `data.pkl` is a pickle that describes the content, `data/N` are the tensors' bytes. Here
the pickle's instructions are read one by one, and only those that make plain containers, numbers, texts and tensors
are known. A name in it is never looked up, so nothing can run; every size it declares is compared with the bytes that
are there before anything is made; every member is compared with its checksum, which torch itself does not do.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc2.errors import CheckpointError, printable

_MAX_PICKLE_BYTES = 16 << 20  # the largest released model's has less than 1 MiB
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
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"})


class ForeignObject(CheckpointError):
    """The file holds something other than tensors, numbers, texts and their containers."""


class _Damaged(Exception):
    """What is wrong, for the message that names the file."""


@dataclass(frozen=True)
class _Name:
    """A name in the pickle, as text: it is compared with the known ones and nothing else."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


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
    try:
        archive = _Archive(path)
        return _Reader(path, archive, mapped).read()
    except CheckpointError:
        raise
    except _Damaged as error:
        raise CheckpointError(f"{path}: truncated or not a torch checkpoint ({printable(error)}).") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # damaged bytes make zipfile and pickletools raise nearly any error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: truncated or not a torch checkpoint ({printable(reason)}).") from error


class _Archive:
    """The checked zip archive: where each member's bytes lie in the file."""

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            if len(set(names)) != len(names):
                raise _Damaged(f"it holds '{next(n for n in names if names.count(n) > 1)}' twice")
            for info in infos:
                if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                    raise _Damaged(f"'{info.filename}' is compressed or encrypted, expected plain bytes")
            if sum(info.file_size for info in infos) > self.size:
                raise _Damaged("its members are larger than the file")
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise _Damaged(f"it holds {len(pickles)} data.pkl, expected one")
            prefix = pickles[0].removesuffix("data.pkl")
            if archive.getinfo(pickles[0]).file_size > _MAX_PICKLE_BYTES:
                raise _Damaged("its data.pkl is too large")
            if prefix + "byteorder" in names and archive.read(prefix + "byteorder") != b"little":
                raise _Damaged("it was not saved on a little-endian machine")
            damaged = archive.testzip()
            if damaged is not None:
                raise _Damaged(f"'{damaged}' does not match its checksum")
            self.pickle = archive.read(pickles[0])
        start = len(prefix)
        self._members = {name[start:]: info for name, info in zip(names, infos, strict=True) if name.startswith(prefix)}
        self._path = path

    def place(self, key: str) -> tuple[int, int]:
        """Offset in the file and length of the bytes of storage `key`."""
        info = self._members.get(f"data/{key}")
        if info is None:
            raise _Damaged(f"'data/{key}' is missing")
        with self._path.open("rb") as file:
            # The name and the padding before the bytes are as long as the member's own header says.
            file.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
        offset = info.header_offset + 30 + name + extra
        if offset + info.file_size > self.size:
            raise _Damaged(f"'data/{key}' ends after the file's end")
        return offset, info.file_size


class _Reader:
    """Follows the pickle's instructions; the stack and memo hold plain values, `_Name` and `_Storage`."""

    def __init__(self, path: Path, archive: _Archive, mapped: bool) -> None:
        self._path = path
        self._archive = archive
        self._mapped = mapped
        self._file = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=archive.size)
        self._storages: dict[str, _Storage] = {}
        self._made_bytes = 0

    def read(self) -> object:
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def since_mark() -> list[Any]:
            start = marks.pop()
            items = stack[start:]
            del stack[start:]
            return items

        def take(count: int) -> list[Any]:
            if len(stack) - (marks[-1] if marks else 0) < count:
                raise _Damaged("its pickle takes more than it made")
            items = stack[len(stack) - count :]
            del stack[len(stack) - count :]
            return items

        for opcode, argument, _ in pickletools.genops(self._archive.pickle):
            match opcode.name:
                case "PROTO":
                    pass
                case "MARK":
                    marks.append(len(stack))
                case name if name in _CONSTANTS:
                    stack.append(_CONSTANTS[name])
                case name if name in _LITERALS:
                    stack.append(argument)
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(take(int(opcode.name[-1]))))
                case "APPEND":
                    self._extend(stack, take(1))
                case "APPENDS":
                    self._extend(stack, since_mark())
                case "SETITEM":
                    self._set_items(stack, take(2))
                case "SETITEMS":
                    self._set_items(stack, since_mark())
                case "BINPUT" | "LONG_BINPUT":
                    memo[int(argument or 0)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[int(argument or 0)])
                case "GLOBAL":
                    module, _, name = str(argument).partition(" ")
                    stack.append(_Name(module, name))
                case "REDUCE":
                    called, arguments = take(2)
                    stack.append(self._call(called, arguments))
                case "BUILD":
                    # torch keeps a version number in the attributes of a state dict: of no use here.
                    if not isinstance(take(1), list) or not isinstance(stack[-1], dict):
                        raise self._foreign("attributes of an object")
                case "BINPERSID":
                    (pid,) = take(1)
                    stack.append(self._storage(pid))
                case "STOP":
                    (root,) = take(1)
                    if stack or marks or isinstance(root, _Name | _Storage):
                        raise _Damaged("its pickle ends in the middle")
                    return root
                case other:
                    raise self._foreign(f"the pickle instruction {other}")
        raise _Damaged("its pickle has no end")

    def _foreign(self, what: str) -> ForeignObject:
        return ForeignObject(
            f"{self._path}: holds objects other than tensors, which are never loaded ({printable(what)})."
        )

    @staticmethod
    def _extend(stack: list[Any], items: list[Any]) -> None:
        if not isinstance(stack[-1], list):
            raise _Damaged("its pickle appends to no list")
        stack[-1].extend(items)

    def _set_items(self, stack: list[Any], items: list[Any]) -> None:
        target = stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise _Damaged("its pickle sets items of no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise self._foreign(f"a dictionary key of type {type(key).__name__}")
            target[key] = value

    def _call(self, called: object, arguments: object) -> object:
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise self._foreign("a call")
        match (called.module, called.name):
            case ("torch._utils", "_rebuild_tensor_v2"):
                storage, offset, size, stride = arguments[:4]
                return self._tensor(storage, offset, size, stride)
            case ("torch._utils", "_rebuild_qtensor"):
                storage, offset, size, stride, quantiser = arguments[:5]
                return self._quantised(storage, offset, size, stride, quantiser)
            case ("torch._utils", "_rebuild_parameter"):
                if not isinstance(arguments[0], Tensor):
                    raise _Damaged("a parameter is no tensor")
                return arguments[0]
            case ("collections", "OrderedDict") if not arguments:
                return {}
            case ("torch", "Size") if len(arguments) == 1 and _whole_numbers(arguments[0]) is not None:
                return tuple(arguments[0])
            case ("torch", "device"):
                return None  # where a tensor once was; all are read to the CPU
        raise self._foreign(str(called))

    def _storage(self, pid: object) -> _Storage:
        match pid:
            case ("storage", _Name("torch", kind), str(key), str(_), int(count)) if kind in _STORAGES:
                dtype = _STORAGES[kind]
            case _:
                raise _Damaged("its pickle names a storage in an unknown way")
        offset, nbytes = self._archive.place(key)
        if count * dtype.itemsize != nbytes:
            raise _Damaged(f"'data/{key}' has {nbytes} bytes, expected {count} elements of {dtype}")
        if key not in self._storages:
            part = self._file[offset : offset + nbytes]
            self._storages[key] = _Storage(part if offset % dtype.itemsize == 0 else part.clone(), dtype)
        if self._storages[key].dtype != dtype:
            raise _Damaged(f"'data/{key}' is named with two types")
        return self._storages[key]

    def _tensor(self, storage: object, offset: object, size: object, stride: object) -> Tensor:
        storage, start, sizes, strides = self._place(storage, offset, size, stride)
        if storage.dtype == torch.qint8:
            raise _Damaged("a quantised tensor has no scale")
        tensor = torch.empty(0, dtype=storage.dtype).set_(storage.bytes, start, sizes, strides)
        return tensor if self._mapped else tensor.clone()

    def _quantised(self, storage: object, offset: object, size: object, stride: object, quantiser: object) -> Tensor:
        storage, start, sizes, strides = self._place(storage, offset, size, stride)
        match quantiser:
            case (_Name("torch", "per_tensor_affine"), float(scale), int(zero)) if storage.dtype == torch.qint8:
                if not (math.isfinite(scale) and scale > 0 and -128 <= zero <= 127):
                    raise _Damaged(f"a quantised tensor has scale {scale} and zero point {zero}")
            case _:
                raise _Damaged("a tensor is quantised in an unknown way")
        tensor: Tensor = torch._empty_affine_quantized(sizes, scale=scale, zero_point=zero, dtype=torch.qint8)
        tensor.set_(storage.bytes, start, sizes, strides)
        return tensor if self._mapped else tensor.clone()

    def _place(
        self, storage: object, offset: object, size: object, stride: object
    ) -> tuple[_Storage, int, tuple[int, ...], tuple[int, ...]]:
        """The same, checked: within the storage, and no more elements than it has."""
        sizes, strides, start = _whole_numbers(size), _whole_numbers(stride), _whole_numbers((offset,))
        if not isinstance(storage, _Storage) or sizes is None or strides is None or start is None:
            raise _Damaged("a tensor's storage, shape, strides or offset are no such thing")
        if len(sizes) != len(strides) or len(sizes) > 8:
            raise _Damaged(f"a tensor has shape {list(sizes)[:9]} and strides {list(strides)[:9]}")
        count = math.prod(sizes)
        last = start[0] + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
        held = storage.bytes.nbytes() // storage.dtype.itemsize
        if max(sizes, default=0) > held or count > held or (count and last >= held):
            raise _Damaged(f"a tensor of shape {list(sizes)} leaves its storage of {held} elements")
        self._made_bytes += count * storage.dtype.itemsize
        if self._made_bytes > _MAX_REUSE * self._archive.size:
            raise _Damaged("its tensors together are far larger than the file")
        return storage, start[0], sizes, strides


def _whole_numbers(values: object) -> tuple[int, ...] | None:
    """`values` when it is a tuple or list of integers from 0 to 2**62, else None."""
    if not isinstance(values, tuple | list) or any(type(v) is not int or not 0 <= v < 1 << 62 for v in values):
        return None
    return tuple(values)
