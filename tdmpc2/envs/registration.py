"""Gymnasium ids of the tasks: `gymnasium.make("tdmpc2/cup-spin-v0")`."""

from __future__ import annotations

import gymnasium

from tdmpc2.tasks import known_tasks

ENTRY_POINT = "tdmpc2.envs.gym_env:DMControlEnv"


def env_id(task: str) -> str:
    """The Gymnasium id of a task."""
    return f"tdmpc2/{task}-v0"


def register_envs() -> None:
    """Registers every task with Gymnasium, once; nothing is imported until an environment is made.

    No `max_episode_steps` is given, because the environment itself truncates an episode: Gymnasium's
    TimeLimit would count a second time.
    """
    for task in known_tasks():
        if env_id(task) not in gymnasium.registry:
            gymnasium.register(id=env_id(task), entry_point=ENTRY_POINT, kwargs={"task": task})
