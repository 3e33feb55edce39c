"""Reads a dataset file in the published format without running any code the file brings along.

Such a file is what `torch.save` writes: a zip archive whose `data.pkl` describes the tensors and whose
`data/N` members are their bytes. The pickle may name only what is listed here, and every name becomes an
inert stand-in; each tensor becomes a view, checked against its member's bounds, on the file mapped read-only.
Nothing is read whole, so a file may be larger than memory.

Known forms of the TensorDict inside (looked up in files written by those releases):
- 0.0 to 0.2: `tensordict.tensordict.TensorDict`, made empty and then given its state;
- 0.3 and 0.4: `tensordict._td.TensorDict`, likewise;
- 0.5 to 0.14: the same class and its state passed to `tensordict._reductions._make_td`.
In all of them the tensors are in the state's `_tensordict`. A plain dictionary of tensors is read too.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tdmpc2.errors import DataError, printable

_MAX_PICKLE_BYTES = 4 << 20  # a published file's pickle has 600 bytes
_CHECK_BYTES = 32 << 20
_MAX_INSTRUCTIONS = 5_000  # a published file's has some 200; with more, nesting could exhaust the stack
_KEYS = ("obs", "action", "reward", "task")

# How each torch dtype is stored; bfloat16, which numpy lacks, is the upper half of a float32.
_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "int16": np.dtype("<i2"),
    "uint16": np.dtype("<u2"),
    "int32": np.dtype("<i4"),
    "uint32": np.dtype("<u4"),
    "int64": np.dtype("<i8"),
    "uint64": np.dtype("<u8"),
}
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_STORAGES: dict[str, str] = {
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "UntypedStorage": "",  # its tensor brings the dtype along
}


@dataclass(frozen=True, eq=False)
class TensorView:
    """A tensor of the file, still in the file: `raw` is a read-only view on the mapping."""

    dtype: str
    raw: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.raw.shape

    def floats(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows `start` to `stop` as contiguous float32. A double too large for float32 becomes infinite."""
        part = self.raw[start:stop]
        if self.dtype == "bfloat16":
            return (part.astype(np.uint32) << np.uint32(16)).view(np.float32)
        with np.errstate(over="ignore"):  # the checks report the infinity, with its place
            return np.array(part, dtype=np.float32, order="C")

    def integers(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Rows `start` to `stop` as int64."""
        return self.raw[start:stop].astype(np.int64)


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive episodes of a file, in memory: obs [E,T,O], action [E,T,A], reward [E,T], task [E,T]."""

    first_episode: int
    obs: npt.NDArray[np.float32]
    action: npt.NDArray[np.float32]
    reward: npt.NDArray[np.float32]
    task: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PublishedFile:
    """One dataset file, opened by `PublishedFile.open`; `blocks` streams its episodes.

    `fingerprint` is a SHA-256 over the archive's directory (every member's name, size and CRC-32) and its
    pickle: it tells two files apart without reading gigabytes.
    """

    path: Path
    size: int
    fingerprint: str
    obs: TensorView
    action: TensorView
    reward: TensorView
    task: TensorView
    mapping: mmap.mmap
    checksums: Mapping[str, tuple[int, int, int]]
    """Of every tensor member: where its bytes begin, their number, and their CRC-32."""

    @classmethod
    def open(cls, path: str | Path) -> PublishedFile:
        """Maps the file and checks its layout (not its values). Raises a `DataError` that names the file."""
        path = Path(path)
        archive = _Archive(path)
        fields = _fields(path, archive.unpickle())
        lead = fields["obs"].shape[:2]
        views: dict[str, TensorView] = {}
        for key in _KEYS:
            view = fields[key]
            floats = key != "task"
            if (view.dtype in _FLOATS) != floats:
                kind = "a float type" if floats else "an integer type"
                raise _bad(path, f"'{key}' is {view.dtype}, expected {kind}")
            if key in ("reward", "task") and len(view.shape) == 3 and view.shape[2] == 1:
                view = TensorView(view.dtype, view.raw[:, :, 0])
            axes = 3 if key in ("obs", "action") else 2
            if len(view.shape) != axes or view.shape[:2] != lead:
                raise _bad(
                    path,
                    f"'{key}' has shape {list(view.shape)} and 'obs' {list(fields['obs'].shape)}; expected "
                    "obs [episodes, steps, O], action [episodes, steps, A], reward and task "
                    "[episodes, steps] or [episodes, steps, 1]",
                )
            views[key] = view
        return cls(
            path,
            archive.size,
            archive.fingerprint(),
            mapping=archive.mapping,
            checksums=archive.checksums(),
            **views,
        )

    def __len__(self) -> int:
        """The number of episodes."""
        return self.obs.shape[0]

    @property
    def episode_steps(self) -> int:
        """T: rows an episode, one more than its decisions."""
        return self.obs.shape[1]

    @property
    def obs_dim(self) -> int:
        return self.obs.shape[2]

    @property
    def action_dim(self) -> int:
        return self.action.shape[2]

    def verify(self) -> None:
        """Reads the tensors' bytes once and compares their checksums; a `DataError` says which one differs."""
        with memoryview(self.mapping) as whole:
            for member, (start, size, expected) in self.checksums.items():
                found = 0
                for position in range(start, start + size, _CHECK_BYTES):
                    with whole[position : min(position + _CHECK_BYTES, start + size)] as part:
                        found = zlib.crc32(part, found)
                    self._forget()
                if found != expected:
                    raise DataError(
                        f"{self.path}: member '{member}' has CRC-32 {found:08x}, expected {expected:08x}: the file is "
                        "damaged. Get it again."
                    )

    def _forget(self) -> None:
        """The pages read so far need not count as this process's memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)

    def blocks(self, episodes: int, first: int = 0, stop: int | None = None) -> Iterator[Block]:
        """The file's episodes from `first` to `stop - 1` (default all) in order, at most `episodes` at a time."""
        end = len(self) if stop is None else stop
        for start in range(first, end, episodes):
            last = min(start + episodes, end)
            yield Block(
                first_episode=start,
                obs=self.obs.floats(start, last),
                action=self.action.floats(start, last),
                reward=self.reward.floats(start, last),
                task=self.task.integers(start, last),
            )
            self._forget()


class _Archive:
    """The zip archive that torch.save writes: where each member's bytes lie, and the mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            found = "a folder" if path.is_dir() else "nothing"
            raise DataError(f"{path}: found {found}, expected a dataset file (.pt); check the path.")
        self.size = path.stat().st_size
        self._file_offsets: dict[str, int] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
                if len(pickles) != 1:
                    raise _bad(path, f"a zip archive with {len(pickles)} data.pkl, not a file of torch.save")
                prefix = pickles[0].removesuffix("data.pkl")
                self.members = {
                    i.filename.removeprefix(prefix): i for i in archive.infolist() if i.filename.startswith(prefix)
                }
                for name, info in self.members.items():
                    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                        raise DataError(
                            f"{path}: member '{printable(name)}' is compressed or encrypted, expected plain bytes; "
                            "unpack it and save the data again with torch.save."
                        )
                if self.members["data.pkl"].file_size > _MAX_PICKLE_BYTES:
                    raise _bad(path, "its data.pkl is too large for a dataset file")
                self.pickle = archive.read(pickles[0])
                order = archive.read(prefix + "byteorder").strip() if "byteorder" in self.members else b"little"
        except (zipfile.BadZipFile, struct.error, EOFError, NotImplementedError) as error:
            raise _bad(path, f"{self._what_instead()} ({printable(error)})") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check the file's permissions.") from error
        if order != b"little":
            raise DataError(
                f"{path}: byte order is {order.decode('ascii', 'replace')!r}, expected 'little'; save "
                "the data again on a little-endian machine."
            )
        with path.open("rb") as file:
            self.mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _what_instead(self) -> str:
        with self.path.open("rb") as file:
            head = file.read(64)
        if head.startswith(b"version https://git-lfs"):
            return "is a Git LFS pointer, not the dataset file itself"
        if head.startswith(b"PK"):
            return "is cut off or damaged"
        return "is not a file that torch.save writes (a zip archive)"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.pickle)
        for name, info in sorted(self.members.items()):
            digest.update(f"{name}\0{info.file_size}\0{info.CRC:08x}\n".encode())
        return digest.hexdigest()

    def checksums(self) -> dict[str, tuple[int, int, int]]:
        """Of the members whose place is known by now (those that hold tensors): start, bytes, CRC-32."""
        known = {f"data/{key}": start for key, start in self._file_offsets.items()}
        return {name: (start, self.members[name].file_size, self.members[name].CRC) for name, start in known.items()}

    def unpickle(self) -> object:
        """The pickle's root, made of plain containers, `TensorView`, `_TensorDict` and `_Inert`."""
        path = self.path
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(self.pickle)):
                if count > _MAX_INSTRUCTIONS:
                    raise _bad(path, f"its pickle has more than {_MAX_INSTRUCTIONS} instructions")
                # A small file can ask for a memo of many gigabytes; torch numbers its memo from 0 upwards.
                if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(self.pickle):
                    raise _bad(path, "its pickle asks for an absurd memo")
            return _Unpickler(self).load()
        except DataError:
            raise
        except Exception as error:  # damaged bytes make the unpickler raise nearly any error
            raise _bad(
                path, f"its pickle is damaged or of an unknown form ({error.__class__.__name__}: {printable(error)})"
            ) from error

    def storage(self, kind: str, key: str, numel: int) -> _Storage:
        """The member that holds a storage of `numel` elements (bytes for an untyped one)."""
        info = self.members.get(f"data/{key}")
        if info is None:
            raise _bad(self.path, f"member 'data/{printable(key)}' is missing")
        itemsize = _DTYPES[kind].itemsize if kind else 1
        if info.file_size != numel * itemsize:
            raise _bad(self.path, f"member 'data/{key}' has {info.file_size} bytes, its storage {numel * itemsize}")
        if key not in self._file_offsets:
            # The name and the padding before the bytes are as long as the member's own header says.
            header = self.mapping[info.header_offset : info.header_offset + 30]
            if len(header) < 30 or header[:4] != b"PK\3\4":
                raise _bad(self.path, f"member 'data/{key}' is damaged")
            name, extra = struct.unpack("<HH", header[26:30])
            self._file_offsets[key] = info.header_offset + 30 + name + extra
        offset = self._file_offsets[key]
        if offset + info.file_size > self.size:
            raise _bad(self.path, f"member 'data/{key}' ends after the file's end")
        return _Storage(kind, offset, info.file_size)

    def tensor(self, storage: object, dtype: str, offset: object, shape: object, stride: object) -> TensorView:
        """A view on the mapping; raises a `DataError` where it would leave its storage."""
        if not isinstance(storage, _Storage) or dtype not in _DTYPES:
            raise _bad(self.path, "a tensor has no storage of a known type")
        sizes, strides = _whole_numbers(shape), _whole_numbers(stride)
        start = _whole_numbers((offset,))
        if sizes is None or strides is None or start is None or len(sizes) != len(strides):
            raise _bad(self.path, "a tensor's shape, strides or offset are not whole numbers")
        kind = _DTYPES[dtype]
        last = start[0] + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
        if 0 in sizes or (last + 1) * kind.itemsize > storage.nbytes:
            raise _bad(
                self.path,
                f"a tensor of shape {list(sizes)}, strides {list(strides)} and offset {start[0]} "
                f"is empty or leaves its storage of {storage.nbytes} bytes",
            )
        raw: npt.NDArray[Any] = np.ndarray(
            shape=sizes,
            dtype=kind,
            buffer=self.mapping,
            offset=storage.offset + start[0] * kind.itemsize,
            strides=tuple(s * kind.itemsize for s in strides),
        )
        return TensorView(dtype, raw)


