"""One simulator and one agent that acts in it, in one thread; other threads look at its last frame and ask for changes.

Axes: H horizon, O observation, A action.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import imageio.v3
import numpy as np
import torch
from numpy.typing import NDArray

from tdmpc2.agent import Agent
from tdmpc2.envs import PadToTaskSet, episode_seed, make_env
from tdmpc2.errors import UserError, printable
from tdmpc2.planner import PlannerSettings

_SECONDS_AT_END = 1.5
"""For which an episode's last frame stands."""
_JPEG_QUALITY = 85
_FINISHED_SHOWN = 8


@dataclass(frozen=True)
class Planning:
    """A way to act, by its name; `settings` None: the policy prior alone."""

    name: str
    settings: PlannerSettings | None
    greedy: bool


@dataclass(frozen=True)
class Picture:
    """A frame as JPEG, and what is to be said of it, as JSON has it; `number` counts the frames of a stage from 1."""

    number: int
    jpeg: bytes
    state: Mapping[str, Any]


class Stage:
    """Episodes of one task after the other, in real time where the machine is fast enough.

    It is made and run in one thread, which OpenGL asks for; `ask`, `picture` and `stop` are for any thread.

    Args:
        agent: its task set has the tasks; its model and way of running serve every planning.
        tasks: to choose from.
        plannings: to choose from, by different names.
        task: the first one.
        planning: the name of the first one.
        seed: with a task and an episode's number it decides that episode's start and noise.

    Raises:
        UserError: for a task or planning that is not among those to choose from.
        RenderError: where no frame can be drawn.
    """

    def __init__(
        self,
        agent: Agent,
        tasks: Sequence[str],
        plannings: Sequence[Planning],
        *,
        task: str,
        planning: str,
        seed: int = 1,
    ) -> None:
        self._agent = agent
        self._tasks = tuple(tasks)
        self._plannings = {each.name: each for each in plannings}
        self._seed = seed
        self._changed = threading.Condition()
        self._wishes: dict[str, Any] = {}
        self._stopped = False
        self._picture: Picture | None = None
        self._generator = torch.Generator(device=agent.device)
        self._finished: deque[dict[str, Any]] = deque(maxlen=_FINISHED_SHOWN)
        self._check({"task": task, "planner": planning})
        self._env: PadToTaskSet | None = None
        self._paused = False
        self._plan_by(planning)
        self._enter(task)
        self._show()

    # -- for any thread ------------------------------------------------------------------------------------------------

    def ask(self, wishes: Mapping[str, Any]) -> None:
        """Asks for changes, which come between two decisions.

        Args:
            wishes: any of `task` and `planner` (names), `paused` (bool) and `reset` (True: a new episode).

        Raises:
            UserError: for another wish, or a value that is not among those to choose from; then nothing is done.
        """
        self._check(wishes)
        with self._changed:
            self._wishes.update(wishes)
            self._changed.notify_all()

    def picture(self, after: int = 0, seconds: float = 0.0) -> Picture:
        """The first picture later than number `after`, or after so many seconds the last one."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._last.number > after, seconds)
            return self._last

    def stop(self) -> None:
        """Lets `run` end after its decision."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def _last(self) -> Picture:
        assert self._picture is not None
        return self._picture

    def _check(self, wishes: Mapping[str, Any]) -> None:
        choices: dict[str, Sequence[object]] = {
            "task": self._tasks,
            "planner": tuple(self._plannings),
            "paused": (True, False),
            "reset": (True,),
        }
        if not wishes:
            raise UserError(f"nothing is asked for; choose among {', '.join(choices)}.")
        for name, value in wishes.items():
            if name not in choices:
                raise UserError(f"'{printable(name)}' is unknown; choose among {', '.join(choices)}.")
            # By type too: 1 equals True.
            if not any(value == choice and type(value) is type(choice) for choice in choices[name]):
                known = ", ".join(str(choice) for choice in choices[name])
                raise UserError(f"{name} is {printable(repr(value))}, expected one of {known}.")

    # -- for the thread that runs --------------------------------------------------------------------------------------

    def run(self) -> None:
        """Acts until `stop`."""
        due = time.monotonic()
        while True:
            with self._changed:
                while not (self._stopped or self._wishes) and (self._paused or time.monotonic() < due):
                    self._changed.wait(None if self._paused else due - time.monotonic())
                if self._stopped:
                    return
                wishes, self._wishes = self._wishes, {}
            began = time.monotonic()
            if wishes:
                self._fulfil(wishes)
            else:
                self._advance()
                self._show()
            due = max(due + self._decision_seconds, began)
            if self._over:
                due = began + _SECONDS_AT_END

    def close(self) -> None:
        """Frees the simulator; the stage is of no use after it."""
        self.stop()
        if self._env is not None:
            self._env.close()
            self._env = None

    def _fulfil(self, wishes: Mapping[str, Any]) -> None:
        if "planner" in wishes:
            self._plan_by(wishes["planner"])
        if "task" in wishes and wishes["task"] != self._task:
            self._enter(wishes["task"])
        elif "reset" in wishes:
            self._begin(self._episode + 1)
        self._paused = wishes.get("paused", self._paused)
        self._show()

    def _plan_by(self, name: str) -> None:
        """Goes on by another planning; the episode stays."""
        self._planning = self._plannings[name]
        settings = self._planning.settings
        if settings is not None and settings != self._agent.settings:
            old = self._agent
            self._agent = Agent(old.model, old.task_set, settings, execution=old.planner.execution)
        self._warm = self._agent.zero_plan(1)
        self._planned: float | None = None
        if self._env is not None and self._planning.name not in self._used:
            self._used.append(self._planning.name)

    def _enter(self, task: str) -> None:
        """Begins another task."""
        env = make_env(task, render_mode="rgb_array")
        if self._env is not None:
            self._env.close()
        self._env = PadToTaskSet(env, self._agent.task_set, task)
        self._task, self._index = task, self._agent.task_set.index(task)
        self._decision_seconds, self._steps = env.decision_seconds, env.episode_steps
        self._begin(0)

    def _begin(self, episode: int) -> None:
        assert self._env is not None
        seed = episode_seed(self._seed, self._task, episode)
        self._generator.manual_seed(seed)
        self._obs: NDArray[np.float32] = self._env.reset(seed=seed)[0]
        self._warm = self._agent.zero_plan(1)
        self._episode, self._decision, self._return, self._over = episode, 0, 0.0, False
        self._planned, self._seconds = None, 0.0
        self._used = [self._planning.name]

    def _advance(self) -> None:
        """One decision, or a new episode where the last one is over."""
        assert self._env is not None
        if self._over:
            self._begin(self._episode + 1)
        began = time.perf_counter()
        action = self._act()
        self._seconds = time.perf_counter() - began
        self._obs, reward, terminated, truncated, _ = self._env.step(action)
        self._return += float(reward)
        self._decision += 1
        self._over = terminated or truncated
        if self._over:
            planner = ", ".join(self._used)
            self._finished.appendleft({"task": self._task, "planner": planner, "return": self._return})

    def _act(self) -> NDArray[np.float32]:
        """The next action [A]; sets what the plan expects."""
        agent, greedy = self._agent, self._planning.greedy
        obs, task = agent.checked(self._obs[None], [self._index])
        if self._planning.settings is None:
            action = agent.policy_action(obs, task, self._generator, greedy=greedy)
        else:
            action, self._warm, value = agent.plan_and_return(obs, task, self._warm, self._generator, greedy=greedy)
            self._planned = float(value)
        return action[0].float().cpu().numpy()

    def _show(self) -> None:
        """Draws the scene as it is and tells those who wait for it."""
        assert self._env is not None
        frame = np.asarray(self._env.render())
        jpeg = imageio.v3.imwrite("<bytes>", frame, extension=".jpg", quality=_JPEG_QUALITY)
        assert isinstance(jpeg, bytes)
        number = 1 if self._picture is None else self._last.number + 1
        state = {
            "number": number,
            "tasks": self._tasks,
            "task": self._task,
            "planners": tuple(self._plannings),
            "planner": self._planning.name,
            "paused": self._paused,
            "episode": self._episode,
            "decision": self._decision,
            "decisions": self._steps,
            "return": self._return,
            "planned": self._planned,
            "planning_ms": 1000 * self._seconds,
            "decision_ms": 1000 * self._decision_seconds,
            "finished": tuple(self._finished),
        }
        with self._changed:
            self._picture = Picture(number, jpeg, state)
            self._changed.notify_all()
