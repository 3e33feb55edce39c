"""The project's own episode store: memory-mapped, append-only, whole after a crash at any moment.

    DIR/
      store.json    what the store holds: its segments, their sizes and checksums; replaced last
      store.lock    held while a writer is open
      rows.bin      little-endian floats: per episode T rows of [obs | action | reward] in its task's own widths
      tasks.bin     little-endian int16 [episodes]: ids in the store's own order of tasks
      returns.bin   little-endian float32 [episodes]: sum of the rewards from step 1 on

One slice of H+1 steps is one contiguous run of bytes, and a batch is one gather from one mapped file. T is the
decisions of an episode plus 1: action and reward of row t led to the observation of row t, so those of row 0 stand
for nothing and are never used. store.json is the record of what is committed: what the other files hold beyond it
was left by a writer that was killed; readers do not see it and the next writer cuts it off. Opening reads
store.json and the sizes of the files only.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import reprlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tdmpc2.data.checks import EpisodeChecker, known_widths
from tdmpc2.data.mapped import MappedFile
from tdmpc2.errors import DataError, UserError, printable
from tdmpc2.fileio import atomic_write_text, human_bytes, write_error
from tdmpc2.locks import FolderLock, InUse
from tdmpc2.versions import package_versions

if TYPE_CHECKING:
    from tensordict import TensorDict

FORMAT = "tdmpc2-episodes"
VERSION = 2
DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
_HEADER = "store.json"
_UNFINISHED = f".{_HEADER}.*.tmp"
_LOCK = "store.lock"
_CREATE_SECONDS = 10.0
_COLUMNS = ("rows", "tasks", "returns")
_TASK_DTYPE = np.dtype("<i2")
_RETURN_DTYPE = np.dtype("<f4")
_BLOCK_BYTES = 16 << 20
_SEGMENT_TYPES: dict[str, type] = {
    "episodes": int,
    "rows_bytes": int,
    "rows_sha256": str,
    "tasks_sha256": str,
    "returns_sha256": str,
    "source": str,
    "details": dict,
    "created_with": dict,
}


@dataclass(frozen=True)
class Segment:
    """What one writer added, as store.json lists it. `details` is whatever it noted about the source."""

    episodes: int
    rows_bytes: int
    rows_sha256: str
    tasks_sha256: str
    returns_sha256: str
    source: str
    details: dict[str, Any]
    created_with: dict[str, str]


@dataclass(frozen=True)
class Header:
    """The content of store.json. `obs_dims` and `action_dims` are each task's own widths."""

    tasks: tuple[str, ...]
    obs_dims: tuple[int, ...]
    action_dims: tuple[int, ...]
    episode_steps: int
    dtype: str = "float32"
    notes: str = ""
    segments: tuple[Segment, ...] = ()

    @property
    def widths(self) -> npt.NDArray[np.int64]:
        """int64 [tasks]: columns of a row, O + A + 1."""
        return np.asarray(self.obs_dims, np.int64) + np.asarray(self.action_dims, np.int64) + 1

    def episode_bytes(self, task: int | None = None) -> int:
        """Bytes of an episode's rows, of the widest task unless one is named."""
        width = int(self.widths.max() if task is None else self.widths[task])
        return self.episode_steps * width * DTYPES[self.dtype].itemsize

    def committed(self) -> dict[str, int]:
        """Bytes of each file that belong to the store."""
        return _sizes(self.segments)


@dataclass(frozen=True, eq=False)
class EpisodeBlock:
    """Whole episodes, zero-padded to the store's widest task.

    Attributes:
        obs: float32 [E,T,O].
        action: float32 [E,T,A], those of step 0 stand for nothing.
        reward: float32 [E,T], likewise.
        task: int64 [E], positions in the store's tasks.
    """

    obs: npt.NDArray[np.float32]
    action: npt.NDArray[np.float32]
    reward: npt.NDArray[np.float32]
    task: npt.NDArray[np.int64]


