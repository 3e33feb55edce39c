"""A worker's side of an `EnvPool`: some of its slots, stepped one after another. Imports no torch.

Run by `EnvPool` in a process of its own; with no workers, `Slots` serves in the calling process.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc2.envs.gym_env import DMControlEnv, make_env
from tdmpc2.envs.shared_arrays import PoolLayout, SharedArrays
from tdmpc2.errors import UserError

_IDLE = -1
_PARENT_CHECK_SECONDS = 5.0


@dataclass(frozen=True)
class Failure:
    """What a worker reports when an environment raised: where, and the exception with its traceback."""

    slot: int
    task: str
    message: str
    details: str


class Slots:
    """The environments of one worker, at most one in a slot, and their rows in the shared arrays."""

    def __init__(self, layout: PoolLayout, arrays: SharedArrays, worker: int) -> None:
        self._arrays = arrays
        self._worker = worker
        self._frame_size = layout.frame_size
        self._envs: dict[int, DMControlEnv] = {}
        self._current: tuple[int, str] = (_IDLE, "")

    def run(self, kind: str, work: Sequence[Any]) -> Failure | None:
        """Does one request of the pool: `reset` of (slot, task, seed), `step` or `render` of slots."""
        try:
            if kind == "reset":
                for slot, task, seed in work:
                    self._reset(slot, task, seed)
            elif kind == "step":
                for slot in work:
                    self._step(slot)
            else:
                for slot in work:
                    self._render(slot)
        # An environment may raise anything; the parent must hear of it rather than of a lost connection.
        except Exception as error:
            message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            return Failure(*self._current, message, traceback.format_exc())
        self._at(_IDLE, "")
        return None

    def close(self) -> None:
        for env in self._envs.values():
            env.close()
        self._envs.clear()

    def _at(self, slot: int, task: str) -> None:
        self._current = (slot, task)
        self._arrays.busy[self._worker] = slot

    def _reset(self, slot: int, task: str, seed: int) -> None:
        self._at(slot, task)
        env = self._envs.get(slot)
        if env is None or env.task_name != task:
            if env is not None:
                del self._envs[slot]
                env.close()
            if self._frame_size is None:
                env = make_env(task)
            else:
                height, width = self._frame_size
                env = make_env(task, render_mode="rgb_array", height=height, width=width)
            self._envs[slot] = env
        obs, _ = env.reset(seed=seed)
        _check_finite(obs, 0.0)
        row = self._arrays.obs[slot]
        row[: len(obs)] = obs
        row[len(obs) :] = 0
        self._arrays.reward[slot] = 0
        self._arrays.done[slot] = False
        self._arrays.seconds[slot] = env.decision_seconds

    def _step(self, slot: int) -> None:
        env = self._envs[slot]
        self._at(slot, env.task_name)
        action = self._arrays.action[slot, : env.action_space.shape[0]]  # type: ignore[index]
        obs, reward, terminated, truncated, _ = env.step(action)
        _check_finite(obs, reward)
        self._arrays.obs[slot, : len(obs)] = obs
        self._arrays.reward[slot] = reward
        self._arrays.done[slot] = terminated or truncated

    def _render(self, slot: int) -> None:
        env = self._envs[slot]
        self._at(slot, env.task_name)
        self._arrays.frames[slot] = env.render()


def _check_finite(obs: NDArray[np.float32], reward: float) -> None:
    """Stops numbers that no planner or store can use where they come in; the pool names slot and task."""
    if not np.isfinite(obs).all():
        column = int(np.argmin(np.isfinite(obs)))
        raise UserError(f"the environment returned an observation with {obs[column]} in column {column}.")
    if not math.isfinite(reward):
        raise UserError(f"the environment returned the reward {reward}.")


@dataclass(frozen=True)
class WorkerPost:
    """What a new worker is told: the file descriptors it inherits, its number, its parent's process id,
    sizes.
    """

    connection: int
    memory: int
    worker: int
    parent: int
    layout: PoolLayout

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WorkerPost:
        fields = json.loads(text)
        return cls(**{**fields, "layout": PoolLayout(**fields["layout"])})


def main(post_json: str) -> None:
    """Serves requests until the pool closes its end of the connection or its process is gone."""
    post = WorkerPost.from_json(post_json)
    slots = Slots(post.layout, SharedArrays(post.layout, post.memory), post.worker)
    os.close(post.memory)
    with Connection(post.connection) as connection:
        try:
            while True:
                # The connection breaks when the parent dies, unless a fork of the parent still holds it.
                while not connection.poll(_PARENT_CHECK_SECONDS):
                    if os.getppid() != post.parent:
                        return
                kind, work = connection.recv()
                connection.send(slots.run(kind, work))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass
        finally:
            slots.close()
