"""Rolls out a checkpoint or an exploratory policy into an episode store.

python scripts/collect.py data_dir=data/mine task=mt30 episodes=4 behaviour=oscillate noise=0.1
python scripts/collect.py data_dir=data/mine task=mt30 episodes=4 behaviour=planner checkpoint=student.pt noise=0.3
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig

from tdmpc2.agent import Agent, load_agent, resolve_device
from tdmpc2.data.importing import store_to_fill, summary
from tdmpc2.envs import EnvPool
from tdmpc2.errors import UserError
from tdmpc2.evaluation.runner import default_workers, device_name, envs_at_a_time
from tdmpc2.reporting.progress import Progress
from tdmpc2.rollout import AgentController, Controller, RandomController
from tdmpc2.rollout.collecting import collect
from tdmpc2.settings.convert import chosen_task_set, from_keys, path_of, planning_of, required
from tdmpc2.settings.entry import hydra_entry, set_matmul_precision
from tdmpc2.settings.schema import CollectKeys


@hydra_entry("collect")
def main(config: DictConfig) -> None:
    set_matmul_precision(config.matmul_precision)
    keys = from_keys(CollectKeys, config)
    data_dir = required(config, "data_dir")
    tasks = chosen_task_set(config)
    with_agent = keys.behaviour in ("planner", "prior")
    checkpoint = path_of(config, "checkpoint")
    if with_agent and checkpoint is None:
        raise UserError(f"behaviour={keys.behaviour} needs checkpoint=…")
    if checkpoint is not None and not with_agent:
        raise UserError(f"checkpoint is set, but behaviour={keys.behaviour} uses none; choose planner or prior.")
    device = resolve_device(config.device)
    planning = planning_of(config)
    agent = None if checkpoint is None else load_agent(checkpoint, tasks, device, **planning)
    if agent is not None and keys.behaviour == "planner":
        agent.check_plans()
    tasks = agent.task_set if agent is not None else tasks
    if tasks is None:
        raise UserError("task=own needs a checkpoint that names its tasks; give task=mt30 or another task set.")
    names = tasks.chosen(keys.tasks)

    def controller(slots: int) -> Controller:
        if agent is not None:
            mpc = keys.behaviour == "planner"
            return AgentController(agent, slots, mpc=mpc, greedy=config.greedy, noise=keys.noise)
        return RandomController(tasks, slots, oscillate=keys.behaviour == "oscillate", noise=keys.noise)

    def pool(jobs: int) -> EnvPool:
        envs = envs_at_a_time(jobs, keys.num_envs, device)
        workers = default_workers() if keys.num_workers is None else keys.num_workers
        return EnvPool(tasks, num_envs=envs, num_workers=workers)

    acting = f"{keys.behaviour}, greedy" if config.greedy else keys.behaviour
    if agent is not None and config.precision != "float32":
        acting += f", {config.precision}"
    decisions = keys.episodes * sum(tasks.episode_steps[tasks.index(n)] for n in names)
    with (
        store_to_fill(data_dir, tasks) as store,
        Progress(decisions, "collecting", "decisions") as progress,
    ):
        collected = collect(
            store,
            names,
            keys.episodes,
            controller,
            pool,
            seed=keys.seed,
            source=f"{acting}, noise {keys.noise}, checkpoint {config.checkpoint}",
            details=_details(keys, agent, config.greedy),
            commit_freq=keys.commit_freq,
            on_decisions=progress.update,
        )
    if collected.diverged:
        print(f"left out {collected.diverged} episodes whose simulation diverged", file=sys.stderr)
    print(summary(store))


def _details(keys: CollectKeys, agent: Agent | None, greedy: bool) -> dict[str, Any]:
    """What the episodes were made by: the planner's numbers and ways of running are those that were used."""
    acted: dict[str, Any] = {"behaviour": keys.behaviour, "noise": keys.noise}
    if agent is not None:
        execution = asdict(agent.planner.execution)
        acted |= {"checkpoint": keys.checkpoint, "agent": agent.checksum(), "greedy": greedy, **execution}
        acted["device"] = device_name(agent.device)
    if agent is not None and keys.behaviour == "planner":
        acted["planner"] = asdict(agent.settings)
    return acted
