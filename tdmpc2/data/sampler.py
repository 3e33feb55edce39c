"""Draws training batches: which slices a step gets is a pure function of the seed and the step.

So a run that resumes at step n draws what it would have drawn without the interruption, and the order depends
neither on the number of batches prepared ahead nor on the machine.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tdmpc2.data.batch import Batch
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import DataError
from tdmpc2.memory import check_memory
from tdmpc2.ranges import MOST_ROUNDS, MOST_SLICES, check_whole
from tdmpc2.tasks import TaskSet

if sys.platform == "linux":
    import resource


_ANNOUNCE = 16
"""Batches whose rows are announced to the system for every wait for the disk in one batch, 256 at most. Announcing
makes batches from a disk several times faster and those from memory slower, so it ends by itself as the data comes
in, and a store that is in memory but for a few pages hardly pays for it."""


_PART = 32_000
"""Elements below which torch does a copy in the calling thread alone."""


_Prepared: TypeAlias = "tuple[Batch, torch.cuda.Event | None]"


class Labels(Protocol):
    """A number, or an action, for every row of a store."""

    def at(self, episodes: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]: ...


class Drawer(Protocol):
    """Whose batches are a function of the step."""

    def batch(self, step: int) -> Batch: ...

    def drawn(self, step: int) -> str: ...


class SliceSampler:
    """Uniform over every (episode, start) of the task set's tasks, with replacement.

    The store's tasks are matched to the task set's by name and its other tasks are never drawn.

    Args:
        store: the episodes.
        task_set: the tasks to draw; batches have its widths.
        batch_size: slices a step, of all processes together; 2**20 at most.
        horizon: H; a slice has H + 1 steps, fewer than an episode.
        seed: of the order.
        rank, world_size: of several processes, this one gets its equal part of every step's slices, in their order.
        labels: a teacher's rewards for the store's rows, to come along as `Batch.labels`.
        planned: a planner's actions for them, to come along as `Batch.planned`.

    Raises:
        UserError: for a number out of its range, or a batch that the machine's memory cannot hold.
        DataError: for a task without episodes, a store too narrow, episodes too short, or a batch that cannot be
            shared out evenly.
    """

    def __init__(
        self,
        store: EpisodeStore,
        task_set: TaskSet,
        batch_size: int,
        horizon: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        labels: Labels | None = None,
        planned: Labels | None = None,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"found batch_size {batch_size}, expected at least 1.")
        check_whole("batch_size", batch_size, 1, MOST_SLICES)
        if not 0 <= rank < world_size or batch_size % world_size:
            raise DataError(
                f"found batch_size {batch_size} for process {rank} of {world_size}, expected a multiple of "
                f"{world_size}."
            )
        if not 1 <= horizon < store.episode_steps:
            raise DataError(
                f"{store.path}: found horizon {horizon}, expected 1 to {store.episode_steps - 1}: its "
                f"episodes have {store.episode_steps} steps."
            )
        check_whole("horizon", horizon, 1, MOST_ROUNDS)
        if not 0 <= seed < 2**64:
            raise DataError(f"found seed {seed}, expected 0 to 2**64 - 1.")
        check_whole("seed", seed, 0, 2**64 - 1)
        self.store = store
        self.task_set = task_set
        self.batch_size = batch_size
        self.horizon = horizon
        self.seed = seed
        self.labels = labels
        self.planned = planned
        count = batch_size // world_size
        self._slices = slice(rank * count, (rank + 1) * count)
        self._episodes, self._task_ids = _match(store, task_set)
        self._starts = store.episode_steps - horizon
        self._batches_to_announce = _ANNOUNCE
        # A batch copies one run of values for every slice, as long as the widest task's, and picks from those.
        length = horizon + 1
        drawn = store.task_ids[self._episodes]
        self._run = min(length * int(store.header.widths[np.unique(drawn)].max()), store.rows.size)
        self._runs = np.lib.stride_tricks.sliding_window_view(store.rows, self._run)
        self._check_memory(count, length)
        self._template = _slice_template(store, task_set, length, padding=self._run)

    def _check_memory(self, slices: int, length: int) -> None:
        """The runs of a batch, copied and padded, the places of its values, and the values."""
        values = length * (self.task_set.obs_dim + self.task_set.action_dim + 1)
        check_memory(
            f"a batch of batch_size={self.batch_size} and horizon={self.horizon}",
            slices * (2 * self._run * self.store.rows.itemsize + values * 12),
            "choose fewer of them",
        )

    @property
    def num_episodes(self) -> int:
        """Episodes that can be drawn."""
        return len(self._episodes)

    def indices(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """int64 [B] each: the store's episodes that step `step` draws, and the first step of each slice.

        Those of the whole batch, in every process.
        """
        rows, starts = self._draw(step)
        return self._episodes[rows], starts

    def drawn(self, step: int) -> str:
        """The episodes of the whole batch of update `step`, in words."""
        return f"episodes {', '.join(map(str, sorted(set(self.indices(step)[0].tolist()))))}"

    def batch(self, step: int) -> Batch:
        """The batch of update step `step`, or this process's part of it, on the CPU."""
        drawn, starts = (part[self._slices] for part in self._draw(step))
        return self.slices(self._episodes[drawn], starts)

    def slices(self, episodes: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> Batch:
        """These slices, int64 [B] each, of episodes whose task is in the task set."""
        rows = self._gather(episodes, starts)
        obs_dim = self.task_set.obs_dim
        labels = None
        if self.labels is not None:
            # The action that led from obs_0 lies in the row after it, and so does the teacher's reward for it.
            after = starts + np.arange(1, self.horizon + 1)[:, None]
            labels = torch.from_numpy(self.labels.at(episodes, after)[:, :, None])
        planned = None
        if self.planned is not None:
            at = starts + np.arange(self.horizon + 1)[:, None]
            planned = torch.from_numpy(self.planned.at(episodes, at))
        return Batch(
            obs=_tensor(rows[:, :, :obs_dim]),
            action=_tensor(rows[1:, :, obs_dim:-1]),
            reward=_tensor(rows[1:, :, -1:]),
            task=torch.from_numpy(self._task_ids[self.store.task_ids[episodes]]),
            labels=labels,
            planned=planned,
        )

    def _draw(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Positions in the drawable episodes and first steps, from the Philox stream (seed, step).

        Philox is a counter-based generator whose output numpy keeps stable across releases. The step is the
        counter's second word: a stream has 2**64 blocks before it meets the next step's.
        """
        stream = np.random.Philox(key=self.seed, counter=np.array([0, step, 0, 0], dtype=np.uint64))
        raw = stream.random_raw(2 * self.batch_size)
        return _below(raw[: self.batch_size], self.num_episodes), _below(raw[self.batch_size :], self._starts)

    def _gather(self, episodes: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """[H+1,B,O+A+1] in the task set's widths, zero where a task has no such column."""
        store, count = self.store, len(episodes)
        task = store.task_ids[episodes]
        first = store.offsets[episodes] + starts * store.header.widths[task]
        begin = np.minimum(first, len(self._runs) - 1)
        if self._batches_to_announce > 0:
            self._batches_to_announce -= 1
            store.will_read(begin, self._run)
        store.check_rows()
        faults = _disk_waits()
        copied = self._runs[begin]
        store.check_rows()
        if waits := _disk_waits() - faults:
            self._batches_to_announce = max(self._batches_to_announce, min(_ANNOUNCE * waits, 256))
        for late in np.flatnonzero(first > begin):  # near the store's end a narrow slice is not at its run's start
            copied[late] = np.roll(copied[late], begin[late] - first[late])
        padded = np.zeros((count, self._run + 1), copied.dtype)  # the last column is what padding is read from
        padded[:, :-1] = copied
        where = self._template.take(task, axis=0)
        where += np.arange(count)[:, None] * (self._run + 1)
        return _single(padded.reshape(-1)).take(where).reshape(count, self.horizon + 1, -1).swapaxes(0, 1)


class Prefetcher:
    """Iterates over a sampler's batches from `start_step` on, prepared by threads up to `depth` steps ahead.

    The order is exactly the steps', whatever the number of threads. For a CUDA device, a batch is put into
    page-locked memory and copied on a stream of its own as soon as it is ready; the consumer's stream waits for that
    copy alone, and the host for nothing. Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        sampler: Drawer,
        device: torch.device | str,
        start_step: int = 0,
        depth: int = 4,
        threads: int = 1,
    ) -> None:
        if depth < 1 or threads < 1:
            raise DataError(f"found prefetch depth {depth} and {threads} threads, expected at least 1.")
        self._sampler = sampler
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._depth = depth
        self._next = start_step  # the consumer's
        self._claimed = start_step  # the first that no thread has begun
        self._ready: dict[int, _Prepared | BaseException] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-prefetcher-{n}", daemon=True) for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next step's batch on the device; raises what its thread met, and stops once closed."""
        if self._error is not None:
            raise self._error
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._next in self._ready)
            if self._stopped:
                raise StopIteration
            item = self._ready.pop(self._next)
            self._next += 1
            self._changed.notify_all()
        if isinstance(item, BaseException):
            self._error = item
            raise item
        batch, copied = item
        if copied is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for values in batch.tensors().values():
                values.record_stream(current)
        return batch

    def drawn(self, step: int) -> str:
        """As the sampler says it."""
        return self._sampler.drawn(step)

    def state(self) -> dict[str, Any]:
        """Nothing: a batch is a function of the seed and the step."""
        return {}

    def news(self) -> list[dict[str, float]]:
        """None: a store does not change."""
        return []

    def standing(self) -> dict[str, float]:
        """Nothing beside the step."""
        return {}

    def close(self) -> None:
        """Stops and joins the threads; batches prepared ahead are dropped."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._claimed < self._next + self._depth)
                if self._stopped:
                    return
                step = self._claimed
                self._claimed += 1
            item: _Prepared | BaseException
            try:
                item = self._prepared(step)
            except BaseException as error:  # carried over to the consumer, who raises it
                item = error
            with self._changed:
                self._ready[step] = item
                self._changed.notify_all()

    def _prepared(self, step: int) -> _Prepared:
        batch = self._sampler.batch(step)
        if self._stream is None:
            return batch.to(self._device), None
        with torch.cuda.stream(self._stream):
            return batch.pin_memory().to(self._device, non_blocking=True), self._stream.record_event()


def _slice_template(store: EpisodeStore, task_set: TaskSet, length: int, padding: int) -> npt.NDArray[np.int64]:
    """[tasks, length * (O+A+1)]: for every task of the store, where each value of a slice lies from its first one on.

    Columns are those of the task set, which knows a task's own widths; one that a task does not have is at `padding`.
    """
    obs_dim, columns = task_set.obs_dim, task_set.obs_dim + task_set.action_dim + 1
    offsets = np.full((len(store.tasks), length, columns), padding, np.int64)
    for k, name in enumerate(store.tasks):
        if name not in task_set.tasks:
            continue
        index = task_set.index(name)
        o, a = task_set.obs_dims[index], task_set.action_dims[index]
        stored, width = store.header.obs_dims[k], int(store.header.widths[k])
        within = np.concatenate([np.arange(o), stored + np.arange(a), [width - 1]])
        at = np.concatenate([np.arange(o), obs_dim + np.arange(a), [columns - 1]])
        offsets[k][:, at] = within[None, :] + np.arange(length)[:, None] * width
    return offsets.reshape(len(store.tasks), -1)


def _single(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """1-D values in float32.

    By torch, which converts half precision several times faster than numpy; in parts so small that it does not wake
    other threads for them, which belong to the training.
    """
    if values.dtype == np.float32:
        return values
    out = np.empty(len(values), np.float32)
    for start in range(0, len(values), _PART):
        part = slice(start, start + _PART)
        torch.from_numpy(out[part]).copy_(torch.from_numpy(values[part]))
    return out


def _match(store: EpisodeStore, task_set: TaskSet) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The episodes whose task is in the task set; and of each of the store's tasks, its id there or -1."""
    for name, obs_dim, action_dim in zip(task_set.tasks, task_set.obs_dims, task_set.action_dims, strict=True):
        if name not in store.tasks:
            continue
        k = store.tasks.index(name)
        if obs_dim > store.header.obs_dims[k] or action_dim > store.header.action_dims[k]:
            raise DataError(
                f"{store.path}: found rows of obs {store.header.obs_dims[k]} and action {store.header.action_dims[k]}, "
                f"but task '{name}' needs {obs_dim} and {action_dim}; use a store recorded for this task set."
            )
    ids = np.full(len(store.tasks), -1, dtype=np.int64)
    for position, name in enumerate(store.tasks):
        if name in task_set.tasks:
            ids[position] = task_set.index(name)
    tasks = ids[store.task_ids]
    episodes = np.flatnonzero(tasks >= 0)
    counts = np.bincount(tasks[episodes], minlength=len(task_set))
    missing = [name for name, count in zip(task_set.tasks, counts, strict=True) if count == 0]
    if missing:
        raise DataError(
            f"{store.path}: no episodes of {', '.join(missing)}, which task set '{task_set.name}' "
            "names; import or collect some, or train on a task set without them."
        )
    return episodes, ids


def _disk_waits() -> int:
    """How often this thread has waited for a page from the disk; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def _below(raw: npt.NDArray[np.uint64], limit: int) -> npt.NDArray[np.int64]:
    """floor(raw * limit / 2**64), limit at most 2**32: whole numbers below it, uniform to 1 in 2**32."""
    high, low, n = raw >> np.uint64(32), raw & np.uint64(0xFFFFFFFF), np.uint64(limit)
    return ((high * n + ((low * n) >> np.uint64(32))) >> np.uint64(32)).astype(np.int64)


def _tensor(values: npt.NDArray[np.float32]) -> torch.Tensor:
    """A contiguous tensor."""
    return torch.from_numpy(np.ascontiguousarray(values))
