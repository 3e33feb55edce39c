"""Brings published dataset files and other stores into a store: streamed, checked, and skipped when already there."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tdmpc2.data.checks import EpisodeChecker
from tdmpc2.data.published import PublishedFile
from tdmpc2.data.store import EpisodeBlock, EpisodeStore, Segment, is_free
from tdmpc2.errors import DataError, printable
from tdmpc2.fileio import missing_folders, remove_folders
from tdmpc2.tasks import TaskSet

_BLOCK_BYTES = 64 << 20
_SEGMENT_BYTES = 512 << 20
"""Committed at a time: what an interrupted import does again at most."""


@dataclass(frozen=True)
class FileProgress:
    """How far an import is: file `file` of `files`, and its episodes so far."""

    path: Path
    file: int
    files: int
    episodes: int
    total_episodes: int
    skipped: bool = False


def common_episode_steps(task_set: TaskSet) -> int:
    """T of every task's episodes, their decisions plus 1; a `DataError` where they differ."""
    steps = set(task_set.episode_steps)
    if len(steps) != 1:
        raise DataError(f"task set '{task_set.name}' has episodes of {sorted(steps)} steps, expected one length.")
    return steps.pop() + 1


def open_or_create(path: str | Path, task_set: TaskSet, notes: str = "", dtype: str | None = None) -> EpisodeStore:
    """The store at `path`, made for the task set if there is none; a `DataError` if it is for another one.

    `dtype` is float32 (the default of a new store) or float16; None accepts that of a store that is there.
    """
    path = Path(path)
    wanted = (task_set.tasks, task_set.obs_dim, task_set.action_dim, common_episode_steps(task_set))
    if is_free(path):
        try:
            return EpisodeStore.create(path, *wanted, notes=notes, dtype=dtype or "float32")
        except DataError:
            if is_free(path):
                raise
            # Another process has made a store there since we looked: it is one that is there, like any other.
    store = EpisodeStore.open(path)
    found = (store.tasks, store.obs_dim, store.action_dim, store.episode_steps)
    if found != wanted:
        raise DataError(
            f"{path}: found a store of {_layout_of(store)}, expected {_layout(*wanted)}; choose another "
            "folder or the task set it was made for."
        )
    if dtype is not None and dtype != store.header.dtype:
        raise DataError(f"{path}: found a store of {store.header.dtype}, not {dtype}; choose another folder.")
    return store


@contextlib.contextmanager
def store_to_fill(
    path: str | Path, task_set: TaskSet, notes: str = "", dtype: str | None = None
) -> Iterator[EpisodeStore]:
    """`open_or_create` for a block that adds episodes; a store made for it goes again if the block fails before any."""
    path = Path(path)
    missing, made = missing_folders(path), is_free(path)
    store = open_or_create(path, task_set, notes, dtype)
    try:
        yield store
    except BaseException:
        if made:
            store.remove_if_empty()
            remove_folders(missing)
        raise


def import_files(
    paths: Sequence[str | Path],
    store: EpisodeStore,
    report: Callable[[FileProgress], None] = lambda progress: None,
) -> None:
    """Imports files in the published format, and other stores, in segments; `report` is called first and
    after every block.

    A file's checksums are compared before any of it is imported. A store may be of other tasks too: its
    episodes of this one's are taken, padded to this one's widths.

    All sources are opened and laid against the store before the first is read. What is in the store already (of a
    source of the same size and fingerprint, whatever its name) is skipped: an interrupted import is resumed by
    running it again, and of a store that has grown since, the new episodes are taken. Raises a `DataError` naming
    the source; what was committed before it stays.
    """
    sources: list[_Source] = []
    for path in paths:
        sources.append(_OtherStore(path, store) if Path(path).is_dir() else _File(path, store))
    starts: list[int] = []
    for number, source in enumerate(sources):
        same = [other for other in sources[:number] if other.identity == source.identity]
        starts.append(len(source) if same else source.imported(store.segments))  # named twice, imported once
    store.check_space(sum(len(source) - start for source, start in zip(sources, starts, strict=True)))
    for number, (source, start) in enumerate(zip(sources, starts, strict=True), start=1):
        if start == len(source):
            report(FileProgress(source.path, number, len(sources), len(source), len(source), skipped=True))
        else:
            _import(source, start, store, number, len(sources), report)


