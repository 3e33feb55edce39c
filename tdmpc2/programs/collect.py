"""Rolls out a checkpoint or an exploratory policy into an episode store.

python scripts/collect.py data_dir=data/mine task=mt30 episodes=4 behaviour=oscillate noise=0.1
python scripts/collect.py data_dir=data/mine task=mt30 episodes=4 behaviour=planner checkpoint=student.pt noise=0.3
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from tdmpc2.agent import load_agent, resolve_device
from tdmpc2.data.importing import store_to_fill, summary
from tdmpc2.envs import EnvPool
from tdmpc2.errors import UserError
from tdmpc2.evaluation.runner import check_pool_size, default_workers, envs_at_a_time
from tdmpc2.ranges import MOST_EPISODES, MOST_EVALUATION_SEED, MOST_SCALE, check_range, check_whole
from tdmpc2.reporting.progress import Progress
from tdmpc2.rollout import AgentController, Controller, RandomController
from tdmpc2.rollout.collecting import collect
from tdmpc2.settings.convert import chosen_task_set, path_of, planner_settings, required
from tdmpc2.settings.entry import hydra_entry, set_matmul_precision

BEHAVIOURS = ("oscillate", "uniform", "planner", "prior")


@hydra_entry("collect")
def main(config: DictConfig) -> None:
    set_matmul_precision(config.matmul_precision)
    if config.behaviour not in BEHAVIOURS:
        raise UserError(f"behaviour={config.behaviour} is unknown; choose one of {', '.join(BEHAVIOURS)}.")
    check_range("noise", config.noise, 0, MOST_SCALE)
    check_whole("episodes", config.episodes, 1, MOST_EPISODES)
    check_whole("seed", config.seed, 0, MOST_EVALUATION_SEED)
    check_pool_size(config.num_envs, config.num_workers)
    data_dir = required(config, "data_dir")
    tasks = chosen_task_set(config)
    with_agent = config.behaviour in ("planner", "prior")
    checkpoint = path_of(config, "checkpoint")
    if with_agent and checkpoint is None:
        raise UserError(f"behaviour={config.behaviour} needs checkpoint=…")
    if checkpoint is not None and not with_agent:
        raise UserError(f"checkpoint is set, but behaviour={config.behaviour} uses none; choose planner or prior.")
    device = resolve_device(config.device)
    planner = planner_settings(config)
    agent = None if checkpoint is None else load_agent(checkpoint, tasks, device, planner)
    tasks = agent.task_set if agent is not None else tasks
    if tasks is None:
        raise UserError("task=own needs a checkpoint that names its tasks; give task=mt30 or another task set.")
    names = tasks.chosen(config.tasks)

    def controller(slots: int) -> Controller:
        if agent is not None:
            mpc = config.behaviour == "planner"
            return AgentController(agent, slots, mpc=mpc, greedy=config.greedy, noise=config.noise)
        return RandomController(tasks, slots, oscillate=config.behaviour == "oscillate", noise=config.noise)

    def pool(jobs: int) -> EnvPool:
        envs = envs_at_a_time(jobs, config.num_envs, device)
        workers = default_workers() if config.num_workers is None else config.num_workers
        return EnvPool(tasks, num_envs=envs, num_workers=workers)

    acting = f"{config.behaviour}, greedy" if config.greedy else config.behaviour
    decisions = config.episodes * sum(tasks.episode_steps[tasks.index(n)] for n in names)
    with (
        store_to_fill(data_dir, tasks) as store,
        Progress(decisions, "collecting", "decisions") as progress,
    ):
        collected = collect(
            store,
            names,
            config.episodes,
            controller,
            pool,
            seed=config.seed,
            source=f"{acting}, noise {config.noise}, checkpoint {config.checkpoint}",
            on_decisions=progress.update,
        )
    if collected.diverged:
        print(f"left out {collected.diverged} episodes whose simulation diverged", file=sys.stderr)
    print(summary(store))
