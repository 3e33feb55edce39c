"""TD-MPC-Opt: distil a large multi-task world model into one that runs anywhere.

The names below load on first use: environments need no torch, and models need no simulator. What they do together is
in docs/python.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tdmpc2.envs import PadToTaskSet, make_env, register_envs
from tdmpc2.tasks import TaskSet, task_set

if TYPE_CHECKING:
    from tdmpc2.agent import Agent, Policy, load_agent
    from tdmpc2.data.store import EpisodeStore
    from tdmpc2.evaluation.runner import EvaluationSettings, evaluate
    from tdmpc2.planner import PlannerSettings
    from tdmpc2.programs.train import train

__version__ = "0.1.0"
__all__ = [
    "Agent",
    "EpisodeStore",
    "EvaluationSettings",
    "PadToTaskSet",
    "PlannerSettings",
    "Policy",
    "TaskSet",
    "evaluate",
    "load_agent",
    "make_env",
    "task_set",
    "train",
]

_LAZY = {
    "Agent": "tdmpc2.agent",
    "EpisodeStore": "tdmpc2.data.store",
    "EvaluationSettings": "tdmpc2.evaluation.runner",
    "PlannerSettings": "tdmpc2.planner",
    "Policy": "tdmpc2.agent",
    "evaluate": "tdmpc2.evaluation.runner",
    "load_agent": "tdmpc2.agent",
    "train": "tdmpc2.programs.train",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tdmpc2' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_envs()
