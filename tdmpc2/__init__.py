"""TD-MPC-Opt: distil a large multi-task world model into one that runs anywhere.

The names below load on first use: environments need no torch, and models need no simulator.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tdmpc2.envs import make_env, register_envs

if TYPE_CHECKING:
    from tdmpc2.agent import Agent, load_agent
    from tdmpc2.planner import PlannerSettings

__version__ = "0.1.0"
__all__ = ["Agent", "PlannerSettings", "load_agent", "make_env"]

_LAZY = {
    "Agent": "tdmpc2.agent",
    "load_agent": "tdmpc2.agent",
    "PlannerSettings": "tdmpc2.planner",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tdmpc2' has no attribute '{name}'")


register_envs()