class EpisodeStore:
    """Episodes of several tasks on disk; make one with `create` or `open`.

    `notes` and each segment's `source` and `details` say where the data comes from.
    """

    def __init__(self, path: Path, header: Header, *, read_only: bool = False) -> None:
        self.path = path
        self.header = header
        self.read_only = read_only
        """True of what `prefix` gives."""
        self._mapped: MappedFile | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        task_set_names: Sequence[str],
        obs_dim: int,
        action_dim: int,
        episode_steps: int,
        notes: str = "",
        dtype: str = "float32",
    ) -> EpisodeStore:
        """Makes an empty store in a new or empty folder.

        Args:
            path: the folder.
            task_set_names: a task's position is its id in the store.
            obs_dim, action_dim: widths of the episodes that will be written. A task of a known environment is
                stored in its own.
            episode_steps: T, the decisions of an episode plus 1.
            notes: kept with the store.
            dtype: float32, exact; or float16, in half the space and with 11 bits of precision.
        """
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
        if dtype not in DTYPES:
            raise DataError(f"{path}: found dtype {dtype!r}, expected one of {', '.join(DTYPES)}.")
        obs_dims, action_dims = known_widths(names) or ((obs_dim,) * len(names), (action_dim,) * len(names))
        if max(obs_dims) > obs_dim or max(action_dims) > action_dim:
            raise DataError(
                f"{path}: found obs_dim {obs_dim} and action_dim {action_dim}, expected at least {max(obs_dims)} "
                f"and {max(action_dims)}, its widest tasks'."
            )
        store = cls(path, Header(names, obs_dims, action_dims, episode_steps, dtype, notes))
        lock = _lock_to_create(path)
        try:
            if not is_free(path):  # asked under the lock: another process may have made a store there meanwhile
                raise _not_free(path)
            store._write_header(store.header)
            store._sweep()
        finally:
            lock.release()
        return store

    def remove_if_empty(self) -> None:
        """Takes a store without episodes away again; one that holds some, or that a writer has open, stays."""
        lock = FolderLock(self.path, _LOCK)
        try:
            lock.acquire()
        except (InUse, UserError):
            return
        try:
            if not _read_header(self.path / _HEADER).segments:
                for name in (*(f"{column}.bin" for column in _COLUMNS), _HEADER):
                    (self.path / name).unlink(missing_ok=True)
        except (OSError, DataError):
            return  # it cannot be changed, or is none any more
        finally:
            lock.release()

    @classmethod
    def open(cls, path: str | Path) -> EpisodeStore:
        """Opens a store; checks its version and that every file holds all that was committed. Reads no data."""
        path = Path(path)
        header = _read_header(path / _HEADER)
        for column, size in header.committed().items():
            file = path / f"{column}.bin"
            held = file.stat().st_size if file.is_file() else None
            if size and (held is None or held < size):
                found = "no such file" if held is None else f"{held} bytes"
                raise DataError(
                    f"{file}: found {found}, expected {size} bytes; the store is incomplete. Copy "
                    "the file again from where it came, or make the store anew."
                )
        return cls(path, header)

    def prefix(self, episodes: int, fingerprint: str) -> EpisodeStore | None:
        """The store as it was when it had that many episodes, to be read only; None when it never was that store.

        A store only grows, by whole segments, so what it was once is the front of what it is now: for a run that
        goes on, or labels that are read, after more was added.

        Args:
            episodes: `len` of the store then.
            fingerprint: its `fingerprint` then; the prefix has the same.
        """
        held = itertools.accumulate((segment.episodes for segment in self.segments), initial=0)
        for count, total in enumerate(held):
            if total == episodes:
                past = EpisodeStore(self.path, replace(self.header, segments=self.segments[:count]), read_only=True)
                return past if past.fingerprint == fingerprint else None
        return None

    def cut_back(self, episodes: int, fingerprint: str) -> bool:
        """Makes the store what it was when it had that many episodes; those added since are gone.

        For a run that goes on from an earlier state and makes them again. False, and nothing is changed, where the
        store never was that one (see `prefix`). The next writer frees the space.
        """
        lock = FolderLock(self.path, _LOCK)
        try:
            lock.acquire()
        except InUse:
            raise _in_use(self.path) from None
        try:
            self._reload()
            past = self.prefix(episodes, fingerprint)
            if past is None:
                return False
            if episodes < len(self):
                self._write_header(past.header)
                self._reload()
            return True
        finally:
            lock.release()

    def go_back(self, episodes: int, fingerprint: str) -> None:
        """`cut_back` to what a run's state says; a `DataError` where the store never was that one."""
        if not self.cut_back(episodes, fingerprint):
            raise DataError(
                f"{self.path}: is not the store of this run's episodes ({episodes:,} episodes, fingerprint "
                f"{fingerprint}); put that one back, or start another run (exp_name=…)."
            )

    def __len__(self) -> int:
        """The number of episodes."""
        return sum(segment.episodes for segment in self.header.segments)

    @property
    def num_transitions(self) -> int:
        """Rows, step 0 of each episode included (so MT30 counts as its publishers count it)."""
        return len(self) * self.episode_steps

    @property
    def num_bytes(self) -> int:
        """Size of the rows on disk."""
        return self.header.committed()["rows"]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names; a task's position is its id in this store."""
        return self.header.tasks

    @property
    def obs_dim(self) -> int:
        """The widest task's."""
        return max(self.header.obs_dims)

    @property
    def action_dim(self) -> int:
        """The widest task's."""
        return max(self.header.action_dims)

    @property
    def episode_steps(self) -> int:
        """T: rows an episode, one more than its decisions."""
        return self.header.episode_steps

    @property
    def notes(self) -> str:
        return self.header.notes

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.header.segments

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over layout and content, the same wherever the store lies."""
        h = self.header
        facts = [h.tasks, h.obs_dims, h.action_dims, h.episode_steps, h.dtype]
        sums = [(s.rows_sha256, s.tasks_sha256, s.episodes) for s in h.segments]
        return hashlib.sha256(json.dumps([facts, sums]).encode()).hexdigest()[:16]

    @cached_property
    def task_ids(self) -> npt.NDArray[np.int16]:
        """int16 [E]: each episode's task, as a position in `tasks`."""
        ids = self._column("tasks", _TASK_DTYPE)
        if ids.size and not 0 <= ids.min() <= ids.max() < len(self.tasks):
            raise DataError(
                f"{self.path / 'tasks.bin'}: found task ids {ids.min()} to {ids.max()}, expected 0 to "
                f"{len(self.tasks) - 1}; its content has changed. Make the store anew."
            )
        return ids

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """int64 [E + 1]: where each episode begins in `rows`, in elements; the last is their number."""
        sizes = self.header.widths[self.task_ids] * self.episode_steps
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        if offsets[-1] * DTYPES[self.header.dtype].itemsize != self.num_bytes:
            raise DataError(
                f"{self.path / 'tasks.bin'}: its tasks add up to {offsets[-1]} values, but rows.bin was committed "
                f"with {self.num_bytes} bytes; its content has changed. Make the store anew."
            )
        return offsets

    def returns(self) -> npt.NDArray[np.float32]:
        """float32 [E]: each episode's return, the sum of its rewards from step 1 on."""
        return self._column("returns", _RETURN_DTYPE)

    @cached_property
    def rows(self) -> npt.NDArray[Any]:
        """All rows one after the other, 1-D, mapped read-only; `offsets` says where episodes begin."""
        dtype = DTYPES[self.header.dtype]
        if not len(self):
            return np.empty(0, dtype)
        self._mapped = MappedFile(self.path / "rows.bin", self.num_bytes)
        self._mapped.expect_random_reads()
        return self._mapped.values(dtype)

    def check_rows(self) -> None:
        """Raises a `DataError` when rows.bin was shortened since it was mapped: reading it would end the process."""
        if self._mapped is not None:
            self._mapped.check()

    def will_read(self, first: npt.NDArray[np.int64], count: int) -> None:
        """Tells the system to fetch `count` elements from each of `first` on, all at once, in the background.

        Without this, rows that are not in memory are fetched one after the other, as they are touched.
        """
        if self.rows.size and self._mapped is not None:
            itemsize = DTYPES[self.header.dtype].itemsize
            self._mapped.will_read(first * itemsize, count * itemsize)

    def episode(self, index: int) -> dict[str, Any]:
        """Views of one episode in its task's own widths: obs [T,O], action [T,A], reward [T], and the task's name.

        They are views of the mapped file: `read_episodes` copies.
        """
        if not 0 <= index < len(self):
            raise DataError(f"{self.path}: found episode {index}, expected 0 to {len(self) - 1}.")
        task = int(self.task_ids[index])
        rows = self.rows[self.offsets[index] : self.offsets[index + 1]].reshape(self.episode_steps, -1)
        self.check_rows()
        obs_dim = self.header.obs_dims[task]
        return {
            "obs": rows[:, :obs_dim],
            "action": rows[:, obs_dim:-1],
            "reward": rows[:, -1],
            "task": self.tasks[task],
        }

    def read_episodes(self, first: int, stop: int) -> EpisodeBlock:
        """Episodes `first` to `stop - 1` as a block."""
        if not 0 <= first <= stop <= len(self):
            raise DataError(f"{self.path}: found episodes {first} to {stop}, expected within 0 to {len(self)}.")
        self.will_read(self.offsets[first : first + 1], int(self.offsets[stop] - self.offsets[first]))
        self.check_rows()
        task = self.task_ids[first:stop].astype(np.int64)
        shape = (stop - first, self.episode_steps)
        obs = np.zeros((*shape, self.obs_dim), np.float32)
        action = np.zeros((*shape, self.action_dim), np.float32)
        reward = np.empty(shape, np.float32)
        for start, end in _runs(task):
            o, a = self.header.obs_dims[task[start]], self.header.action_dims[task[start]]
            rows = self.rows[self.offsets[first + start] : self.offsets[first + end]]
            rows = rows.reshape(end - start, self.episode_steps, o + a + 1)
            obs[start:end, :, :o] = rows[..., :o]
            action[start:end, :, :a] = rows[..., o:-1]
            reward[start:end] = rows[..., -1]
        self.check_rows()
        return EpisodeBlock(obs, action, reward, task)

    def to_tensordict(self, first: int, stop: int) -> TensorDict:
        """Episodes `first` to `stop - 1` as transitions under torchrl's names, a copy in memory.

        Batch [E, T - 1]; `.reshape(-1)` makes it what a torchrl `ReplayBuffer` takes. Zero-padded to the store's widest
        task. The entries: "observation" float32 [O], "action" float32 [A], "task" int64 (a position in `tasks`),
        "episode" int64 (its number in the store), and under "next": "observation" [O], "reward" float32 [1], and
        "done", "terminated", "truncated" bool [1]. Episodes end by truncation.

        Raises:
            DataError: for episodes that the store does not have.
        """
        import torch  # the store itself needs none
        from tensordict import TensorDict

        block = self.read_episodes(first, stop)
        obs, action, reward = (torch.from_numpy(column) for column in (block.obs, block.action, block.reward))
        shape = (stop - first, self.episode_steps - 1)
        ends = torch.zeros(*shape, 1, dtype=torch.bool)
        ends[:, -1] = True
        following = {
            "observation": obs[:, 1:],
            "reward": reward[:, 1:, None],
            "done": ends,
            "terminated": torch.zeros_like(ends),
            "truncated": ends.clone(),
        }
        content = {
            "observation": obs[:, :-1],
            "action": action[:, 1:],  # a step holds the action that led to it
            "task": torch.from_numpy(block.task)[:, None].repeat(1, shape[1]),
            "episode": torch.arange(first, stop)[:, None].repeat(1, shape[1]),
            "next": TensorDict(following, batch_size=shape),
        }
        return TensorDict(content, batch_size=shape)

    def verify(self) -> int:
        """Reads everything and compares its checksums; returns the bytes read, or raises a `DataError`."""
        parts: list[tuple[str, Segment, int]] = []
        for column in _COLUMNS:
            start = 0
            for segment in self.segments:
                parts.append((column, segment, start))
                start += _sizes([segment])[column]
        with ThreadPoolExecutor(2) as pool:
            total = sum(pool.map(lambda part: self._verify_segment(*part), parts))
        self.offsets  # noqa: B018 - tasks and rows must agree
        return total

    def _verify_segment(self, column: str, segment: Segment, start: int) -> int:
        file = self.path / f"{column}.bin"
        size = _sizes([segment])[column]
        expected = str(getattr(segment, f"{column}_sha256"))
        digest, left = hashlib.sha256(), size
        try:
            with file.open("rb") as content:
                content.seek(start)
                while left and (block := content.read(min(left, _BLOCK_BYTES))):
                    digest.update(block)
                    left -= len(block)
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}).") from error
        if digest.hexdigest() != expected:
            raise DataError(
                f"{file}: found SHA-256 {digest.hexdigest()[:12]}…, expected {expected[:12]}… in the part made from "
                f"{segment.source or 'an unnamed source'}; its content has changed. Make the store anew."
            )
        return size

    def append(
        self,
        obs: npt.ArrayLike,
        action: npt.ArrayLike,
        reward: npt.ArrayLike,
        task: npt.ArrayLike,
        source: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Adds obs [E,T,O], action [E,T,A], reward [E,T], task [E] as one segment: checked, durable on return."""
        with self.writer(source=source, details=details) as writer:
            writer.write(obs, action, reward, task)

    def writer(
        self,
        source: str = "",
        details: Mapping[str, Any] | None = None,
        first_episode: int = 0,
        after: int | None = None,
    ) -> StoreWriter:
        """A context manager that adds one segment in blocks; nothing of it is seen until it ends well, or `commit`s.

        Args:
            source: where the episodes come from.
            details: whatever else is to be noted about it.
            first_episode: the number that the source gives to the first one: errors name episodes by the source's.
            after: for episodes that depend on what the store holds: how many it must hold, else entering raises a
                `DataError`, for another writer has added some meanwhile.
        """
        if self.read_only:
            raise DataError(f"{self.path}: this is the store as it was with {len(self)} episodes; open it to add more.")
        return StoreWriter(self, source, dict(details or {}), first_episode, after)

    def check_space(self, episodes: int, frequencies: npt.NDArray[np.float64] | None = None) -> None:
        """Raises a `DataError` when the disk cannot hold that many more episodes.

        Without `frequencies` (float [tasks], adding up to 1), all tasks are taken to be equally frequent.
        """
        of_tasks = np.full(len(self.tasks), 1 / len(self.tasks)) if frequencies is None else frequencies
        sizes = [self.header.episode_bytes(task) for task in range(len(self.tasks))]
        needed = int(episodes * float(of_tasks @ np.asarray(sizes)))
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise DataError(
                f"{self.path}: found {human_bytes(free)} free, expected at least {human_bytes(needed)} for "
                f"{episodes:,} episodes; free some space or choose another disk."
            )

    def _column(self, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        native = dtype.newbyteorder("=")
        if not len(self):
            return np.empty(0, native)
        path = self.path / f"{name}.bin"
        try:
            values = np.fromfile(path, dtype=dtype, count=len(self))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
        if len(values) != len(self):
            raise DataError(
                f"{path}: found {values.nbytes} bytes, expected {len(self) * dtype.itemsize}: it was shortened since "
                "the store was opened. Copy the file again from where it came, or make the store anew."
            )
        return values.astype(native)

    def _write_header(self, header: Header) -> None:
        content = {"format": FORMAT, "version": VERSION, **asdict(header)}
        atomic_write_text(self.path / _HEADER, json.dumps(content, indent=2) + "\n")

    def _sweep(self) -> None:
        """Removes headers that were being written when a writer was killed."""
        for file in self.path.glob(_UNFINISHED):
            with contextlib.suppress(OSError):
                file.unlink()

    def _reload(self) -> None:
        """Takes over the header on disk (another process may have appended) and forgets what was derived."""
        self.header = _read_header(self.path / _HEADER)
        for derived in ("fingerprint", "task_ids", "offsets", "rows"):
            self.__dict__.pop(derived, None)


@dataclass
class _Part:
    """What a writer has written and not committed yet, all of it whole: it comes after `segments`.

    Attributes:
        segments: all that the store has.
        before: episodes that the writer has committed already.
    """

    segments: tuple[Segment, ...]
    before: int = 0
    episodes: int = 0
    rows_bytes: int = 0
    digests: dict[str, Any] = field(default_factory=lambda: {column: hashlib.sha256() for column in _COLUMNS})

    def copy(self) -> _Part:
        return replace(self, digests={column: digest.copy() for column, digest in self.digests.items()})

    def segment(self, source: str, details: dict[str, Any]) -> Segment:
        sums = {f"{column}_sha256": digest.hexdigest() for column, digest in self.digests.items()}
        return Segment(
            self.episodes, self.rows_bytes, **sums, source=source, details=details, created_with=package_versions()
        )


class StoreWriter:
    """Writes one segment, or with `commit` several, as a context manager (see `EpisodeStore.writer`).

    It holds the store from beginning to end: no other writer's episodes come between its segments.

    `details` are those of the segments to come.
    """

    def __init__(
        self, store: EpisodeStore, source: str, details: dict[str, Any], first_episode: int, after: int | None
    ) -> None:
        self.details = details
        self._after = after
        self._first_episode = first_episode
        self._store = store
        self._source = source
        self._part = _Part(store.segments)
        self._torn = False  # a write failed: the files may hold half a block beyond the part
        self._unsure = False  # the header on the disk may be the next one
        self._files: dict[str, FileIO] = {}
        self._lock = FolderLock(store.path, _LOCK)
        header = store.header
        known = known_widths(header.tasks)
        self._checker = EpisodeChecker(
            source=source or str(store.path),
            tasks=header.tasks,
            obs_dim=store.obs_dim,
            action_dim=store.action_dim,
            episode_steps=header.episode_steps,
            obs_dims=None if known is None else known[0],
        )

    @property
    def episodes(self) -> int:
        """How many were written."""
        return self._part.before + self._part.episodes

    @property
    def committed(self) -> int:
        """How many of them are part of the store, whatever happens."""
        return self._part.before

    def __enter__(self) -> StoreWriter:
        store = self._store
        try:
            self._lock.acquire()
        except InUse:
            raise _in_use(store.path) from None
        try:
            store._reload()
            if self._after is not None and len(store) != self._after:
                raise DataError(
                    f"{store.path}: found {len(store)} episodes, expected {self._after}: another writer has added some "
                    "meanwhile. Run the same command again."
                )
            self._part = _Part(store.segments)
            for column, size in store.header.committed().items():
                file = (store.path / f"{column}.bin").open("ab", buffering=0)  # what was written can be cut off again
                self._files[column] = file
                if file.tell() < size:
                    raise DataError(
                        f"{file.name}: found {file.tell()} bytes, expected {size}; the store is incomplete. Copy the "
                        "file again from where it came, or make the store anew."
                    )
                file.truncate(size)  # of a writer that was killed
            store._sweep()
        except BaseException as error:
            self._close()
            if isinstance(error, OSError):
                raise write_error(store.path, error) from error
            raise
        return self

    def write(self, obs: npt.ArrayLike, action: npt.ArrayLike, reward: npt.ArrayLike, task: npt.ArrayLike) -> None:
        """Adds obs [E,T,O], action [E,T,A], reward [E,T] and task [E], after checking them (see `checks`).

        Action columns that a task does not have are dropped: no environment reads them.
        """
        o, a, r = (np.asarray(x, dtype=np.float32) for x in (obs, action, reward))
        ids = self._checker.check(o, a, r, np.asarray(task), self._first_episode + self.episodes)
        step = max(1, _BLOCK_BYTES // self._store.header.episode_bytes())
        part, number = self._part.copy(), self._first_episode + self.episodes
        self._torn = True
        try:
            for start in range(0, len(o), step):
                block = slice(start, start + step)
                rows = self._joined(o[block], a[block], r[block], ids[block], number + start)
                self._write("rows", rows, part)
                part.rows_bytes += rows.nbytes
            self._write("tasks", ids.astype(_TASK_DTYPE), part)
            self._write("returns", r[:, 1:].sum(axis=1, dtype=np.float64).astype(_RETURN_DTYPE), part)
            part.episodes += len(o)
        except DataError:  # refused by `representable`: nothing of it stays, as of what the checker refuses
            self._cut()
            raise
        self._part, self._torn = part, False

    def _joined(
        self,
        obs: npt.NDArray[np.float32],
        action: npt.NDArray[np.float32],
        reward: npt.NDArray[np.float32],
        ids: npt.NDArray[np.int16],
        first_episode: int,
    ) -> npt.NDArray[Any]:
        """The episodes' rows one after the other, each in its task's widths and the store's type."""
        header = self._store.header
        steps, dtype = header.episode_steps, DTYPES[header.dtype]
        out = np.empty(int(header.widths[ids].sum()) * steps, dtype)
        position = 0
        with np.errstate(over="ignore"):  # found below
            for start, stop in _runs(ids):
                o, a = header.obs_dims[ids[start]], header.action_dims[ids[start]]
                count = (stop - start) * steps * (o + a + 1)
                rows = out[position : position + count].reshape(stop - start, steps, o + a + 1)
                rows[..., :o] = obs[start:stop, :, :o]
                rows[..., o:-1] = action[start:stop, :, :a]
                rows[..., -1] = reward[start:stop]
                if header.dtype != "float32":
                    self._checker.representable(rows, o, header.dtype, first_episode + start)
                position += count
        return out

    def _write(self, column: str, values: npt.NDArray[Any], part: _Part) -> None:
        data = np.ascontiguousarray(values).data.cast("B")
        part.digests[column].update(data)
        file = self._files[column]
        try:
            while len(data):
                data = data[file.write(data) :]
        except OSError as error:
            raise write_error(str(file.name), error) from error

    def commit(self) -> None:
        """Makes a segment of what was written since the last, durable on return; the writer goes on.

        After a write that failed too: what it left is cut off, and the episodes before it are kept.

        Raises:
            UserError: when a file cannot be written; what was committed before stays as it is.
        """
        if self._torn:
            self._cut()
        if self._part.episodes:
            self._publish()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._torn and self._part.episodes:
                self._publish()
        finally:
            self._close()

    def _cut(self) -> None:
        """Ends the files after the last whole block."""
        part, whole = self._part, _sizes(self._part.segments)
        whole["rows"] += part.rows_bytes
        whole["tasks"] += part.episodes * _TASK_DTYPE.itemsize
        whole["returns"] += part.episodes * _RETURN_DTYPE.itemsize
        for column, size in whole.items():
            file = self._files[column]
            try:
                file.truncate(size)
            except OSError as error:
                raise write_error(str(file.name), error) from error
        self._torn = False

    def _publish(self) -> None:
        """Data first, then the header: only the header makes the segment part of the store.

        Interrupted at any moment and called again, it lists the segment once.
        """
        store, part = self._store, self._part
        for file in self._files.values():
            try:
                os.fsync(file.fileno())
            except OSError as error:
                raise write_error(str(file.name), error) from error
        segments = (*part.segments, part.segment(self._source, dict(self.details)))
        self._unsure = True  # from here on the header may be on the disk, whatever is raised
        store._write_header(replace(store.header, segments=segments))
        self._part, self._unsure = _Part(segments, self.episodes), False
        store._reload()

    def _close(self) -> None:
        """Ends the writing and frees the space of what was not committed; else the next writer does it."""
        committed = _sizes(self._part.segments)
        for column, file in self._files.items():
            with contextlib.suppress(OSError):
                file.close()
            with contextlib.suppress(OSError):
                if not self._unsure and Path(str(file.name)).stat().st_size > committed[column]:
                    os.truncate(str(file.name), committed[column])
        self._lock.release()


def is_free(path: Path) -> bool:
    """Whether a store can be made there: no such folder, or one empty but for a lock and what a killed `create` left.

    What it says of a folder that is not locked may have changed by the time it is read.
    """
    if not path.exists():
        return True
    return path.is_dir() and all(file.name == _LOCK or file.match(_UNFINISHED) for file in path.iterdir())


def _lock_to_create(path: Path) -> FolderLock:
    """The lock of a folder that looks free, held; waits for another process that is making a store there."""
    lock = FolderLock(path, _LOCK)
    deadline = time.monotonic() + _CREATE_SECONDS
    while True:
        if not is_free(path):
            raise _not_free(path)
        try:
            lock.acquire()
        except InUse:
            if time.monotonic() >= deadline:
                raise _in_use(path) from None
            time.sleep(0.02)
        else:
            return lock


def _not_free(path: Path) -> DataError:
    return DataError(f"{path}: found a file or a folder with content, expected none; choose a new folder.")


def _in_use(path: Path) -> DataError:
    return DataError(f"{path}: another writer has this store open; wait until it has ended.")


def _sizes(segments: Sequence[Segment]) -> dict[str, int]:
    """Bytes of each file that these segments fill."""
    episodes = sum(segment.episodes for segment in segments)
    return {
        "rows": sum(segment.rows_bytes for segment in segments),
        "tasks": episodes * _TASK_DTYPE.itemsize,
        "returns": episodes * _RETURN_DTYPE.itemsize,
    }


def _runs(ids: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Start and end of every run of equal ids."""
    if not len(ids):
        return
    edges = np.flatnonzero(np.diff(ids)) + 1
    bounds = [0, *edges.tolist(), len(ids)]
    yield from itertools.pairwise(bounds)


def _read_header(path: Path) -> Header:
    """Reads and checks store.json; every fault is a `DataError` that names it."""
    if not path.is_file():
        raise DataError(f"{path}: found no such file, expected an episode store's; check the store's folder.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({printable(error)}); copy the store again, or make it anew.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: is not the header of an episode store; check the store's folder.")
    if content.get("version") != VERSION:
        found = printable(content.get("version"))
        raise DataError(
            f"{path}: found store version {found}, expected {VERSION}: it was made by another "
            "version of this program. Import or collect its data again."
        )
    try:
        header = Header(
            tasks=tuple(_typed(content, "tasks", list)),
            obs_dims=tuple(_typed(content, "obs_dims", list)),
            action_dims=tuple(_typed(content, "action_dims", list)),
            episode_steps=_typed(content, "episode_steps", int),
            dtype=_typed(content, "dtype", str),
            notes=_typed(content, "notes", str),
            segments=tuple(_segment(item) for item in _typed(content, "segments", list)),
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: {printable(error.args[0])}; copy the store again, or make it anew.") from error
    if header.dtype not in DTYPES:
        raise DataError(f"{path}: found dtype {header.dtype!r}, expected one of {', '.join(DTYPES)}.")
    for name in ("obs_dims", "action_dims"):
        widths = getattr(header, name)
        if len(widths) != len(header.tasks) or not all(type(w) is int and 0 < w < 1 << 20 for w in widths):
            raise DataError(
                f"{path}: found {name} {reprlib.repr(list(widths))}, expected a width for each of its tasks."
            )
    if not header.tasks or not all(isinstance(name, str) for name in header.tasks) or header.episode_steps < 2:
        raise DataError(f"{path}: found no tasks or episodes without steps; copy the store again, or make it anew.")
    return header


def _segment(item: Any) -> Segment:
    if not isinstance(item, dict):
        raise TypeError("a segment's entry is not an object")
    segment = Segment(**{f.name: _typed(item, f.name, _SEGMENT_TYPES[f.name]) for f in fields(Segment)})
    if segment.episodes < 1 or segment.rows_bytes < 1:
        raise TypeError(f"a segment of {segment.episodes} episodes and {segment.rows_bytes} bytes is not a valid entry")
    return segment


def _typed(content: dict[str, Any], key: str, kind: type) -> Any:
    if key not in content:
        raise KeyError(f"key '{key}' is missing")
    if not isinstance(content[key], kind) or isinstance(content[key], bool):
        raise TypeError(f"key '{key}' is {reprlib.repr(content[key])}, expected {kind.__name__}")
    return content[key]