def summary(store: EpisodeStore) -> str:
    """A table of episodes, transitions and returns a task, and where the data comes from."""
    ids, returns = store.task_ids, store.returns()
    lines = [f"{'task':<24} {'episodes':>9} {'transitions':>12} {'mean return':>12} {'best':>7}"]
    for task, name in enumerate(store.tasks):
        of_task = returns[ids == task]
        scores = f"{of_task.mean():>12.1f} {of_task.max():>7.1f}" if len(of_task) else f"{'-':>12} {'-':>7}"
        lines.append(f"{printable(name):<24} {len(of_task):>9,} {len(of_task) * store.episode_steps:>12,} {scores}")
    lines.append(f"{'all':<24} {len(store):>9,} {store.num_transitions:>12,}")
    lines.append(
        f"{store.path}: obs {store.obs_dim}, action {store.action_dim}, {store.episode_steps} steps an episode, "
        f"{store.num_bytes / 1e9:.2f} GB of {store.header.dtype}, fingerprint {store.fingerprint}"
    )
    if store.notes:
        lines.append(f"notes: {printable(store.notes, 2000)}")
    sources: dict[str, int] = {}
    for segment in store.segments:
        source = segment.source or "an unnamed source"
        sources[source] = sources.get(source, 0) + segment.episodes
    lines.extend(f"{episodes:,} episodes from {printable(source, 1000)}" for source, episodes in sources.items())
    return "\n".join(lines)


class _Source(Protocol):
    """Episodes to import, laid against the store when made; `identity` tells its content from another's."""

    path: Path

    @property
    def identity(self) -> dict[str, Any]: ...

    def __len__(self) -> int: ...

    def imported(self, segments: Sequence[Segment]) -> int:
        """How many of the episodes these segments hold."""
        ...

    def details(self) -> dict[str, Any]: ...

    def verify(self) -> object: ...

    def blocks(self, episodes: int, first: int, stop: int) -> Iterator[EpisodeBlock]:
        """Those from `first` to `stop - 1`, at most `episodes` at a time, with the store's tasks and widths."""
        ...


class _File:
    """A file in the published format, whose task ids follow the store's tasks."""

    def __init__(self, path: str | Path, store: EpisodeStore) -> None:
        self._file = file = PublishedFile.open(path)
        self.path = file.path
        self._checker = EpisodeChecker(
            source=str(file.path),
            tasks=store.tasks,
            obs_dim=store.obs_dim,
            action_dim=store.action_dim,
            episode_steps=store.episode_steps,
            obs_dims=None,
        )
        self._checker.layout(file.obs.shape, file.action.shape, file.reward.shape)

    @property
    def identity(self) -> dict[str, Any]:
        return {"bytes": self._file.size, "fingerprint": self._file.fingerprint}

    def __len__(self) -> int:
        return len(self._file)

    def imported(self, segments: Sequence[Segment]) -> int:
        identity = self.identity
        same = [s.details for s in segments if {key: s.details.get(key) for key in identity} == identity]
        return max((details.get("stop", 0) for details in same), default=0)

    def details(self) -> dict[str, Any]:
        dtypes = {key: getattr(self._file, key).dtype for key in ("obs", "action", "reward", "task")}
        return {"file": self.path.name, **self.identity, "dtypes": dtypes}

    def verify(self) -> None:
        self._file.verify()

    def blocks(self, episodes: int, first: int, stop: int) -> Iterator[EpisodeBlock]:
        for block in self._file.blocks(episodes, first, stop):
            task = self._checker.episode_tasks(block.task, block.first_episode)
            yield EpisodeBlock(block.obs, block.action, block.reward, task)


