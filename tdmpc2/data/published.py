"""Reads a dataset file in the published format without running any code the file brings along.

Such a file is what `torch.save` writes (see `tdmpc2/archive.py`). The pickle may name only what is listed here, and
every name becomes an inert stand-in; each tensor becomes a view, checked against its member's bounds, on the file
mapped read-only. Nothing is read whole, so a file may be larger than memory.

Known forms of the TensorDict inside (looked up in files written by those releases):
- 0.0 to 0.2: `tensordict.tensordict.TensorDict`, made empty and then given its state;
- 0.3 and 0.4: `tensordict._td.TensorDict`, likewise;
- 0.5 to 0.14: the same class and its state passed to `tensordict._reductions._make_td`.
In all of them the tensors are in the state's `_tensordict`. A plain dictionary of tensors is read too.
"""

from __future__ import annotations

import hashlib
import mmap
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tdmpc2.archive import MAX_AXES, Archive, Damaged, Name, read_pickle, refusing, whole_numbers
from tdmpc2.errors import DataError, printable

_MAX_PICKLE_BYTES = 4 << 20  # a published file's pickle has 600 bytes
_CHECK_BYTES = 32 << 20
_MAX_INSTRUCTIONS = 5_000  # a published file's has some 200
_MAX_REPEATED = 4  # the four tensors may name that many times the bytes stored: a task id once for all its steps
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
    """A tensor of the file, still in the file: `raw` is a read-only view on the mapping.

    `held` are the elements that its storage holds; strides of 0 can make a view of more.
    """

    dtype: str
    raw: npt.NDArray[Any]
    held: int

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
        if not path.is_file():
            found = "a folder" if path.is_dir() else "nothing"
            raise DataError(f"{path}: found {found}, expected a dataset file (.pt); check the path.")
        with refusing(path, DataError, lambda reason: _get_again(_described(path, reason))):
            return cls._opened(path)

    @classmethod
    def _opened(cls, path: Path) -> PublishedFile:
        archive = Archive(path, max_pickle_bytes=_MAX_PICKLE_BYTES, verify=False)
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), archive.size, access=mmap.ACCESS_READ)
        maker = _Views(path, archive, mapping)
        fields = _fields(path, read_pickle(archive.pickle, maker, _MAX_INSTRUCTIONS))
        lead = fields["obs"].shape[:2]
        views: dict[str, TensorView] = {}
        for key in _KEYS:
            view = fields[key]
            floats = key != "task"
            if (view.dtype in _FLOATS) != floats:
                kind = "a float type" if floats else "an integer type"
                raise _bad(path, f"'{key}' is {view.dtype}, expected {kind}")
            if key in ("reward", "task") and len(view.shape) == 3 and view.shape[2] == 1:
                view = TensorView(view.dtype, view.raw[:, :, 0], view.held)
            axes = 3 if key in ("obs", "action") else 2
            if len(view.shape) != axes or view.shape[:2] != lead:
                raise _bad(
                    path,
                    f"'{key}' has shape {list(view.shape)} and 'obs' {list(fields['obs'].shape)}; expected "
                    "obs [episodes, steps, O], action [episodes, steps, A], reward and task "
                    "[episodes, steps] or [episodes, steps, 1]",
                )
            views[key] = view
        checksums = maker.checksums()
        _check_stored(path, views, sum(size for _, size, _ in checksums.values()))
        return cls(path, archive.size, _fingerprint(archive), mapping=mapping, checksums=checksums, **views)

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


def _check_stored(path: Path, views: Mapping[str, TensorView], stored: int) -> None:
    """Refuses data that is not there: a small file whose strides repeat a few numbers over gigabytes."""
    obs = views["obs"]
    named = sum(view.raw.size * view.raw.itemsize for view in views.values())
    if obs.raw.size > obs.held or named > _MAX_REPEATED * stored:
        needed = f"{named / 1e9:.1f} GB" if named >= 1e8 else f"{named:,} bytes"
        raise _bad(
            path,
            f"found {stored:,} bytes of tensors, expected at least {needed} for {len(obs.raw):,} episodes of "
            f"{obs.shape[1]:,} steps: the same numbers are named many times over",
        )