@dataclass(frozen=True)
class _Storage:
    """A member's bytes: `offset` counts from the file's start."""

    dtype: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class _Name:
    """A dtype or storage class named by the pickle. Not callable, so the pickle can do nothing with it."""

    name: str
    storage: bool


class _Inert:
    """Stands for an object that is of no use here: takes any arguments and any state, does nothing."""

    kind = "object"

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _TensorDict:
    """Stands for a TensorDict: keeps its state, nothing else."""

    state: object = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Knows the few names below; a foreign name raises a `DataError` before anything is looked up.

    What stands for the names are bound methods and inert classes, whose attributes a pickle cannot change.
    """

    def __init__(self, archive: _Archive) -> None:
        super().__init__(io.BytesIO(archive.pickle))
        self._archive = archive

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return self._tensor_v2
        if module == "torch._utils" and name == "_rebuild_tensor_v3":
            return self._tensor_v3
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _Name(_STORAGES[name], storage=True)
        if module == "torch" and name in _DTYPES:
            return _Name(name, storage=False)
        if module == "torch" and name == "Size":
            return tuple
        if module == "collections" and name == "OrderedDict":
            return dict
        if module in ("__builtin__", "builtins") and name == "set":
            return set
        if (module, name) in (("tensordict.tensordict", "TensorDict"), ("tensordict._td", "TensorDict")):
            return _TensorDict
        if module == "tensordict" and name == "TensorDict":
            return _TensorDict
        if module == "tensordict._reductions" and name == "_make_td":
            return self._make_td
        if module == "tensordict.utils" and name == "_StringOnlyDict":
            return dict
        if (module, name) == ("torch", "device") or module.split(".")[0] == "tensordict":
            return type("_Inert", (_Inert,), {"kind": printable(f"{module}.{name}")})
        found = printable(f"{module}.{name}")
        raise DataError(
            f"{self._archive.path}: its pickle names '{found}', which has no place in a dataset "
            "file; nothing of it was run. Do not load this file by other means unless you trust its maker."
        )

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise _bad(self._archive.path, "its pickle names a storage in an unknown way")
        _, kind, key, _, numel = pid
        count = _whole_numbers((numel,))
        if not isinstance(kind, _Name) or not kind.storage or not isinstance(key, str) or count is None:
            raise _bad(self._archive.path, "its pickle describes a storage wrongly")
        return self._archive.storage(kind.name, key, count[0])

    def _tensor_v2(self, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> TensorView:
        """Arguments of torch._utils._rebuild_tensor_v2: two more that say nothing here, and flags."""
        if len(rest) > 2 and rest[2]:
            raise _bad(self._archive.path, f"a tensor with flags {rest[2]!r} is not supported")
        return self._archive.tensor(storage, getattr(storage, "dtype", ""), offset, shape, stride)

    def _tensor_v3(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        stride: Any,
        grad: Any,
        hooks: Any,
        dtype: Any,
        *flags: Any,
    ) -> TensorView:
        """Arguments of torch._utils._rebuild_tensor_v3, which names the dtype apart from the storage."""
        if flags and flags[0]:
            raise _bad(self._archive.path, f"a tensor with flags {flags[0]!r} is not supported")
        name = dtype.name if isinstance(dtype, _Name) and not dtype.storage else ""
        return self._archive.tensor(storage, name, offset, shape, stride)

    def _make_td(self, kind: Any, state: Any) -> Any:
        made = kind()
        made.__setstate__(state)
        return made


def _bad(path: Path, what: str) -> DataError:
    return DataError(f"{path}: {what}; download it again, or save it again with torch.save.")


def _whole_numbers(values: object) -> tuple[int, ...] | None:
    """`values` when it is a tuple or list of integers not below 0, else None."""
    if not isinstance(values, tuple | list):
        return None
    if any(type(v) is not int or v < 0 for v in values):
        return None
    return tuple(values)


def _fields(path: Path, root: object) -> dict[str, TensorView]:
    """The four tensors in the pickle's root."""
    if isinstance(root, _TensorDict):
        root = root.state.get("_tensordict") if isinstance(root.state, dict) else None
    if not isinstance(root, dict):
        found = root.kind if isinstance(root, _Inert) else type(root).__name__
        raise _bad(path, f"holds {found}, expected a TensorDict with {', '.join(_KEYS)}")
    fields: dict[str, TensorView] = {}
    for key in _KEYS:
        value = root.get(key)
        if value is None:
            names = [k if isinstance(k, str) else type(k).__name__ for k in root]
            present = printable(", ".join(names)) or "nothing"
            raise DataError(f"{path}: has no '{key}' (found: {present}); expected {', '.join(_KEYS)}.")
        if not isinstance(value, TensorView):
            found = value.kind if isinstance(value, _Inert) else type(value).__name__.strip("_")
            raise _bad(path, f"'{key}' is a {found}, expected a plain tensor")
        if len(value.shape) < 2:
            raise _bad(path, f"'{key}' has shape {list(value.shape)}, expected [episodes, steps, …]")
        fields[key] = value
    return fields
