"""What chooses actions in a rollout: an agent, or oscillating or uniform random actions without one."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tdmpc2.agent import Agent
from tdmpc2.ranges import MOST_SCALE, check_range
from tdmpc2.rollout.episodes import Job
from tdmpc2.tasks import TaskSet

FloatArray = NDArray[np.float32]


class Controller(Protocol):
    """Chooses actions for slots of an environment pool, one job at a time in each slot."""

    def start(self, slot: int, job: Job) -> None:
        """An episode begins in this slot."""

    def actions(self, slots: list[int], obs: FloatArray) -> FloatArray:
        """Actions [n, A] in [-1, 1] for the observations [n, O] of these slots, 0 where a task has no such action."""


class AgentController:
    """Acts by planning (`mpc`) or by the policy prior alone.

    Every slot has a warm start and a noise generator, seeded by its job: what an episode does depends on its job
    and not on what is planned beside it, but for the rounding of batched arithmetic.

    Args:
        agent: the agent; its task set names the tasks.
        slots: how many slots there are.
        mpc: plan; otherwise the policy prior acts.
        greedy: leave the exploration noise out.
        noise: std of Gaussian noise added to every action, for collecting data; 10**6 at most.
    """

    def __init__(self, agent: Agent, slots: int, *, mpc: bool = True, greedy: bool = False, noise: float = 0.0) -> None:
        if mpc and torch.get_num_threads() > 1:  # threads that plan side by side are given all noise at once
            agent.planner.check_memory(slots)
        self._agent = agent
        self._mpc = mpc
        self._greedy = greedy
        check_range("noise", noise, 0, MOST_SCALE)
        self._noise = noise
        self._warm = agent.zero_plan(slots)
        self._task = torch.zeros(slots, dtype=torch.int64, device=agent.device)
        self._generators = [torch.Generator(device=agent.device) for _ in range(slots)]
        self._masks = torch.from_numpy(agent.task_set.action_masks()).to(agent.device)

    def start(self, slot: int, job: Job) -> None:
        self._warm[slot] = 0
        self._task[slot] = self._agent.task_set.index(job.task)
        self._generators[slot].manual_seed(job.seed)

    def state(self, slots: list[int]) -> dict[str, torch.Tensor]:
        """Warm starts [n, H, A] and generator states [n, bytes] of these slots, for `restore`."""
        warm = self._warm[slots].cpu() if slots else self._warm[:0].cpu()
        states = [self._generators[slot].get_state() for slot in slots]
        return {"warm": warm, "generators": torch.stack(states) if states else torch.zeros(0, 0, dtype=torch.uint8)}

    def restore(self, slots: list[int], state: dict[str, torch.Tensor]) -> None:
        """Goes on in these slots, whose jobs have started, from where `state` was taken."""
        for row, slot in enumerate(slots):
            self._warm[slot] = state["warm"][row].to(self._warm)
            # A copy: torch reads the state of a generator from where a view's storage begins.
            self._generators[slot].set_state(state["generators"][row].clone())

    def actions(self, slots: list[int], obs: FloatArray) -> FloatArray:
        agent = self._agent
        index = torch.tensor(slots, device=agent.device)
        obs_t = torch.from_numpy(obs).to(agent.device, agent.dtype)
        task = self._task[index] if agent.task_set.multitask else None
        generators = [self._generators[s] for s in slots]
        if self._mpc:
            action, warm = agent.plan(obs_t, task, self._warm[index], generators, greedy=self._greedy)
            self._warm[index] = warm
        else:
            action = agent.policy_action(obs_t, task, generators, greedy=self._greedy)
        action = action.float()
        if self._noise:
            extra = torch.stack([torch.randn(action.shape[1], generator=g, device=agent.device) for g in generators])
            action = (action + self._noise * extra * self._masks[self._task[index]]).clamp(-1, 1)
        return action.cpu().numpy()


class RandomController:
    """Actions without a model.

    Args:
        task_set: gives widths and masks.
        slots: how many slots there are.
        oscillate: each action is a sine of random frequency, phase and amplitude, which excites a system far
            more than independent noise does; otherwise independent uniform actions.
        noise: std of Gaussian noise added to every action; 10**6 at most.
    """

    # Periods between 5 and 100 decisions cover what the tasks' bodies respond to.
    _PERIODS = (5.0, 100.0)

    def __init__(self, task_set: TaskSet, slots: int, *, oscillate: bool, noise: float = 0.0) -> None:
        self._task_set = task_set
        self._oscillate = oscillate
        check_range("noise", noise, 0, MOST_SCALE)
        self._noise = noise
        self._masks = np.zeros((slots, task_set.action_dim), np.float32)
        self._waves = np.zeros((slots, 3, task_set.action_dim), np.float32)  # frequency, phase, amplitude
        self._rng = [np.random.default_rng() for _ in range(slots)]
        self._step = np.zeros(slots, np.int64)

    def start(self, slot: int, job: Job) -> None:
        rng = np.random.default_rng(job.seed)
        width = self._task_set.action_dim
        low, high = np.log(self._PERIODS)
        self._waves[slot, 0] = 2 * np.pi / np.exp(rng.uniform(low, high, width))
        self._waves[slot, 1] = rng.uniform(0, 2 * np.pi, width)
        self._waves[slot, 2] = rng.uniform(0, 1, width)
        self._masks[slot] = self._task_set.action_masks()[self._task_set.index(job.task)]
        self._rng[slot] = rng
        self._step[slot] = 0

    def skip(self, slot: int, decisions: int) -> None:
        """Goes on in this slot, whose job has started, as after so many decisions."""
        for _ in range(decisions):
            self.actions([slot], np.empty((1, self._task_set.obs_dim), np.float32))

    def actions(self, slots: list[int], obs: FloatArray) -> FloatArray:
        width = self._task_set.action_dim
        if self._oscillate:
            frequency, phase, amplitude = np.moveaxis(self._waves[slots], 1, 0)
            action = amplitude * np.sin(frequency * self._step[slots, None] + phase)
        else:
            action = np.stack([self._rng[s].uniform(-1, 1, width) for s in slots])
        if self._noise:
            action = action + self._noise * np.stack([self._rng[s].standard_normal(width) for s in slots])
        self._step[slots] += 1
        return (np.clip(action, -1, 1) * self._masks[slots]).astype(np.float32)
