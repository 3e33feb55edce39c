"""Labels a store: the frozen teacher's reward for every transition, once, for any number of students."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from tdmpc2.data.labels import LabelFacts, LabelWriter, labelled_tasks
from tdmpc2.data.store import EpisodeBlock, EpisodeStore
from tdmpc2.distillation.teacher import Teacher
from tdmpc2.errors import UserError

_BATCHES_A_READ = 4


def label_facts(store: EpisodeStore, teacher: Teacher, name: str) -> LabelFacts:
    """What the column of this teacher's rewards for this store is; `name` is the teacher's.

    The tasks labelled are the student's that the store has.
    """
    return LabelFacts(
        teacher=name,
        teacher_checksum=teacher.checksum,
        teacher_parameters=teacher.num_parameters,
        precision=teacher.precision,
        store=store.fingerprint,
        tasks=labelled_tasks(store, teacher.student_tasks),
        episodes=len(store),
        episode_steps=store.episode_steps,
    )


def label_store(
    store: EpisodeStore,
    teacher: Teacher,
    writer: LabelWriter[LabelFacts],
    *,
    batch_size: int,
    on_episodes: Callable[[int], None] = lambda count: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Appends the teacher's rewards from the writer's next episode on; returns whether the column is complete.

    Args:
        store: the episodes.
        teacher: on any device.
        writer: entered; holds what is labelled already.
        batch_size: transitions a forward pass.
        on_episodes: told how many episodes were added.
        stop: asked before every forward pass; episodes that are not whole by then are left out.
    """
    total = len(store)
    count = min(writer.header.block_episodes, max(1, _BATCHES_A_READ * batch_size // (store.episode_steps - 1)))
    while writer.header.block_episodes % count:  # so that one who goes on after a block forms the same batches
        count -= 1
    known = {name: number for number, name in enumerate(teacher.student_tasks.tasks)}
    ids = np.array([known.get(name, -1) for name in store.tasks])
    feed = _Feed(teacher, batch_size, store.obs_dim, store.action_dim)
    with ThreadPoolExecutor(1, "label-reader") as reader:  # reads ahead while the teacher computes
        starts = range(writer.episodes, total, count)
        ahead = [reader.submit(store.read_episodes, start, min(start + count, total)) for start in starts[:1]]
        for start in starts:
            block = ahead.pop().result()
            after = start + len(block.task)
            if after < total:
                ahead.append(reader.submit(store.read_episodes, after, min(after + count, total)))
            labels = _labels(block, ids[block.task], feed, stop)
            if labels is None:
                return False
            _check_finite(store, start, labels, ids[block.task])
            writer.append(labels)
            on_episodes(len(labels))
    return True


def _labels(
    block: EpisodeBlock, tasks: npt.NDArray[np.int64], feed: _Feed, stop: Callable[[], bool]
) -> npt.NDArray[np.float32] | None:
    """Labels [E, T] of whole episodes; None when told to stop. `tasks` [E] are the student's ids, -1 for none."""
    episodes, steps = block.obs.shape[:2]
    labels = np.full((episodes, steps), np.nan, dtype=np.float32)
    known = np.flatnonzero(tasks >= 0)
    decisions = steps - 1
    # Row t holds the action that led from the observation of row t - 1.
    obs = np.ascontiguousarray(block.obs[known, :-1]).reshape(len(known) * decisions, -1)
    action = np.ascontiguousarray(block.action[known, 1:]).reshape(len(known) * decisions, -1)
    task = np.repeat(tasks[known], decisions)
    rewards = np.empty(len(task), dtype=np.float32)
    for start in range(0, len(task), feed.batch_size):
        if stop():
            return None
        part = slice(start, start + feed.batch_size)
        feed.send(obs[part], action[part], task[part], rewards[part])
    feed.collect()
    labels[known, 1:] = rewards.reshape(len(known), decisions)
    return labels


def _check_finite(
    store: EpisodeStore, first: int, labels: npt.NDArray[np.float32], tasks: npt.NDArray[np.int64]
) -> None:
    bad = ~np.isfinite(labels[:, 1:]) & (tasks >= 0)[:, None]
    if bad.any():
        episode, row = (int(i) for i in np.argwhere(bad)[0])
        raise UserError(
            f"the teacher's reward for {store.path}, episode {first + episode}, step {row + 1} is not a finite number: "
            "check its weights, and the data with scripts/import_data.py --verify."
        )


class _Feed:
    """Runs batches through a teacher with the next one prepared while the device works on the one before.

    For a CUDA device, both directions go through page-locked memory and nothing waits but for a batch that has
    two behind it. On a CPU a batch is done when `send` returns; the result is delivered in the same order.
    """

    def __init__(self, teacher: Teacher, batch_size: int, obs_dim: int, action_dim: int) -> None:
        self.batch_size = batch_size
        self._lanes = tuple(_Lane(teacher, batch_size, obs_dim, action_dim) for _ in range(2))

    def send(
        self,
        obs: npt.NDArray[np.float32],
        action: npt.NDArray[np.float32],
        task: npt.NDArray[np.int64],
        result: npt.NDArray[np.float32],
    ) -> None:
        """Enqueues obs [B, O], action [B, A], task [B]; `result` [B] is filled by the next `collect` at the latest."""
        lane, other = self._lanes
        lane.collect()
        lane.send(obs, action, task, result)
        self._lanes = (other, lane)

    def collect(self) -> None:
        """Waits for every result."""
        for lane in self._lanes:
            lane.collect()


class _Lane:
    """Host memory for one batch on its way through the device."""

    def __init__(self, teacher: Teacher, size: int, obs_dim: int, action_dim: int) -> None:
        cuda = teacher.device.type == "cuda"
        self._teacher = teacher
        self._obs = torch.empty(size, obs_dim, pin_memory=cuda)
        self._action = torch.empty(size, action_dim, pin_memory=cuda)
        self._task = torch.empty(size, dtype=torch.int64, pin_memory=cuda)
        self._rewards = torch.empty(size, pin_memory=cuda)
        self._done = torch.cuda.Event() if cuda else None
        self._result: npt.NDArray[np.float32] | None = None

    def send(
        self,
        obs: npt.NDArray[np.float32],
        action: npt.NDArray[np.float32],
        task: npt.NDArray[np.int64],
        result: npt.NDArray[np.float32],
    ) -> None:
        count, device = len(task), self._teacher.device
        for held, given in ((self._obs, obs), (self._action, action), (self._task, task)):
            held[:count].copy_(torch.from_numpy(given))
        inputs = (held[:count].to(device, non_blocking=True) for held in (self._obs, self._action, self._task))
        rewards = self._teacher.rewards(*inputs)
        self._rewards[:count].copy_(rewards[:, 0], non_blocking=True)
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(device))
        self._result = result

    def collect(self) -> None:
        if self._result is None:
            return
        if self._done is not None:
            self._done.synchronize()
        self._result[:] = self._rewards[: len(self._result)].numpy()
        self._result = None
