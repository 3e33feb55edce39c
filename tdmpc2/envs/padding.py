"""One task's environment widened to the widths of a task set, as a multi-task model sees it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from tdmpc2.errors import UserError
from tdmpc2.tasks import TaskSet

Array = NDArray[np.float32]


class PadToTaskSet(gymnasium.Wrapper[Array, Array, Array, Array], gymnasium.utils.RecordConstructorArgs):
    """Observations zero-padded to the set's O, actions float32 [A] cut to the task's own.

    What an action holds beyond the task's own width is ignored. `action_mask`, also in the info of `reset`,
    is float32 [A]: 1 where the task has that action.
    """

    def __init__(self, env: gymnasium.Env[Array, Array], task_set: TaskSet, task: str) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self, task_set=task_set, task=task)
        super().__init__(env)
        index = task_set.index(task)
        widths = (task_set.obs_dims[index], task_set.action_dims[index])
        found = (env.observation_space.shape, env.action_space.shape)
        if found != ((widths[0],), (widths[1],)):
            raise UserError(
                f"environment has observations {found[0]} and actions {found[1]}, but task '{task}' of set "
                f"'{task_set.name}' has {widths[0]} and {widths[1]}; pass the environment of that task."
            )
        self._own_obs, self._own_actions = widths
        self._mask = task_set.action_masks()[index]
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (task_set.obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (task_set.action_dim,), np.float32)

    @property
    def action_mask(self) -> Array:
        return self._mask.copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._padded(obs), {**info, "action_mask": self.action_mask}

    def step(self, action: Array) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        if np.shape(action) != self.action_space.shape:
            raise UserError(f"action has shape {np.shape(action)}, expected {self.action_space.shape} (padded).")
        obs, reward, terminated, truncated, info = self.env.step(action[: self._own_actions])
        return self._padded(obs), reward, terminated, truncated, info

    def _padded(self, obs: Array) -> Array:
        padded = np.zeros(self.observation_space.shape or (), np.float32)
        padded[: self._own_obs] = obs
        return padded
