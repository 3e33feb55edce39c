"""Environments: the 30 DMControl tasks of MT30 as Gymnasium environments, one by one or many in parallel.

Importing this package is cheap: MuJoCo and dm_control are loaded when the first environment is built, and
OpenGL when the first frame is drawn.
"""

from tdmpc2.envs.gym_env import make_env
from tdmpc2.envs.padding import PadToTaskSet
from tdmpc2.envs.pool import EnvPool, EnvPoolError
from tdmpc2.envs.registration import register_envs
from tdmpc2.envs.seeding import episode_seed

__all__ = ["EnvPool", "EnvPoolError", "PadToTaskSet", "episode_seed", "make_env", "register_envs"]
