"""One DMControl task as a Gymnasium environment, unpadded, with the protocol of TD-MPC2's benchmark."""

from __future__ import annotations

import logging
import numbers
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import ArrayLike, NDArray

from tdmpc2.envs import dmcontrol
from tdmpc2.envs.registration import ENTRY_POINT, env_id
from tdmpc2.envs.rendering import FrameRenderer
from tdmpc2.errors import RenderError, UserError, printable
from tdmpc2.tasks import task_set

_LOG = logging.getLogger(__name__)

ACTION_REPEAT = 2


class DMControlEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A task with observations float32 [O] and actions float32 [A] in [-1, 1], scaled to the actuators'
    range.

    An action is applied for two control steps and their rewards are added; an episode is 500 decisions long
    and then truncated. Actions beyond [-1, 1] are clipped. If the simulation diverges, the episode is
    truncated there: the observation is the last good one, the decision's reward counts up to the failure, and
    `info["physics_error"]` says what MuJoCo reported.

    `env.unwrapped.physics` is dm_control's physics. Frames come from `render()`, not from `physics.render()`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012 (Gymnasium's type)

    def __init__(
        self,
        task: str,
        seed: int | None = None,
        *,
        render_mode: str | None = None,
        camera: int | str = 0,
        width: int = 384,
        height: int = 384,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode is '{render_mode}'; '{task}' knows None and 'rgb_array'.")
        seed = _checked_seed(seed)
        self._env = dmcontrol.build(task)
        self._task = self._env.task
        self._control_steps = round(self._env.control_timestep() / self.physics.timestep())

        spec = self._env.action_spec()
        self._action_scale = (spec.maximum - spec.minimum) / 2
        self._action_offset = (spec.maximum + spec.minimum) / 2
        widths = task_set(task)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (widths.action_dim,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (widths.obs_dim,), np.float32)
        self.task_name = task
        self.episode_steps = widths.episode_steps[0]
        self._decisions = self.episode_steps
        self._obs = np.zeros(widths.obs_dim, np.float32)
        self._closed = False

        self.metadata = {
            **self.metadata,
            "render_fps": round(1 / self.decision_seconds),
        }
        self.render_mode = render_mode
        self._renderer = (
            None if render_mode is None else FrameRenderer(self.physics, camera=camera, width=width, height=height)
        )
        if seed is not None:
            super().reset(seed=seed)
            self._start_random(seed)

    @property
    def physics(self) -> Any:
        """dm_control's `Physics` of this environment, for reading and setting states."""
        return self._env.physics

    @property
    def decision_seconds(self) -> float:
        """Simulated seconds that one decision lasts."""
        return float(self._env.control_timestep()) * ACTION_REPEAT

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Starts an episode. With `seed` it is the first one of dm_control's `random=seed`; without, the next
        one.

        `options` is part of Gymnasium's interface; there are none.
        """
        self._check_open()
        seed = _checked_seed(seed)
        super().reset(seed=seed)
        if seed is not None:
            self._start_random(seed)
        self._obs = self._flat(self._env.reset().observation)
        self._decisions = 0
        return self._obs.copy(), {}

    def step(self, action: ArrayLike) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One decision: observation float32 [O], reward (sum of two), terminated, truncated, info.

        Raises `UserError` for an action of the wrong shape or with NaN, and for a step after an episode's
        end.
        """
        self._check_open()
        if self._decisions >= self.episode_steps:
            raise UserError(f"{self.task_name}: the episode has ended or not begun; call reset() first.")
        control = self._checked(action)
        physics, task = self.physics, self._task
        reward, discount = 0.0, None
        info: dict[str, Any] = {}
        # Written out instead of calling dm_control's own step twice, which would also compute the observation
        # in between that nobody sees (up to a fifth of the time).
        try:
            for _ in range(ACTION_REPEAT):
                task.before_step(control, physics)
                physics.step(self._control_steps)
                task.after_step(physics)
                reward += float(task.get_reward(physics))
                discount = task.get_termination(physics)
                if discount is not None:
                    break
            self._obs = self._flat(task.get_observation(physics))
        except dmcontrol.physics_error() as error:
            info["physics_error"] = str(error)
            _LOG.warning("%s: the simulation diverged, the episode ends here: %s", self.task_name, error)
            self._decisions = self.episode_steps
            return self._obs.copy(), reward, False, True, info
        self._decisions += 1
        terminated = discount == 0
        truncated = not terminated and (discount is not None or self._decisions >= self.episode_steps)
        if terminated or truncated:
            self._decisions = self.episode_steps
        return self._obs.copy(), reward, terminated, truncated, info

    def render(self) -> NDArray[np.uint8]:
        """The present frame, uint8 [height, width, 3]."""
        self._check_open()
        if self._renderer is None:
            raise RenderError(f"{self.task_name} was made without frames; make it with render_mode='rgb_array'.")
        return self._renderer.frame()

    def close(self) -> None:
        """Frees the simulation and its OpenGL context, if there is one; the environment is of no use after
        it.
        """
        self._closed = True
        self._renderer = None
        self.physics.free()

    def _start_random(self, seed: int) -> None:
        """As dm_control's `random=seed`: nothing is drawn when a model is built, so the state can start again."""
        words = [(seed >> shift) & 0xFFFFFFFF for shift in range(0, seed.bit_length(), 32)]
        self._task.random.seed(seed if seed < 2**32 else words)  # numpy takes longer numbers in words of 32 bits alone

    def _check_open(self) -> None:
        if self._closed:
            raise UserError(f"{self.task_name}: the environment is closed; make a new one.")

    def _checked(self, action: ArrayLike) -> NDArray[np.float64]:
        values = np.asarray(action, dtype=np.float64)
        if values.shape != self.action_space.shape:
            raise UserError(f"{self.task_name}: action has shape {values.shape}, expected {self.action_space.shape}.")
        if np.isnan(values).any():
            raise UserError(f"{self.task_name}: action holds NaN: {values.tolist()}.")
        return np.clip(values, -1.0, 1.0) * self._action_scale + self._action_offset

    @staticmethod
    def _flat(observation: dict[str, Any]) -> NDArray[np.float32]:
        parts = [np.ravel(part) for part in observation.values()]
        return np.concatenate(parts, dtype=np.float32, casting="same_kind")


def make_env(
    name: str,
    seed: int | None = None,
    *,
    render_mode: str | None = None,
    camera: int | str = 0,
    width: int = 384,
    height: int = 384,
) -> DMControlEnv:
    """The unpadded environment of a task.

    `seed`, a whole number of 0 or more, starts its random state (None: from the operating system); `camera` is a
    camera's number or name in the model, `width` and `height` are in pixels. Raises `UserError` for an unknown task
    and `RenderError` where frames are asked for and no OpenGL is found.

    `spec.max_episode_steps` is the decisions of an episode, for programs that ask. The environment ends its episodes
    itself; what `spec.make()` makes has Gymnasium's own limit too, which comes with the same decision.
    """
    env = DMControlEnv(name, seed, render_mode=render_mode, camera=camera, width=width, height=height)
    frames = {"render_mode": render_mode, "camera": camera, "width": width, "height": height}
    env.spec = EnvSpec(
        id=env_id(name), entry_point=ENTRY_POINT, max_episode_steps=env.episode_steps, kwargs={"task": name, **frames}
    )
    return env


def _checked_seed(seed: object) -> int | None:
    """A seed of any whole kind of number, numpy's too, as Python's."""
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or int(seed) < 0:
        raise UserError(f"seed must be a whole number of 0 or more, not {printable(repr(seed))}.")
    return int(seed)
