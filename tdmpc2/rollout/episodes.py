"""Runs many episodes in a pool of environments and yields each one as it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
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

    def trajectory(self) -> Trajectory | None:
        if self._kept is None:
            return None
        obs, action, reward = zip(*self._kept, strict=True)
        return Trajectory(np.stack(obs), np.stack(action), np.array(reward, np.float32))

    def finish(self) -> Episode:
        return Episode(self.job, self.total, self.length, self.trajectory())


@dataclass(frozen=True)
class UnderWay:
    """Where recorded episodes stand between two turns: what a rollout goes on from.

    Attributes:
        running: of each slot that plays, its job and its episode so far.
        decided: the steps under way: slots, and their actions [n, A].
    """

    running: dict[int, tuple[Job, Trajectory]]
    decided: tuple[tuple[list[int], FloatArray], ...]


class Rollout:
    """Episodes in a pool's slots, one decision in each of a group of slots at every `turn`.

    Between two turns the workers simulate what the last one decided.

    Args:
        pool: environments; as many jobs run at a time as it has slots.
        jobs: what to run, taken one by one as slots become free; may be endless.
        controller: chooses the actions.
        record: keep trajectories.
        groups: of slots that take turns: while one group's actions are chosen, the workers step the others. Episodes
            do not change by it, but for the rounding of batched arithmetic.
        on_decisions: told how many decisions were just taken.
        on_frame: gets a frame of every `filmed` job before each decision; the pool must render.
        filmed: which jobs to film.
    """

    def __init__(
        self,
        pool: EnvPool,
        jobs: Iterable[Job],
        controller: Controller,
        *,
        record: bool = False,
        groups: int = 1,
        on_decisions: Callable[[int], None] | None = None,
        on_frame: FrameSink | None = None,
        filmed: Callable[[Job], bool] = lambda job: True,
    ) -> None:
        self._pool = pool
        self._jobs = iter(jobs)
        self._controller = controller
        self._record = record
        self._on_decisions = on_decisions
        self._on_frame = on_frame
        self._filmed = filmed
        self._running: dict[int, _Recorder] = {}
        self._latest = np.zeros((pool.num_envs, pool.task_set.obs_dim), np.float32)
        self._groups: list[list[int]] = [part.tolist() for part in np.array_split(np.arange(pool.num_envs), groups)]
        self._decided: deque[tuple[list[int], list[int], FloatArray]] = deque()  # group, its slots at work, actions
        self._failure: BaseException | None = None

    @property
    def playing(self) -> bool:
        """Whether there is something to wait for; not before `begin`, nor when all jobs are done."""
        return bool(self._decided) or self._failure is not None

    def episodes(self) -> Iterator[Episode]:
        """Runs every job once and yields episodes in the order in which they end."""
        self.begin()
        while self.playing:
            yield from self.turn()

    def begin(self) -> None:
        """Starts the first episodes, and takes their first decisions."""
        self._start(list(range(self._pool.num_envs)))
        for group in self._groups:
            self._decide(group)

    def turn(self) -> list[Episode]:
        """Waits for the oldest step under way and decides the next one in its slots; gives the episodes that ended.

        A slot whose episode ended goes on with the next job. What fails then is raised by the next turn: the episodes
        that ended are whole.
        """
        if self._failure is not None:
            raise self._failure
        group, slots, action = self._decided.popleft()
        obs, reward, done = self._pool.step_wait()
        for row, slot in enumerate(slots):
            self._running[slot].add(obs[row], action[row], reward[row])
        self._latest[slots] = obs
        if self._on_decisions is not None:
            self._on_decisions(len(slots))
        ended = [slot for row, slot in enumerate(slots) if done[row]]
        finished = [self._running.pop(slot).finish() for slot in ended]
        try:
            self._start(ended)
            self._decide(group)
        except BaseException as failure:
            if not finished:
                raise
            self._failure = failure
        return finished

    def _start(self, slots: list[int]) -> None:
        self._reset([(slot, job) for slot, job in zip(slots, self._jobs, strict=False)])

    def _reset(self, started: list[tuple[int, Job]]) -> None:
        if not started:
            return
        free = [slot for slot, _ in started]
        obs = self._pool.reset(free, [job.task for _, job in started], [job.seed for _, job in started])
        for row, (slot, job) in enumerate(started):
            self._latest[slot] = obs[row]
            self._running[slot] = _Recorder(job, obs[row].copy(), self._pool.task_set.action_dim, self._record)
            self._controller.start(slot, job)

    def _decide(self, group: list[int]) -> None:
        """Sets off one decision in each slot of a group that plays."""
        slots = [slot for slot in group if slot in self._running]
        if not slots:
            return
        action = self._controller.actions(slots, self._latest[slots])
        if self._on_frame is not None:
            shown = [slot for slot in slots if self._filmed(self._running[slot].job)]
            if shown:
                for slot, frame in zip(shown, self._pool.render(shown), strict=True):
                    self._on_frame(self._running[slot].job, frame)
        self._send(group, slots, action)

    def _send(self, group: list[int], slots: list[int], action: FloatArray) -> None:
        self._pool.step_async(action, slots)
        self._decided.append((group, slots, action))

    def under_way(self) -> UnderWay:
        """Where the episodes stand; they must be recorded."""
        running: dict[int, tuple[Job, Trajectory]] = {}
        for slot, recorder in self._running.items():
            trajectory = recorder.trajectory()
            assert trajectory is not None
            running[slot] = recorder.job, trajectory
        return UnderWay(running, tuple((list(slots), action) for _, slots, action in self._decided))

    def resume(self, state: UnderWay) -> list[int]:
        """Goes on, in place of `begin`: simulates the episodes again up to where they stood, from seeds and actions.

        The controller must be told of its own state after this, for it is told that each job starts.

        Returns:
            The slots whose simulation came out otherwise (another machine, another version of the simulator): their
            episodes begin anew, in a group of their own.
        """
        pool = self._pool
        self._reset([(slot, job) for slot, (job, _) in state.running.items()])
        lengths = {slot: len(trajectory.reward) for slot, (_, trajectory) in state.running.items()}
        odd = {slot for slot, (_, t) in state.running.items() if not np.array_equal(self._latest[slot], t.obs[0])}
        for step in range(1, max(lengths.values(), default=0)):
            slots = [slot for slot, length in lengths.items() if step < length and slot not in odd]
            if not slots:
                break
            action = np.stack([state.running[slot][1].action[step] for slot in slots])
            obs, reward, done = pool.step(action, slots)
            for row, slot in enumerate(slots):
                seen = state.running[slot][1]
                if done[row] or reward[row] != seen.reward[step] or not np.array_equal(obs[row], seen.obs[step]):
                    odd.add(slot)
                self._running[slot].add(obs[row], action[row], reward[row])
            self._latest[slots] = obs
        again = sorted(odd)
        self._groups = [[slot for slot in group if slot not in odd] for group in self._groups]
        for slots, action in state.decided:
            kept = [row for row, slot in enumerate(slots) if slot not in odd]
            if kept:
                group = next(group for group in self._groups if slots[kept[0]] in group)
                self._send(group, [slots[row] for row in kept], action[kept])
        if again:
            self._groups.append(again)
            self._reset([(slot, state.running[slot][0]) for slot in again])
            self._decide(again)
        return again
