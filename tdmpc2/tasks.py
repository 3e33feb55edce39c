"""Task sets: which tasks a model knows, in which order, and how wide each one is.

The position of a task in its set is its id, and released task embeddings depend on it. Everything an
environment tells a model (widths, episode length, discount) is in `TaskSet`; nothing is written back into a
configuration. This module needs neither torch nor a simulator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tdmpc2.errors import UserError

EPISODE_STEPS = 500
"""Decisions in an episode of every DMControl task here (1,000 simulator steps at action repeat 2)."""

# name -> (observation width O, action width A). The order is the one of MT30 (TD-MPC2, appendix).
_MT30_WIDTHS: dict[str, tuple[int, int]] = {
    "walker-stand": (24, 6),
    "walker-walk": (24, 6),
    "walker-run": (24, 6),
    "cheetah-run": (17, 6),
    "reacher-easy": (6, 2),
    "reacher-hard": (6, 2),
    "acrobot-swingup": (6, 1),
    "pendulum-swingup": (3, 1),
    "cartpole-balance": (5, 1),
    "cartpole-balance-sparse": (5, 1),
    "cartpole-swingup": (5, 1),
    "cartpole-swingup-sparse": (5, 1),
    "cup-catch": (8, 2),
    "finger-spin": (9, 2),
    "finger-turn-easy": (12, 2),
    "finger-turn-hard": (12, 2),
    "fish-swim": (24, 5),
    "hopper-stand": (15, 4),
    "hopper-hop": (15, 4),
    "walker-walk-backwards": (24, 6),
    "walker-run-backwards": (24, 6),
    "cheetah-run-backwards": (17, 6),
    "cheetah-run-front": (17, 6),
    "cheetah-run-back": (17, 6),
    "cheetah-jump": (17, 6),
    "hopper-hop-backwards": (15, 4),
    "reacher-three-easy": (8, 3),
    "reacher-three-hard": (8, 3),
    "cup-spin": (8, 2),
    "pendulum-spin": (3, 1),
}

MT30: tuple[str, ...] = tuple(_MT30_WIDTHS)
QUICKSTART: tuple[str, ...] = ("cartpole-swingup", "cup-spin", "pendulum-spin")
MINI: tuple[str, ...] = (
    "reacher-easy",
    "reacher-three-easy",
    "cup-catch",
    "cartpole-swingup",
    "pendulum-swingup",
    "finger-spin",
)
TASK_SETS: dict[str, tuple[str, ...]] = {"mt30": MT30, "mini": MINI, "quickstart": QUICKSTART}


@dataclass(frozen=True)
class TaskSet:
    """An ordered set of tasks and the widths a model of them is built for.

    Observations are zero-padded to `obs_dim` (O) and actions to `action_dim` (A), the widest of the set.
    A set of one task is a single-task problem: its model has no task embedding.
    """

    name: str
    tasks: tuple[str, ...]
    obs_dims: tuple[int, ...]
    action_dims: tuple[int, ...]
    episode_steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError(f"task set '{self.name}' is empty; name at least one task.")
        if len(set(self.tasks)) != len(self.tasks):
            raise UserError(f"task set '{self.name}' names a task twice: {', '.join(self.tasks)}.")

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def obs_dim(self) -> int:
        return max(self.obs_dims)

    @property
    def action_dim(self) -> int:
        return max(self.action_dims)

    @property
    def multitask(self) -> bool:
        return len(self.tasks) > 1

    def index(self, task: str) -> int:
        """The id of a task in this set; a `UserError` names the set when it is not there."""
        if task not in self.tasks:
            raise UserError(f"task '{task}' is not in task set '{self.name}' ({', '.join(self.tasks)}).")
        return self.tasks.index(task)

    def chosen(self, tasks: Iterable[str] | None) -> tuple[str, ...]:
        """These tasks of the set, or all for None; a `UserError` for none, an unknown one, or one named twice."""
        names = self.tasks if tasks is None else tuple(tasks)
        if not names:
            raise UserError("tasks=[] names no task; leave it out for all.")
        for name in names:
            self.index(name)
        if len(set(names)) != len(names):
            raise UserError(f"tasks names a task twice: {', '.join(names)}.")
        return names

    def action_masks(self) -> np.ndarray:
        """float32 [tasks, A]: 1 where the task has that action, 0 where it is padding."""
        dims = np.asarray(self.action_dims)[:, None]
        return (np.arange(self.action_dim)[None, :] < dims).astype(np.float32)

    def discounts(self) -> np.ndarray:
        """float32 [tasks]: gamma = clip((f - 1) / f, 0.95, 0.995) with f = decisions / 5 (TD-MPC2, appendix)."""
        f = np.asarray(self.episode_steps, dtype=np.float64) / 5
        return np.clip((f - 1) / f, 0.95, 0.995).astype(np.float32)


def known_tasks() -> tuple[str, ...]:
    """Every task name that has an environment here."""
    return MT30


def task_set(name: str, tasks: Iterable[str] | None = None) -> TaskSet:
    """The task set called `name`: `mt30`, `mini`, `quickstart`, one task's own name, or any name with `tasks` given."""
    if tasks is None:
        if name in TASK_SETS:
            tasks = TASK_SETS[name]
        elif name in _MT30_WIDTHS:
            tasks = (name,)
        else:
            raise UserError(f"unknown task '{name}'. Task sets: {', '.join(TASK_SETS)}; tasks: {', '.join(MT30)}.")
    names = tuple(tasks)
    check_task_names(names)
    return TaskSet(
        name=name,
        tasks=names,
        obs_dims=tuple(_MT30_WIDTHS[t][0] for t in names),
        action_dims=tuple(_MT30_WIDTHS[t][1] for t in names),
        episode_steps=(EPISODE_STEPS,) * len(names),
    )


def check_task_names(names: Sequence[str]) -> None:
    """Raises a `UserError` that names the first unknown task."""
    for name in names:
        if name not in _MT30_WIDTHS:
            raise UserError(f"unknown task '{name}'. Tasks: {', '.join(MT30)}.")