def _described(path: Path, reason: str) -> str:
    """What is wrong with a file, in words for what was found instead where that is plain to see."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return reason
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the dataset file itself"
    if head.startswith(b"PK"):
        return f"is damaged, cut off or of an unknown form: {reason}"
    return f"is not a file that torch.save writes (a zip archive): {reason}"


def _fingerprint(archive: Archive) -> str:
    digest = hashlib.sha256(archive.pickle)
    for name, info in sorted(archive.members.items()):
        digest.update(f"{name}\0{info.file_size}\0{info.CRC:08x}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Storage:
    """A member's bytes: `offset` counts from the file's start."""

    dtype: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class _Inert:
    """Stands for an object that is of no use here."""

    kind: str


class _TensorDict:
    """Stands for a TensorDict: keeps its state, nothing else."""

    def __init__(self, state: object = None) -> None:
        self.state = state


_TENSORDICTS = (
    Name("tensordict.tensordict", "TensorDict"),
    Name("tensordict._td", "TensorDict"),
    Name("tensordict", "TensorDict"),
)
_DICTS = (Name("collections", "OrderedDict"), Name("tensordict.utils", "_StringOnlyDict"))
_SETS = (Name("__builtin__", "set"), Name("builtins", "set"))
_TENSOR_V2 = Name("torch._utils", "_rebuild_tensor_v2")
_TENSOR_V3 = Name("torch._utils", "_rebuild_tensor_v3")
_SIZE = Name("torch", "Size")
_DEVICE = Name("torch", "device")
_MAKE_TD = Name("tensordict._reductions", "_make_td")


class _Views:
    """Makes views on the mapped file of the storages and calls that a pickle names (an `archive.Maker`)."""

    def __init__(self, path: Path, archive: Archive, mapping: mmap.mmap) -> None:
        self._path = path
        self._archive = archive
        self._mapping = mapping
        self._places: dict[str, tuple[int, int]] = {}

    def checksums(self) -> dict[str, tuple[int, int, int]]:
        """Of the members that hold tensors: start, bytes, CRC-32."""
        found = {f"data/{key}": place for key, place in self._places.items()}
        return {name: (*place, self._archive.members[name].CRC) for name, place in found.items()}

    def foreign(self, what: str) -> DataError:
        return _bad(self._path, f"its pickle is damaged or of an unknown form ({what})")

    def name(self, name: Name) -> Name:
        """Refuses a foreign name before anything is done with it."""
        known = name in (*_TENSORDICTS, *_DICTS, *_SETS, _TENSOR_V2, _TENSOR_V3, _SIZE, _DEVICE, _MAKE_TD)
        if known or _storage_dtype(name) is not None or _dtype(name) or name.module.split(".")[0] == "tensordict":
            return name
        raise DataError(
            f"{self._path}: its pickle names '{printable(name)}', which has no place in a dataset "
            "file; nothing of it was run. Do not load this file by other means unless you trust its maker."
        )

    def build(self, target: object, state: object) -> None:
        if isinstance(target, _TensorDict):
            target.state = state
        elif not isinstance(target, dict | _Inert):
            raise self.foreign("attributes of an object")

    def call(self, called: object, arguments: tuple[Any, ...]) -> object:
        if not isinstance(called, Name):
            raise self.foreign("a call")
        if called in _TENSORDICTS:
            return _TensorDict()
        if called in (*_DICTS, *_SETS, _SIZE):
            return self._container(called, arguments)
        if called == _TENSOR_V2 and len(arguments) >= 4:
            # Two more that say nothing here, and flags.
            storage = arguments[0]
            dtype = storage.dtype if isinstance(storage, _Storage) else ""
            return self._tensor(dtype, arguments[:4], flags=arguments[6:7])
        if called == _TENSOR_V3 and len(arguments) >= 7:
            # It names the dtype apart from the storage.
            dtype = _dtype(arguments[6]) if isinstance(arguments[6], Name) else ""
            return self._tensor(dtype, arguments[:4], flags=arguments[7:8])
        if called == _MAKE_TD and len(arguments) == 2:
            kind, state = arguments
            return _TensorDict(state) if kind in _TENSORDICTS else _Inert(printable(kind))
        if called == _DEVICE or called.module.split(".")[0] == "tensordict":
            return _Inert(printable(called))
        raise self.foreign(f"a call of {called}")

    def _container(self, called: Name, arguments: tuple[Any, ...]) -> object:
        """A dictionary, a list of a set's members or a tuple of a shape's numbers: empty, or of one list."""
        items = arguments[0] if arguments else ()
        if len(arguments) > 1 or not isinstance(items, list | tuple):
            raise self.foreign(f"a call of {called}")
        if called in _SETS:
            return list(items)
        if called == _SIZE:
            return tuple(items)
        found = {}
        for pair in items:
            if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str | int):
                raise self.foreign(f"a call of {called}")
            found[pair[0]] = pair[1]
        return found

    def storage(self, pid: object) -> _Storage:
        """The member that holds a storage of so many elements (bytes for an untyped one)."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise Damaged("its pickle names a storage in an unknown way")
        _, kind, key, _, numel = pid
        count, dtype = whole_numbers((numel,)), _storage_dtype(kind) if isinstance(kind, Name) else None
        if dtype is None or not isinstance(key, str) or count is None:
            raise Damaged("its pickle describes a storage wrongly")
        if key not in self._places:
            self._places[key] = self._archive.place(key)
        offset, nbytes = self._places[key]
        expected = count[0] * (_DTYPES[dtype].itemsize if dtype else 1)
        if nbytes != expected:
            raise Damaged(f"member 'data/{key}' has {nbytes} bytes, its storage {expected}")
        return _Storage(dtype, offset, nbytes)

    def _tensor(self, dtype: str, place: tuple[Any, ...], flags: tuple[Any, ...]) -> TensorView:
        """A view on the mapping at (storage, offset, shape, strides); `Damaged` where it would leave its storage."""
        storage, offset, shape, stride = place
        if flags and flags[0]:
            raise Damaged("a tensor with flags is not supported")
        if not isinstance(storage, _Storage) or dtype not in _DTYPES:
            raise Damaged("a tensor has no storage of a known type")
        sizes, strides, start = whole_numbers(shape), whole_numbers(stride), whole_numbers((offset,))
        if sizes is None or strides is None or start is None or not len(sizes) == len(strides) <= MAX_AXES:
            raise Damaged("a tensor's shape, strides or offset are not whole numbers that fit together")
        kind = _DTYPES[dtype]
        last = start[0] + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
        held = storage.nbytes // kind.itemsize
        if 0 in sizes or last >= held:
            raise Damaged(
                f"a tensor of shape {list(sizes)}, strides {list(strides)} and offset {start[0]} "
                f"is empty or leaves its storage of {storage.nbytes} bytes"
            )
        raw: npt.NDArray[Any] = np.ndarray(
            shape=sizes,
            dtype=kind,
            buffer=self._mapping,
            offset=storage.offset + start[0] * kind.itemsize,
            strides=tuple(s * kind.itemsize for s in strides),
        )
        return TensorView(dtype, raw, held)


def _storage_dtype(name: Name) -> str | None:
    """The dtype of a storage class, empty for an untyped one; None for what is no storage class."""
    return _STORAGES.get(name.name) if name.module in ("torch", "torch.storage") else None


def _dtype(name: Name) -> str:
    """The name of a dtype, empty for what is none."""
    return name.name if name.module == "torch" and name.name in _DTYPES else ""


def _bad(path: Path, what: str) -> DataError:
    return DataError(f"{path}: {_get_again(what)}")


def _get_again(what: str) -> str:
    return f"{printable(what, 500)}; download it again, or save it again with torch.save."


def _fields(path: Path, root: object) -> dict[str, TensorView]:
    """The four tensors in the pickle's root."""
    if isinstance(root, _TensorDict):
        root = root.state.get("_tensordict") if isinstance(root.state, dict) else None
    if not isinstance(root, dict):
        found = root.kind if isinstance(root, _Inert) else type(root).__name__.strip("_")
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
