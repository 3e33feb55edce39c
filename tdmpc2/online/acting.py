"""Who acts in which episode of an online run, and the episodes that it is to play."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from tdmpc2.agent import Agent
from tdmpc2.envs import episode_seed
from tdmpc2.online.settings import OnlineSettings
from tdmpc2.rollout import AgentController, Controller, Job, RandomController
from tdmpc2.rollout.controllers import FloatArray
from tdmpc2.tasks import TaskSet

SEED, PLANNER, PRIOR = "seed", "planner", "prior"


def endless_jobs(tasks: TaskSet, seed: int, first: int) -> Iterator[Job]:
    """Episode after episode of every task in turn, from the `first`-th on.

    Named apart from evaluation, so that no agent is evaluated on starts that it was trained on.
    """
    while True:
        episode, task = divmod(first, len(tasks))
        name = tasks.tasks[task]
        yield Job(name, episode, episode_seed(seed, f"learn {name}", episode))
        first += 1


class LearningController:
    """The model in training, by planning or by its prior, and random actions before there is one.

    Args:
        agent: plans with the model as it is at each decision.
        slots: how many there are.
        settings: of the run.
        seed_behaviour: uniform, oscillate or agent.
    """

    def __init__(self, agent: Agent, slots: int, settings: OnlineSettings, seed_behaviour: str) -> None:
        self._settings = settings
        self._seeds_by_agent = seed_behaviour == "agent"
        self._random = RandomController(agent.task_set, slots, oscillate=seed_behaviour == "oscillate")
        self._planner = AgentController(agent, slots)
        self._prior = AgentController(agent, slots, mpc=False, noise=settings.prior_noise)
        self._by: dict[str, Controller] = {SEED: self._random, PLANNER: self._planner, PRIOR: self._prior}
        self._who = [""] * slots

    def who(self, job: Job) -> str:
        """Who acts in an episode: a function of the job."""
        if job.episode < self._settings.seed_episodes and not self._seeds_by_agent:
            return SEED
        if self._settings.act_with != "mixed":
            return PLANNER if self._settings.act_with == "planner" else PRIOR
        return PRIOR if np.random.default_rng(job.seed).random() < self._settings.prior_share else PLANNER

    def start(self, slot: int, job: Job) -> None:
        self._who[slot] = self.who(job)
        self._by[self._who[slot]].start(slot, job)

    def actions(self, slots: list[int], obs: FloatArray) -> FloatArray:
        out: FloatArray | None = None
        for who, controller in self._by.items():
            rows = [row for row, slot in enumerate(slots) if self._who[slot] == who]
            if not rows:
                continue
            chosen = controller.actions([slots[row] for row in rows], obs[rows])
            if len(rows) == len(slots):
                return chosen
            out = np.zeros((len(slots), chosen.shape[1]), np.float32) if out is None else out
            out[rows] = chosen
        assert out is not None
        return out

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """What the episodes under way go on from, beside the actions taken."""
        return {
            PLANNER: self._planner.state(self._slots_of(PLANNER)),
            PRIOR: self._prior.state(self._slots_of(PRIOR)),
        }

    def restore(self, state: Mapping[str, Any], decisions: Mapping[int, int], but: list[int]) -> None:
        """Goes on from `state` once all jobs have started again.

        Args:
            state: as it was.
            decisions: taken so far, of each slot.
            but: slots that begin anew.
        """
        for who, controller in ((PLANNER, self._planner), (PRIOR, self._prior)):
            slots = [slot for slot in self._slots_of(who) if slot in decisions]
            kept = [row for row, slot in enumerate(slots) if slot not in but]
            rows = {name: values[kept] for name, values in state[who].items()}
            controller.restore([slots[row] for row in kept], rows)
        for slot in self._slots_of(SEED):
            if slot in decisions and slot not in but:
                self._random.skip(slot, decisions[slot])

    def _slots_of(self, who: str) -> list[int]:
        return [slot for slot, held in enumerate(self._who) if held == who]
