"""What every episode must satisfy before it enters a store; each error names source, episode, step and key.

Convention of the stored rows: action and reward at step t are those that led to the observation at step t. At
step 0 they stand for nothing (the published files have NaN there) and may hold any value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tdmpc2.errors import DataError, UserError
from tdmpc2.tasks import task_set

_DAMAGED = "the file is damaged or was recorded wrongly: get it again, or leave it out"


def known_widths(tasks: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Each task's own observation and action widths, or None when one of the names has no environment here."""
    try:
        known = task_set("names", tasks)
    except UserError:
        return None
    return known.obs_dims, known.action_dims


@dataclass(frozen=True)
class EpisodeChecker:
    """The layout that blocks of episodes must have. `source` is named in every error.

    `tasks` are the names whose positions are the task ids; where `obs_dims` gives each task's own width, the
    observation columns beyond it must be zero.
    """

    source: str
    tasks: tuple[str, ...]
    obs_dim: int
    action_dim: int
    episode_steps: int
    obs_dims: tuple[int, ...] | None

    def layout(self, obs: Sequence[int], action: Sequence[int], reward: Sequence[int]) -> None:
        """Shapes: obs [E,T,O], action [E,T,A], reward [E,T] with this T, O and A."""
        expected = f"obs [episodes, {self.episode_steps}, {self.obs_dim}]"
        expected += f", action [episodes, {self.episode_steps}, {self.action_dim}]"
        expected += f" and reward [episodes, {self.episode_steps}]"
        episodes = obs[0] if len(obs) else 0
        wanted = (
            (episodes, self.episode_steps, self.obs_dim),
            (episodes, self.episode_steps, self.action_dim),
            (episodes, self.episode_steps),
        )
        if (tuple(obs), tuple(action), tuple(reward)) != wanted:
            raise DataError(
                f"{self.source}: found obs {list(obs)}, action {list(action)} and reward "
                f"{list(reward)}, expected "
                f"{expected}; choose the task set and episode length that the data was recorded with."
            )

    def episode_tasks(self, task: npt.NDArray[Any], first_episode: int = 0) -> npt.NDArray[np.int64]:
        """Task ids [E,T] -> [E]: one id must hold throughout an episode."""
        changes = task != task[:, :1]
        if changes.any():
            e, t = (int(i) for i in np.argwhere(changes)[0])
            raise DataError(
                f"{self.source}: episode {first_episode + e}, step {t}, key 'task': found {task[e, t]} after "
                f"{task[e, 0]}, expected one task in an episode; {_DAMAGED}."
            )
        return task[:, 0].astype(np.int64)

    def check(
        self,
        obs: npt.NDArray[np.float32],
        action: npt.NDArray[np.float32],
        reward: npt.NDArray[np.float32],
        task: npt.NDArray[Any],
        first_episode: int = 0,
    ) -> npt.NDArray[np.int16]:
        """Checks obs [E,T,O], action [E,T,A], reward [E,T] and task [E]; returns the ids as int16 [E]."""
        self.layout(obs.shape, action.shape, reward.shape)
        if task.shape != obs.shape[:1] or not np.issubdtype(task.dtype, np.integer):
            raise DataError(f"{self.source}: found task {task.dtype} {list(task.shape)}, expected {len(obs)} integers.")
        wrong = (task < 0) | (task >= len(self.tasks))
        if wrong.any():
            e = int(np.argmax(wrong))
            raise DataError(
                f"{self.source}: episode {first_episode + e}, key 'task': found {task[e]}, expected 0 to "
                f"{len(self.tasks) - 1}; choose the task set that the data was recorded with."
            )
        self._finite("obs", obs, 0, first_episode)
        self._finite("action", action, 1, first_episode)
        self._finite("reward", reward, 1, first_episode)
        if self.obs_dims is not None:
            self._padding(obs, task, self.obs_dims, first_episode)
        return task.astype(np.int16)

    def _finite(self, key: str, values: npt.NDArray[np.float32], first_step: int, first_episode: int) -> None:
        if np.isfinite(values[:, first_step:]).all():
            return
        e, t, *_ = (int(i) for i in np.argwhere(~np.isfinite(values[:, first_step:]))[0])
        found = values[e, t + first_step]
        found = found[~np.isfinite(found)].flat[0] if found.ndim else found
        allowed = "" if first_step == 0 else " (only step 0 may hold anything)"
        raise DataError(
            f"{self.source}: episode {first_episode + e}, step {t + first_step}, key '{key}': found {found}, "
            f"expected a finite number{allowed}; {_DAMAGED}."
        )

    def representable(self, rows: npt.NDArray[Any], obs_dim: int, dtype: str, first_episode: int) -> None:
        """Rows [E,T,O+A+1] after rounding to a smaller type: what was finite must have stayed so."""
        beyond = ~np.isfinite(rows)
        beyond[:, 0, obs_dim:] = False  # stands for nothing
        if beyond.any():
            e, t, column = (int(i) for i in np.argwhere(beyond)[0])
            key = "obs" if column < obs_dim else "reward" if column == rows.shape[-1] - 1 else "action"
            raise DataError(
                f"{self.source}: episode {first_episode + e}, step {t}, key '{key}': found a value beyond the range of "
                f"{dtype}, expected at most {np.finfo(dtype).max}; store this data in float32."
            )

    def _padding(
        self,
        obs: npt.NDArray[np.float32],
        task: npt.NDArray[Any],
        obs_dims: tuple[int, ...],
        first_episode: int,
    ) -> None:
        """A task's columns beyond its own width are padding and must be 0: they may be cropped later."""
        padding = np.arange(self.obs_dim)[None, :] >= np.asarray(obs_dims)[:, None]
        stray = obs.any(axis=1) & padding[task]
        if stray.any():
            e, column = (int(i) for i in np.argwhere(stray)[0])
            t = int(np.argmax(obs[e, :, column] != 0))
            name = self.tasks[int(task[e])]
            raise DataError(
                f"{self.source}: episode {first_episode + e}, step {t}, key 'obs': found "
                f"{obs[e, t, column]} in "
                f"column {column}, expected 0: {name} is {obs_dims[int(task[e])]} wide. Choose the "
                "task set that the data was recorded with."
            )