class _OtherStore:
    """A store that has tasks in common with the one to fill, in any order; episodes of others are left out."""

    def __init__(self, path: str | Path, store: EpisodeStore) -> None:
        self._store = other = EpisodeStore.open(path)
        self.path = other.path
        if other.path.resolve() == store.path.resolve():
            raise DataError(f"{other.path}: is the store itself, expected another one.")
        own = {name: position for position, name in enumerate(store.tasks)}
        self._ids = np.array([own.get(name, -1) for name in other.tasks], np.int64)
        if (self._ids < 0).all():
            raise DataError(
                f"{other.path}: found episodes of {printable(', '.join(other.tasks))}, expected some of "
                f"{printable(', '.join(store.tasks))}; make the store for a task set that has them."
            )
        if other.episode_steps != store.episode_steps:
            raise DataError(
                f"{other.path}: found {_layout_of(other)}, expected {store.episode_steps} steps an episode."
            )
        for name, obs_dim, action_dim in zip(other.tasks, other.header.obs_dims, other.header.action_dims, strict=True):
            if name in own and (obs_dim > store.obs_dim or action_dim > store.action_dim):
                raise DataError(
                    f"{other.path}: found {printable(name)} with obs {obs_dim} and action {action_dim}, expected at "
                    f"most {store.obs_dim} and {store.action_dim}."
                )
        self._widths = store.obs_dim, store.action_dim

    @property
    def identity(self) -> dict[str, Any]:
        return {"store_episodes": len(self), "fingerprint": self._store.fingerprint}

    def __len__(self) -> int:
        return len(self._store)

    def imported(self, segments: Sequence[Segment]) -> int:
        done = 0
        for details in (segment.details for segment in segments):
            then = details.get("store_episodes")
            if then is not None and self._store.prefix(then, details.get("fingerprint", "")) is not None:
                done = max(done, details.get("stop", 0))
        return done

    def details(self) -> dict[str, Any]:
        return {"store": self.path.name, **self.identity, "notes": self._store.notes}

    def verify(self) -> int:
        return self._store.verify()

    def blocks(self, episodes: int, first: int, stop: int) -> Iterator[EpisodeBlock]:
        for start in range(first, stop, episodes):
            block = self._store.read_episodes(start, min(start + episodes, stop))
            task = self._ids[block.task]
            taken = task >= 0
            obs, action = (
                np.pad(part[taken], ((0, 0), (0, 0), (0, max(0, width - part.shape[-1]))))[..., :width]
                for part, width in zip((block.obs, block.action), self._widths, strict=True)
            )
            yield EpisodeBlock(obs, action, block.reward[taken], task[taken])


def _import(
    source: _Source,
    start: int,
    store: EpisodeStore,
    number: int,
    sources: int,
    report: Callable[[FileProgress], None],
) -> None:
    source.verify()
    details = source.details()
    row = store.obs_dim + store.action_dim + 1
    episodes = max(1, _BLOCK_BYTES // (store.episode_steps * row * 4))
    a_segment = max(1, _SEGMENT_BYTES // store.header.episode_bytes())
    report(FileProgress(source.path, number, sources, start, len(source)))
    for first in range(start, len(source), a_segment):
        stop = min(first + a_segment, len(source))
        about = {**details, "first": first, "stop": stop}
        with store.writer(str(source.path), about, first_episode=first, after=len(store)) as writer:
            for read, block in zip(itertools.count(first + episodes, episodes), source.blocks(episodes, first, stop)):
                writer.write(block.obs, block.action, block.reward, block.task)
                report(FileProgress(source.path, number, sources, min(read, stop), len(source)))


def _layout_of(store: EpisodeStore) -> str:
    return _layout(store.tasks, store.obs_dim, store.action_dim, store.episode_steps)


def _layout(tasks: tuple[str, ...], obs_dim: int, action_dim: int, episode_steps: int) -> str:
    return f"{len(tasks)} tasks ({printable(tasks[0])}, …), obs {obs_dim}, action {action_dim}, {episode_steps} steps"
