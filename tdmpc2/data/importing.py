"""Brings published dataset files into a store: streamed, checked, and skipped when already there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tdmpc2.data.checks import EpisodeChecker
from tdmpc2.data.published import PublishedFile
from tdmpc2.data.store import EpisodeStore, is_free
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
            f"{path}: found a store of {_layout(*found)}, expected {_layout(*wanted)}; choose another "
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
    """Imports files in the published format in segments; `report` is called first and after every block.

    A file's checksums are compared before any of it is imported.

    All files are opened and laid against the store before the first is read. What is in the store already (of a
    file of the same size and fingerprint, whatever its name) is skipped: an interrupted import is resumed by
    running it again. Raises a `DataError` naming the file; what was committed before it stays.
    """
    files = [PublishedFile.open(path) for path in paths]
    done: dict[tuple[object, object], int] = {}
    for segment in store.segments:
        identity = _identity(segment.details)
        done[identity] = max(done.get(identity, 0), segment.details.get("stop", 0))
    starts: list[int] = []
    for file in files:
        _check_layout(file, store)
        identity = (file.size, file.fingerprint)
        starts.append(done.get(identity, 0))
        done[identity] = len(file)  # the same file named twice is imported once
    store.check_space(sum(len(file) - start for file, start in zip(files, starts, strict=True)))
    for number, (file, start) in enumerate(zip(files, starts, strict=True), start=1):
        if start == len(file):
            report(FileProgress(file.path, number, len(files), len(file), len(file), skipped=True))
        else:
            _import(file, start, store, number, len(files), report)


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


def _import(
    file: PublishedFile,
    start: int,
    store: EpisodeStore,
    number: int,
    files: int,
    report: Callable[[FileProgress], None],
) -> None:
    details = {
        "file": file.path.name,
        "bytes": file.size,
        "fingerprint": file.fingerprint,
        "dtypes": {key: getattr(file, key).dtype for key in ("obs", "action", "reward", "task")},
    }
    file.verify()
    checker = _checker(file, store)
    episodes = max(1, _BLOCK_BYTES // (file.episode_steps * (file.obs_dim + file.action_dim + 1) * 4))
    a_segment = max(1, _SEGMENT_BYTES // store.header.episode_bytes())
    report(FileProgress(file.path, number, files, start, len(file)))
    for first in range(start, len(file), a_segment):
        stop = min(first + a_segment, len(file))
        about = {**details, "first": first, "stop": stop}
        with store.writer(str(file.path), about, first_episode=first, after=len(store)) as writer:
            for block in file.blocks(episodes, first, stop):
                task = checker.episode_tasks(block.task, block.first_episode)
                writer.write(block.obs, block.action, block.reward, task)
                report(FileProgress(file.path, number, files, first + writer.episodes, len(file)))


def _check_layout(file: PublishedFile, store: EpisodeStore) -> None:
    _checker(file, store).layout(file.obs.shape, file.action.shape, file.reward.shape)


def _checker(file: PublishedFile, store: EpisodeStore) -> EpisodeChecker:
    return EpisodeChecker(
        source=str(file.path),
        tasks=store.tasks,
        obs_dim=store.obs_dim,
        action_dim=store.action_dim,
        episode_steps=store.episode_steps,
        obs_dims=None,
    )


def _identity(details: dict[str, object]) -> tuple[object, object]:
    return details.get("bytes"), details.get("fingerprint")


def _layout(tasks: tuple[str, ...], obs_dim: int, action_dim: int, episode_steps: int) -> str:
    return f"{len(tasks)} tasks ({printable(tasks[0])}, …), obs {obs_dim}, action {action_dim}, {episode_steps} steps"
