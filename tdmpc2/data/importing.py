"""Brings published dataset files into a store: streamed, checked, and skipped when already there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tdmpc2.data.checks import EpisodeChecker
from tdmpc2.data.published import PublishedFile
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import DataError
from tdmpc2.tasks import TaskSet

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class FileProgress:
    """How far an import is: file `file` of `files`, and its episodes so far."""

    path: Path
    file: int
    files: int
    episodes: int
    total_episodes: int
    skipped: bool = False


def open_or_create(path: str | Path, task_set: TaskSet, notes: str = "") -> EpisodeStore:
    """The store at `path`, made for the task set if there is none; a `DataError` if it is for another one."""
    path = Path(path)
    steps = set(task_set.episode_steps)
    if len(steps) != 1:
        raise DataError(f"task set '{task_set.name}' has episodes of {sorted(steps)} steps, expected one length.")
    wanted = (task_set.tasks, task_set.obs_dim, task_set.action_dim, steps.pop() + 1)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return EpisodeStore.create(path, *wanted, notes=notes)
    store = EpisodeStore.open(path)
    found = (store.tasks, store.obs_dim, store.action_dim, store.episode_steps)
    if found != wanted:
        raise DataError(
            f"{path}: found a store of {_layout(*found)}, expected {_layout(*wanted)}; choose another "
            "folder or the task set it was made for."
        )
    return store


def import_files(
    paths: Sequence[str | Path],
    store: EpisodeStore,
    report: Callable[[FileProgress], None] = lambda progress: None,
) -> None:
    """Imports files in the published format, each as one shard; `report` is called first and after
    every block of each.

    All files are opened and laid against the store before the first is read. One whose content is in the
    store already (same size and fingerprint, whatever its name) is skipped: an interrupted import is resumed
    by running it again. Raises a `DataError` naming the file; files imported before it stay.
    """
    files = [PublishedFile.open(path) for path in paths]
    present = {_identity(shard.details) for shard in store.shards}
    pending: list[PublishedFile] = []
    for file in files:
        _check_layout(file, store)
        if (file.size, file.fingerprint) not in present:
            present.add((file.size, file.fingerprint))
            pending.append(file)
    store.check_space(sum(len(file) for file in pending))
    for number, file in enumerate(files, start=1):
        if file in pending:
            _import(file, store, number, len(files), report)
        else:
            report(FileProgress(file.path, number, len(files), len(file), len(file), skipped=True))


def summary(store: EpisodeStore) -> str:
    """A table of episodes, transitions and returns a task, and where the data comes from."""
    ids, returns = store.task_ids, store.returns()
    lines = [f"{'task':<24} {'episodes':>9} {'transitions':>12} {'mean return':>12} {'best':>7}"]
    for task, name in enumerate(store.tasks):
        own = returns[ids == task]
        scores = f"{own.mean():>12.1f} {own.max():>7.1f}" if len(own) else f"{'-':>12} {'-':>7}"
        lines.append(f"{name:<24} {len(own):>9,} {len(own) * store.episode_steps:>12,} {scores}")
    size = len(store) * store.header.episode_bytes
    lines.append(f"{'all':<24} {len(store):>9,} {store.num_transitions:>12,}")
    lines.append(
        f"{store.path}: obs {store.obs_dim}, action {store.action_dim}, {store.episode_steps} steps "
        f"an episode, {size / 1e9:.2f} GB in {len(store.shards)} shards"
    )
    if store.notes:
        lines.append(f"notes: {store.notes}")
    lines.extend(f"{s.name}: {s.episodes:,} episodes from {s.source or 'an unnamed source'}" for s in store.shards)
    return "\n".join(lines)


def _import(
    file: PublishedFile, store: EpisodeStore, number: int, files: int, report: Callable[[FileProgress], None]
) -> None:
    details = {
        "file": file.path.name,
        "bytes": file.size,
        "fingerprint": file.fingerprint,
        "dtypes": {key: getattr(file, key).dtype for key in ("obs", "action", "reward", "task")},
    }
    checker = _checker(file, store)
    episodes = max(1, _BLOCK_BYTES // store.header.episode_bytes)
    report(FileProgress(file.path, number, files, 0, len(file)))
    with store.writer(source=str(file.path), details=details) as writer:
        for block in file.blocks(episodes):
            task = checker.episode_tasks(block.task, block.first_episode)
            writer.write(block.obs, block.action, block.reward, task)
            report(FileProgress(file.path, number, files, writer.episodes, len(file)))


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
    return f"{len(tasks)} tasks ({tasks[0]}, …), obs {obs_dim}, action {action_dim}, {episode_steps} steps"
