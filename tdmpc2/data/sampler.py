"""Draws training batches: which slices a step gets is a pure function of the seed and the step.

So a run that resumes at step n draws what it would have drawn without the interruption, and the order depends
neither on the number of batches prepared ahead nor on the machine.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch

from tdmpc2.data.batch import Batch
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import DataError
from tdmpc2.tasks import TaskSet

if sys.platform == "linux":
    import resource


_ANNOUNCE = 256
"""Batches whose rows are announced to the system after one had to wait for the disk. That makes batches from a
disk several times faster and those from memory slower, so it ends by itself once the data is there."""


class SliceSampler:
    """Uniform over every (episode, start) of the task set's tasks, with replacement.

    The store's tasks are matched to the task set's by name and its other tasks are never drawn. Rows wider
    than the task set lose padding columns; narrower ones are refused.
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
    ) -> None:
        """Raises a `DataError` for a task without episodes, a store too narrow or episodes too short."""
        if batch_size < 1:
            raise DataError(f"found batch_size {batch_size}, expected at least 1.")
        if not 1 <= horizon < store.episode_steps:
            raise DataError(
                f"{store.path}: found horizon {horizon}, expected 1 to {store.episode_steps - 1}: its "
                f"episodes have {store.episode_steps} steps."
            )
        if not 0 <= seed < 2**64:
            raise DataError(f"found seed {seed}, expected 0 to 2**64 - 1.")
        self.store = store
        self.task_set = task_set
        self.batch_size = batch_size
        self.horizon = horizon
        self.seed = seed
        part = batch_size // world_size
        self._part = slice(rank * part, (rank + 1) * part)
        self._episodes, self._tasks = _match(store, task_set)
        self._starts = store.episode_steps - horizon
        self._batches_to_announce = 0

    @property
    def num_episodes(self) -> int:
        """Episodes that can be drawn."""
        return len(self._episodes)

    def indices(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """int64 [B] each: the store's episodes that step `step` draws, and the first step of each slice."""
        rows, starts = self._draw(step)
        return self._episodes[rows], starts

    def batch(self, step: int) -> Batch:
        """The batch of update step `step`, on the CPU."""
        drawn, starts = self._draw(step)
        drawn, starts = drawn[self._part], starts[self._part]
        rows = self._gather(self._episodes[drawn], starts)
        store, tasks = self.store, self.task_set
        return Batch(
            obs=_crop(rows[:, :, : store.obs_dim], tasks.obs_dim),
            action=_crop(rows[1:, :, store.obs_dim : -1], tasks.action_dim),
            reward=_crop(rows[1:, :, -1:], 1),
            task=torch.from_numpy(self._tasks[drawn]),
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
        """Rows [H+1,B,O+A+1] of the store."""
        store = self.store
        length = self.horizon + 1
        shards = np.searchsorted(store.shard_starts, episodes, side="right") - 1
        first = (episodes - store.shard_starts[shards]) * store.episode_steps + starts
        index = first[None, :] + np.arange(length)[:, None]
        parts = [(int(shard), np.flatnonzero(shards == shard)) for shard in np.unique(shards)]
        if self._batches_to_announce > 0:
            self._batches_to_announce -= 1
            for shard, here in parts:
                store.will_read(shard, first[here], length)
        faults = _disk_waits()
        rows = np.empty((length, len(episodes), store.header.width), dtype=np.float32)
        for shard, here in parts:
            rows[:, here] = store.rows(shard)[index[:, here]]
        if _disk_waits() > faults:
            self._batches_to_announce = _ANNOUNCE
        return rows


class Prefetcher:
    """Iterates over a sampler's batches from `start_step` on, prepared by one thread up to `depth` ahead.

    The order is exactly the steps'. For a CUDA device, batches wait in page-locked memory and are copied on
    the consumer's current stream without blocking it. Use as a context manager, or call `close`.
    """

    def __init__(self, sampler: SliceSampler, device: torch.device | str, start_step: int = 0, depth: int = 4) -> None:
        if depth < 1:
            raise DataError(f"found prefetch depth {depth}, expected at least 1.")
        self._sampler = sampler
        self._device = torch.device(device)
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(start_step,), name="batch-prefetcher", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next step's batch on the device; raises what the thread met, and stops once closed."""
        if self._error is not None:
            raise self._error
        if self._stop.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._error = item
            raise item
        return item.to(self._device, non_blocking=True) if self._device.type == "cuda" else item.to(self._device)

    def close(self) -> None:
        """Stops and joins the thread; batches prepared ahead are dropped."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self, step: int) -> None:
        try:
            while not self._stop.is_set():
                batch = self._sampler.batch(step)
                self._put(batch.pin_memory() if self._device.type == "cuda" else batch)
                step += 1
        except BaseException as error:  # carried over to the consumer, who raises it
            self._put(error)

    def _put(self, item: Batch | BaseException) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
        return None


def _match(store: EpisodeStore, task_set: TaskSet) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The episodes whose task is in the task set, and each one's id there."""
    for name, obs_dim, action_dim in zip(task_set.tasks, task_set.obs_dims, task_set.action_dims, strict=True):
        if obs_dim > store.obs_dim or action_dim > store.action_dim:
            raise DataError(
                f"{store.path}: found rows of obs {store.obs_dim} and action {store.action_dim}, but "
                f"task '{name}' needs {obs_dim} and {action_dim}; use a store recorded for this task set."
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
    return episodes, tasks[episodes]


def _disk_waits() -> int:
    """How often this thread has waited for a page from the disk; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def _below(raw: npt.NDArray[np.uint64], limit: int) -> npt.NDArray[np.int64]:
    """floor(raw * limit / 2**64), limit at most 2**32: whole numbers below it, uniform to 1 in 2**32."""
    high, low, n = raw >> np.uint64(32), raw & np.uint64(0xFFFFFFFF), np.uint64(limit)
    return ((high * n + ((low * n) >> np.uint64(32))) >> np.uint64(32)).astype(np.int64)


def _crop(values: npt.NDArray[np.float32], width: int) -> torch.Tensor:
    """[…,W] -> a contiguous tensor […,width]. What falls away is padding: the store's checks say so."""
    return torch.from_numpy(np.ascontiguousarray(values[..., :width]))
