"""What an episode store holds and how it was made, from its header and its columns of tasks and returns alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tdmpc2.data.store import EpisodeStore, Segment
from tdmpc2.errors import DataError

_BINS = 50
"""Of a histogram, and of a curve at most."""
_MOST_SHOWN = 3
"""Different values of a detail that are listed."""


@dataclass(frozen=True)
class Summary:
    """Of a task's returns; the quartiles are interpolated between episodes."""

    mean: float
    least: float
    lower: float
    median: float
    upper: float
    most: float


@dataclass(frozen=True)
class Bin:
    """A task's episodes `first` to `last`, counted from 1 in the order in which they were added, and their returns."""

    first: int
    last: int
    mean: float
    least: float
    most: float


@dataclass(frozen=True)
class TaskFacts:
    """A task of a store.

    Attributes:
        name: of the task.
        obs_dim, action_dim: its own widths.
        episodes: how many.
        transitions: rows, step 0 of each episode included.
        bytes: of its rows on disk.
        returns: None where there are no episodes.
        histogram: episodes in each part of the range of all tasks' returns (`StoreFacts.edges`).
        curve: bins of equally many episodes, but for one more in some: 50 at most, and of 4 episodes at least where
            that leaves 8 bins.
    """

    name: str
    obs_dim: int
    action_dim: int
    episodes: int
    transitions: int
    bytes: int
    returns: Summary | None
    histogram: tuple[int, ...]
    curve: tuple[Bin, ...]


@dataclass(frozen=True)
class SourceFacts:
    """The segments of one source.

    Attributes:
        source: as the segments name it, or "an unnamed source".
        segments, episodes: how many.
        details: each of their details in words, keys below others joined by dots; several values as their range.
        versions: numbers of the sets of package versions (`StoreFacts.versions`) that made them, from 0.
    """

    source: str
    segments: int
    episodes: int
    details: dict[str, str]
    versions: tuple[int, ...]


@dataclass(frozen=True)
class StoreFacts:
    """A store: its tasks in its own order, the sources in theirs, and every set of package versions that made it.

    `edges` are those of the tasks' histograms, evenly spaced over all returns.
    """

    tasks: tuple[TaskFacts, ...]
    edges: tuple[float, ...]
    sources: tuple[SourceFacts, ...]
    versions: tuple[dict[str, str], ...]


def store_facts(store: EpisodeStore) -> StoreFacts:
    """Reads the columns of tasks and returns, no rows.

    Raises:
        DataError: for a store without episodes, or one with a return that is not finite.
    """
    if not len(store):
        raise DataError(f"{store.path}: the store holds no episodes yet; collect or import some first.")
    ids, returns = store.task_ids, store.returns().astype(np.float64)
    if not np.isfinite(returns).all():
        bad = int(np.flatnonzero(~np.isfinite(returns))[0])
        raise DataError(
            f"{store.path / 'returns.bin'}: found {returns[bad]} as the return of episode {bad}, expected finite "
            "numbers; its content has changed. Make the store anew."
        )
    low, high = float(returns.min()), float(returns.max())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    by_task = np.split(returns[np.argsort(ids, kind="stable")], np.cumsum(np.bincount(ids, minlength=len(store.tasks))))
    tasks = tuple(_task(store, task, by_task[task], edges) for task in range(len(store.tasks)))
    sources, versions = _sources(store.segments)
    return StoreFacts(tasks, tuple(edges.tolist()), sources, versions)


def _task(
    store: EpisodeStore, task: int, returns: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]
) -> TaskFacts:
    header, episodes = store.header, len(returns)
    return TaskFacts(
        name=store.tasks[task],
        obs_dim=header.obs_dims[task],
        action_dim=header.action_dims[task],
        episodes=episodes,
        transitions=episodes * store.episode_steps,
        bytes=episodes * header.episode_bytes(task),
        returns=Summary(float(returns.mean()), *map(float, np.quantile(returns, (0, 0.25, 0.5, 0.75, 1))))
        if episodes
        else None,
        histogram=tuple(np.histogram(returns, edges)[0].tolist()),
        curve=tuple(_curve(returns)),
    )


def _curve(returns: npt.NDArray[np.float64]) -> Iterator[Bin]:
    first = 1
    count = len(returns)
    for part in np.array_split(returns, min(_BINS, max(count // 4, min(count, 8)))) if count else ():
        last = first + len(part) - 1
        yield Bin(first, last, float(part.mean()), float(part.min()), float(part.max()))
        first = last + 1


def _sources(segments: Iterable[Segment]) -> tuple[tuple[SourceFacts, ...], tuple[dict[str, str], ...]]:
    groups: dict[str, list[Segment]] = {}
    versions: list[dict[str, str]] = []
    for segment in segments:
        groups.setdefault(segment.source or "an unnamed source", []).append(segment)
        if segment.created_with not in versions:
            versions.append(segment.created_with)
    sources = tuple(
        SourceFacts(
            source,
            len(group),
            sum(segment.episodes for segment in group),
            _details([segment.details for segment in group]),
            tuple(sorted({versions.index(segment.created_with) for segment in group})),
        )
        for source, group in groups.items()
    )
    return sources, tuple(versions)


def _details(all_details: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, list[Any]] = {}
    for details in all_details:
        for key, value in _flat(details):
            found.setdefault(key, []).append(value)
    return {key: _said(values, len(all_details)) for key, values in found.items()}


def _flat(details: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in details.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _said(values: Sequence[Any], segments: int) -> str:
    """Values of one detail in words; "in 2 of 3 segments" where some have none."""
    words = list(dict.fromkeys(map(_word, values)))
    if len(words) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        text = f"{_word(min(values))} to {_word(max(values))}"
    elif len(words) > _MOST_SHOWN:
        text = f"{len(words):,} values, {words[0]} first and {words[-1]} last"
    else:
        text = " or ".join(words)
    return text if len(values) == segments else f"{text} (in {len(values):,} of {segments:,} segments)"


def _word(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value)
