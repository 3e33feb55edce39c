"""The project's own episode store: memory-mapped, append-only, whole after a crash at any moment.

    DIR/
      store.json            what the store holds and every shard's sizes and checksums; replaced last
      store.lock            held while a writer is open
      shard-00000.rows      little-endian float32 [episodes, T, O+A+1]: one row is [obs | action | reward]
      shard-00000.tasks     little-endian int16 [episodes]: ids in the store's own order of tasks
      shard-00000.returns   little-endian float32 [episodes]: sum of the rewards from step 1 on

One slice of H+1 steps is one contiguous run of bytes. T is the decisions of an episode plus 1: action and
reward of row t led to the observation of row t, so those of row 0 stand for nothing and are never used.
Opening reads store.json and the shards' sizes only. A reader sees the shards listed when it opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from tdmpc2.data.checks import EpisodeChecker, known_obs_dims
from tdmpc2.errors import DataError
from tdmpc2.fileio import atomic_write_bytes, atomic_write_text, write_error
from tdmpc2.versions import package_versions

FORMAT = "tdmpc2-episodes"
VERSION = 1
_HEADER = "store.json"
_LOCK = "store.lock"
_DTYPES = {"float32": np.dtype("<f4")}
_TASK_DTYPE = np.dtype("<i2")
_RETURN_DTYPE = np.dtype("<f4")
_SHARD_NAME = re.compile(r"shard-\d{5,}")
_BLOCK_BYTES = 16 << 20
_SHARD_TYPES: dict[str, type] = {
    "name": str,
    "episodes": int,
    "rows_sha256": str,
    "tasks_sha256": str,
    "returns_sha256": str,
    "source": str,
    "details": dict,
    "created_with": dict,
}


@dataclass(frozen=True)
class Shard:
    """One shard as store.json lists it. `details` is whatever its writer noted about the source."""

    name: str
    episodes: int
    rows_sha256: str
    tasks_sha256: str
    returns_sha256: str
    source: str
    details: dict[str, Any]
    created_with: dict[str, str]


@dataclass(frozen=True)
class Header:
    """The content of store.json."""

    tasks: tuple[str, ...]
    obs_dim: int
    action_dim: int
    episode_steps: int
    dtype: str = "float32"
    notes: str = ""
    shards: tuple[Shard, ...] = ()

    @property
    def width(self) -> int:
        """Columns of a row: O + A + 1."""
        return self.obs_dim + self.action_dim + 1

    @property
    def episode_bytes(self) -> int:
        return self.episode_steps * self.width * _DTYPES[self.dtype].itemsize


class EpisodeStore:
    """Episodes of several tasks on disk; make one with `create` or `open`.

    `notes` and each shard's `source` and `details` say where the data comes from.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.header = header
        self._rows: dict[int, npt.NDArray[np.float32]] = {}
        self._mappings: dict[int, mmap.mmap] = {}

    @classmethod
    def create(
        cls,
        path: str | Path,
        task_set_names: Sequence[str],
        obs_dim: int,
        action_dim: int,
        episode_steps: int,
        notes: str = "",
    ) -> EpisodeStore:
        """Makes an empty store in a new or empty folder. `episode_steps` is T, the decisions plus 1."""
        path = Path(path)
        names = tuple(task_set_names)
        if not names or len(set(names)) != len(names):
            raise DataError(f"{path}: found tasks {', '.join(names) or 'none'}, expected at least one, none twice.")
        if len(names) > np.iinfo(np.int16).max:
            raise DataError(f"{path}: found {len(names)} tasks, expected at most {np.iinfo(np.int16).max}.")
        if obs_dim < 1 or action_dim < 1 or episode_steps < 2:
            raise DataError(
                f"{path}: found obs_dim {obs_dim}, action_dim {action_dim} and episode_steps "
                f"{episode_steps}, expected at least 1, 1 and 2."
            )
        widest = max(known_obs_dims(names) or (0,))
        if widest > obs_dim:
            raise DataError(f"{path}: found obs_dim {obs_dim}, expected at least {widest}, its widest task's.")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise DataError(f"{path}: found a file or a folder with content, expected none; choose a new folder.")
        store = cls(path, Header(names, obs_dim, action_dim, episode_steps, notes=notes))
        store._write_header(store.header)
        return store

    @classmethod
    def open(cls, path: str | Path) -> EpisodeStore:
        """Opens a store; checks its version and that every shard has its full size. Reads no data."""
        path = Path(path)
        header = _read_header(path / _HEADER)
        for shard in header.shards:
            for suffix, size in _sizes(header, shard.episodes).items():
                file = path / f"{shard.name}.{suffix}"
                found = f"{file.stat().st_size} bytes" if file.is_file() else "no such file"
                if found != f"{size} bytes":
                    raise DataError(
                        f"{file}: found {found}, expected {size} bytes; the store is incomplete. Copy "
                        "the file again from where it came, or make the store anew."
                    )
        return cls(path, header)

    def __len__(self) -> int:
        """The number of episodes."""
        return sum(shard.episodes for shard in self.header.shards)

    @property
    def num_transitions(self) -> int:
        """Rows, step 0 of each episode included (so MT30 counts as its publishers count it)."""
        return len(self) * self.episode_steps

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names; a task's position is its id in this store."""
        return self.header.tasks

    @property
    def obs_dim(self) -> int:
        return self.header.obs_dim

    @property
    def action_dim(self) -> int:
        return self.header.action_dim

    @property
    def episode_steps(self) -> int:
        """T: rows an episode, one more than its decisions."""
        return self.header.episode_steps

    @property
    def notes(self) -> str:
        return self.header.notes

    @property
    def shards(self) -> tuple[Shard, ...]:
        return self.header.shards

    @cached_property
    def shard_starts(self) -> npt.NDArray[np.int64]:
        """int64 [shards + 1]: the first episode of each shard, then the number of episodes."""
        return np.cumsum([0] + [shard.episodes for shard in self.shards], dtype=np.int64)

    @cached_property
    def task_ids(self) -> npt.NDArray[np.int16]:
        """int16 [E]: each episode's task, as a position in `tasks`."""
        return self._small("tasks", _TASK_DTYPE)

    def returns(self) -> npt.NDArray[np.float32]:
        """float32 [E]: each episode's return, the sum of its rewards from step 1 on."""
        return self._small("returns", _RETURN_DTYPE)

    def rows(self, shard: int) -> npt.NDArray[np.float32]:
        """[episodes * T, O+A+1]: a shard's rows, mapped read-only."""
        if shard not in self._rows:
            path = self.path / f"{self.shards[shard].name}.rows"
            try:
                with path.open("rb") as file:
                    self._mappings[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                values = np.frombuffer(self._mappings[shard], dtype=_DTYPES[self.header.dtype])
                self._rows[shard] = values.reshape(-1, self.header.width)
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: cannot be mapped ({error}); check the file and its permissions.") from error
        return self._rows[shard]

    def will_read(self, shard: int, first_rows: npt.NDArray[np.int64], count: int) -> None:
        """Tells the system to fetch `count` rows from each of `first_rows` on, all at once, in the background.

        Without this, rows that are not in memory are fetched one after the other, as they are touched.
        """
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        self.rows(shard)
        row_bytes = self.header.width * _DTYPES[self.header.dtype].itemsize
        starts = first_rows * row_bytes
        pages = starts - starts % mmap.PAGESIZE
        sizes = starts - pages + count * row_bytes
        advise = self._mappings[shard].madvise
        for page, size in zip(pages.tolist(), sizes.tolist(), strict=True):
            advise(mmap.MADV_WILLNEED, page, size)

    def episode(self, index: int) -> dict[str, Any]:
        """Views of one episode: obs [T,O], action [T,A], reward [T], and its task's name."""
        if not 0 <= index < len(self):
            raise DataError(f"{self.path}: found episode {index}, expected 0 to {len(self) - 1}.")
        shard = int(np.searchsorted(self.shard_starts, index, side="right")) - 1
        first = (index - int(self.shard_starts[shard])) * self.episode_steps
        rows = self.rows(shard)[first : first + self.episode_steps]
        return {
            "obs": rows[:, : self.obs_dim],
            "action": rows[:, self.obs_dim : -1],
            "reward": rows[:, -1],
            "task": self.tasks[int(self.task_ids[index])],
        }

    def verify(self) -> int:
        """Reads every shard and compares its checksums; returns the bytes read, or raises a `DataError`."""
        total = 0
        for shard in self.shards:
            expected = {
                "rows": shard.rows_sha256,
                "tasks": shard.tasks_sha256,
                "returns": shard.returns_sha256,
            }
            for suffix, checksum in expected.items():
                file = self.path / f"{shard.name}.{suffix}"
                digest = hashlib.sha256()
                try:
                    with file.open("rb") as content:
                        while block := content.read(_BLOCK_BYTES):
                            digest.update(block)
                            total += len(block)
                except OSError as error:
                    raise DataError(f"{file}: cannot be read ({error.strerror}).") from error
                if digest.hexdigest() != checksum:
                    raise DataError(
                        f"{file}: found SHA-256 {digest.hexdigest()[:12]}…, expected "
                        f"{checksum[:12]}…; its content "
                        f"has changed. It was made from {shard.source or 'an unnamed source'}: make "
                        "the store anew."
                    )
        return total

    def append(
        self,
        obs: npt.ArrayLike,
        action: npt.ArrayLike,
        reward: npt.ArrayLike,
        task: npt.ArrayLike,
        source: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Adds obs [E,T,O], action [E,T,A], reward [E,T], task [E] as one shard: checked, durable on return."""
        with self.writer(source=source, details=details) as writer:
            writer.write(obs, action, reward, task)

    def writer(self, source: str = "", details: Mapping[str, Any] | None = None) -> StoreWriter:
        """A context manager that adds one shard in blocks; nothing of it is seen until it ends well."""
        return StoreWriter(self, source, dict(details or {}))

    def check_space(self, episodes: int) -> None:
        """Raises a `DataError` when the disk cannot hold that many more episodes."""
        needed = episodes * self.header.episode_bytes
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise DataError(
                f"{self.path}: found {free / 1e9:.1f} GB free, expected at least {needed / 1e9:.1f} GB for "
                f"{episodes:,} episodes; free some space or choose another disk."
            )

    def _small(self, suffix: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        parts = [np.fromfile(self.path / f"{s.name}.{suffix}", dtype=dtype) for s in self.shards]
        native = dtype.newbyteorder("=")
        return np.concatenate(parts).astype(native) if parts else np.empty(0, native)

    def _write_header(self, header: Header) -> None:
        content = {"format": FORMAT, "version": VERSION, **asdict(header)}
        atomic_write_text(self.path / _HEADER, json.dumps(content, indent=2) + "\n")

    def _reload(self) -> None:
        """Takes over the header on disk (another process may have appended) and forgets what was derived."""
        self.header = _read_header(self.path / _HEADER)
        self.__dict__.pop("shard_starts", None)
        self.__dict__.pop("task_ids", None)


class StoreWriter:
    """Writes one shard, as a context manager (see `EpisodeStore.writer`); `episodes` counts those written."""

    def __init__(self, store: EpisodeStore, source: str, details: dict[str, Any]) -> None:
        self.episodes = 0
        self._store = store
        self._source = source
        self._details = details
        self._tasks: list[npt.NDArray[np.int16]] = []
        self._returns: list[npt.NDArray[np.float32]] = []
        self._digest = hashlib.sha256()
        self._whole = True
        self._lock = FileLock(store.path / _LOCK)
        self._checker = EpisodeChecker(
            source=source or str(store.path),
            tasks=store.tasks,
            obs_dim=store.obs_dim,
            action_dim=store.action_dim,
            episode_steps=store.episode_steps,
            obs_dims=known_obs_dims(store.tasks),
        )

    def __enter__(self) -> StoreWriter:
        store = self._store
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise DataError(f"{store.path}: another writer has this store open; wait until it has ended.") from error
        except OSError as error:
            raise write_error(store.path / _LOCK, error) from error
        try:
            store._reload()
            for leftover in store.path.glob(".*.tmp"):  # of a writer that was killed
                leftover.unlink(missing_ok=True)
            number = 1 + max((int(shard.name.removeprefix("shard-")) for shard in store.shards), default=-1)
            self._name = f"shard-{number:05d}"
            self._rows = store.path / f"{self._name}.rows"
            self._temporary = store.path / f".{self._rows.name}.tmp"
            self._file = self._temporary.open("wb")
        except OSError as error:
            self._lock.release()
            raise write_error(store.path, error) from error
        except BaseException:
            self._lock.release()
            raise
        return self

    def write(self, obs: npt.ArrayLike, action: npt.ArrayLike, reward: npt.ArrayLike, task: npt.ArrayLike) -> None:
        """Adds obs [E,T,O], action [E,T,A], reward [E,T] and task [E], after checking them (see `checks`)."""
        o, a, r = (np.asarray(x, dtype=np.float32) for x in (obs, action, reward))
        ids = self._checker.check(o, a, r, np.asarray(task), self.episodes)
        header = self._store.header
        step = max(1, _BLOCK_BYTES // header.episode_bytes)
        try:
            for start in range(0, len(o), step):
                part = slice(start, start + step)
                rows = np.concatenate([o[part], a[part], r[part, :, None]], axis=-1)
                data = np.ascontiguousarray(rows, dtype=_DTYPES[header.dtype]).data
                self._digest.update(data)
                self._file.write(data)
        except BaseException as error:
            self._whole = False  # this block may be half written, so the shard must never be seen
            if isinstance(error, OSError):
                raise write_error(self._rows, error) from error
            raise
        self._tasks.append(ids)
        self._returns.append(r[:, 1:].sum(axis=1, dtype=np.float64).astype(np.float32))
        self.episodes += len(o)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._whole and self.episodes:
                self._publish()
        finally:
            with contextlib.suppress(OSError):  # only what is not wanted can still be in the buffer
                self._file.close()
            with contextlib.suppress(OSError):  # what is left is removed by the next writer
                self._temporary.unlink(missing_ok=True)
            self._lock.release()

    def _publish(self) -> None:
        """Rows, small files, header, in this order: only the last makes the shard part of the store."""
        store = self._store
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._temporary.replace(self._rows)
        except OSError as error:
            raise write_error(self._rows, error) from error
        tasks = np.concatenate(self._tasks).astype(_TASK_DTYPE).tobytes()
        returns = np.concatenate(self._returns).astype(_RETURN_DTYPE).tobytes()
        atomic_write_bytes(store.path / f"{self._name}.tasks", tasks)
        atomic_write_bytes(store.path / f"{self._name}.returns", returns)
        shard = Shard(
            name=self._name,
            episodes=self.episodes,
            rows_sha256=self._digest.hexdigest(),
            tasks_sha256=hashlib.sha256(tasks).hexdigest(),
            returns_sha256=hashlib.sha256(returns).hexdigest(),
            source=self._source,
            details=self._details,
            created_with=package_versions(),
        )
        store._write_header(replace(store.header, shards=(*store.shards, shard)))
        store._reload()


def _sizes(header: Header, episodes: int) -> dict[str, int]:
    """Bytes of each file of a shard, by suffix."""
    return {
        "rows": episodes * header.episode_bytes,
        "tasks": episodes * _TASK_DTYPE.itemsize,
        "returns": episodes * _RETURN_DTYPE.itemsize,
    }


def _read_header(path: Path) -> Header:
    """Reads and checks store.json; every fault is a `DataError` that names it."""
    if not path.is_file():
        raise DataError(f"{path}: found no such file, expected an episode store's; check the store's folder.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); copy the store again, or make it anew.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: is not the header of an episode store; check the store's folder.")
    if content.get("version") != VERSION:
        raise DataError(
            f"{path}: found store version {content.get('version')}, expected {VERSION}; use the "
            "version of this program that wrote it, or make the store anew."
        )
    try:
        header = Header(
            tasks=tuple(_typed(content, "tasks", list)),
            obs_dim=_typed(content, "obs_dim", int),
            action_dim=_typed(content, "action_dim", int),
            episode_steps=_typed(content, "episode_steps", int),
            dtype=_typed(content, "dtype", str),
            notes=_typed(content, "notes", str),
            shards=tuple(_shard(item) for item in _typed(content, "shards", list)),
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: {error.args[0]}; copy the store again, or make it anew.") from error
    if header.dtype not in _DTYPES:
        raise DataError(f"{path}: found dtype {header.dtype!r}, expected one of {', '.join(_DTYPES)}.")
    return header


def _shard(item: Any) -> Shard:
    if not isinstance(item, dict):
        raise TypeError("a shard's entry is not an object")
    shard = Shard(**{f.name: _typed(item, f.name, _SHARD_TYPES[f.name]) for f in fields(Shard)})
    if not _SHARD_NAME.fullmatch(shard.name) or shard.episodes < 1:
        raise TypeError(f"shard {shard.name!r} with {shard.episodes} episodes is not a valid entry")
    return shard


def _typed(content: dict[str, Any], key: str, kind: type) -> Any:
    if key not in content:
        raise KeyError(f"key '{key}' is missing")
    if not isinstance(content[key], kind) or isinstance(content[key], bool):
        raise TypeError(f"key '{key}' is {content[key]!r}, expected {kind.__name__}")
    return content[key]
