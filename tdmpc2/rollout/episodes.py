"""Runs many episodes in a pool of environments and yields each one as it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tdmpc2.envs import EnvPool
from tdmpc2.memory import check_memory

if TYPE_CHECKING:
    from tdmpc2.rollout.controllers import Controller

FloatArray = NDArray[np.float32]
FrameSink = Callable[["Job", NDArray[np.uint8]], None]


_JOB_BYTES = 200
"""What one takes at the least, its place in a list and its result included."""


@dataclass(frozen=True)
class Job:
    """One episode to run: of a task, its number among that task's, and the seed that decides it."""

    task: str
    episode: int
    seed: int


def check_jobs(episodes: int, tasks: int, advice: str) -> None:
    """Raises a `UserError` when the memory cannot hold so many jobs of each task; `advice` names the key."""
    check_memory(f"a list of {episodes:,} episodes of {tasks} tasks", episodes * tasks * _JOB_BYTES, advice)


@dataclass(frozen=True)
class Trajectory:
    """obs [T, O]; action [T, A] and reward [T] that led to obs[t], NaN at t = 0 (the dataset's convention)."""

    obs: FloatArray
    action: FloatArray
    reward: FloatArray


@dataclass(frozen=True)
class Episode:
    """A finished episode; `trajectory` only where it was asked for."""

    job: Job
    episode_return: float
    length: int
    trajectory: Trajectory | None


class _Recorder:
    """One slot's running episode."""

    def __init__(self, job: Job, obs: FloatArray, action_dim: int, keep: bool) -> None:
        self.job = job
        self.total = 0.0
        self.length = 0
        self._kept = [(obs, np.full(action_dim, np.nan, np.float32), np.float32(np.nan))] if keep else None

    def add(self, obs: FloatArray, action: FloatArray, reward: np.float32) -> None:
        self.total += float(reward)
        self.length += 1
        if self._kept is not None:
            self._kept.append((obs, action, reward))

    def finish(self) -> Episode:
        trajectory = None
        if self._kept is not None:
            obs, action, reward = zip(*self._kept, strict=True)
            trajectory = Trajectory(np.stack(obs), np.stack(action), np.array(reward, np.float32))
        return Episode(self.job, self.total, self.length, trajectory)


def run_episodes(
    pool: EnvPool,
    jobs: Sequence[Job],
    controller: Controller,
    *,
    record: bool = False,
    groups: int = 1,
    on_decisions: Callable[[int], None] | None = None,
    on_frame: FrameSink | None = None,
    filmed: Callable[[Job], bool] = lambda job: True,
) -> Iterator[Episode]:
    """Runs every job once and yields episodes in the order in which they end.

    Args:
        pool: environments; as many jobs run at a time as it has slots.
        jobs: what to run.
        controller: chooses the actions.
        record: keep trajectories.
        groups: of slots that take turns: while one group's actions are chosen, the workers step the others. Episodes
            do not change by it, but for the rounding of batched arithmetic.
        on_decisions: told how many decisions were just taken.
        on_frame: gets a frame of every `filmed` job before each decision; the pool must render.
        filmed: which jobs to film.
    """
    waiting = deque(jobs)
    running: dict[int, _Recorder] = {}
    latest = np.zeros((pool.num_envs, pool.task_set.obs_dim), np.float32)

    def begin(slots: list[int]) -> None:
        started = [(slot, waiting.popleft()) for slot in slots if waiting]
        if not started:
            return
        free = [slot for slot, _ in started]
        obs = pool.reset(free, [job.task for _, job in started], [job.seed for _, job in started])
        for row, (slot, job) in enumerate(started):
            latest[slot] = obs[row]
            running[slot] = _Recorder(job, obs[row].copy(), pool.task_set.action_dim, record)
            controller.start(slot, job)

    def decide(slots: list[int]) -> tuple[list[int], FloatArray]:
        """Sets off one decision in each of these slots."""
        action = controller.actions(slots, latest[slots])
        if on_frame is not None:
            shown = [slot for slot in slots if filmed(running[slot].job)]
            if shown:
                for slot, frame in zip(shown, pool.render(shown), strict=True):
                    on_frame(running[slot].job, frame)
        pool.step_async(action, slots)
        return slots, action

    begin(list(range(pool.num_envs)))
    slot_groups = [group.tolist() for group in np.array_split(np.arange(pool.num_envs), groups)]
    turns = [[slot for slot in group if slot in running] for group in slot_groups]
    under_way = deque((group, *decide(turn)) for group, turn in zip(slot_groups, turns, strict=True) if turn)
    while under_way:
        group, slots, action = under_way.popleft()
        obs, reward, done = pool.step_wait()
        for row, slot in enumerate(slots):
            running[slot].add(obs[row], action[row], reward[row])
        latest[slots] = obs
        if on_decisions is not None:
            on_decisions(len(slots))
        ended = [slot for row, slot in enumerate(slots) if done[row]]
        for slot in ended:
            yield running.pop(slot).finish()
        begin(ended)
        if turn := [slot for slot in group if slot in running]:
            under_way.append((group, *decide(turn)))
