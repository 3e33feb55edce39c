"""Makes the bundled teacher of `make quickstart`: trains on a growing dataset that it collects itself.

python scripts/make_teacher.py --out checkpoints/quickstart_teacher.safetensors --work logs/quickstart_teacher

Rounds of: collect episodes with the current model and noise into a store, then train on all of it. The first
episodes come from oscillating and uniform random actions. After every round the model is kept in --work, and as
bundled (FP16, without target Q) at --out. The same command with the same --work goes on from the last whole round,
with fresh optimisers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from tdmpc2.agent import Agent, resolve_device
from tdmpc2.checkpointing import CheckpointMetadata, build_model, read_checkpoint, save_checkpoint
from tdmpc2.data.importing import open_or_create
from tdmpc2.data.sampler import Prefetcher, SliceSampler
from tdmpc2.data.store import EpisodeStore
from tdmpc2.envs import EnvPool
from tdmpc2.evaluation.runner import EvaluationSettings, evaluate
from tdmpc2.losses import LossWeights
from tdmpc2.model import WorldModel, model_dims, published_size
from tdmpc2.planner import PlannerSettings
from tdmpc2.programs.arguments import ProgramParser
from tdmpc2.quantisation import quantise, without_target
from tdmpc2.rollout import AgentController, Controller, RandomController
from tdmpc2.rollout.collecting import collect
from tdmpc2.tasks import TaskSet, task_set
from tdmpc2.training import Learner, OptimiserSettings

COLLECTING_PLANNER = PlannerSettings(iterations=3, num_samples=64, num_elites=8, num_pi_trajs=12)


def grow(
    store: EpisodeStore,
    tasks: TaskSet,
    episodes: int,
    seed: int,
    source: str,
    controller: Callable[[int], Controller],
) -> str:
    """Collects and says what it got."""

    def pool(jobs: int) -> EnvPool:
        return EnvPool(tasks, num_envs=jobs, num_workers=0)

    got = collect(store, tasks.tasks, episodes, controller, pool, seed=seed, source=source)
    return " ".join(f"{t} {sum(r) / max(len(r), 1):.0f}" for t, r in got.returns.items())


def explorer(tasks: TaskSet, oscillate: bool) -> Callable[[int], Controller]:
    return lambda slots: RandomController(tasks, slots, oscillate=oscillate, noise=0.1)


def actor(agent: Agent, mpc: bool, noise: float) -> Callable[[int], Controller]:
    return lambda slots: AgentController(agent, slots, mpc=mpc, noise=noise)


INTERRUPTED = "interrupted; the same command goes on from the last whole round"


def main() -> None:
    parser = ProgramParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the teacher's checkpoint (.safetensors)")
    parser.add_argument("--work", type=Path, required=True, help="folder of the growing store and the float32 model")
    parser.add_argument("--task", default="quickstart", help="task set (quickstart)")
    parser.add_argument("--model-size", type=int, default=5, help="published size that it starts from (5)")
    parser.add_argument("--num-q", type=int, default=2, help="heads of Q; fewer are cheaper (2)")
    parser.add_argument("--minutes", type=float, default=30, help="no round starts after this many minutes (30)")
    parser.add_argument("--updates", type=int, default=1500, help="updates a round (1500)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--matmul-precision", default="medium", choices=("highest", "high", "medium"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()

    torch.set_float32_matmul_precision(a.matmul_precision)
    device = resolve_device(a.device)
    tasks = task_set(a.task)
    dims = replace(model_dims(a.model_size, tasks.obs_dim, tasks.action_dim, len(tasks)), num_q=a.num_q)
    model = WorldModel(dims, tasks.action_masks() if tasks.multitask else None)
    model.init_weights(torch.Generator().manual_seed(a.seed))
    model.to(device)
    learner = Learner(model, torch.from_numpy(tasks.discounts()), LossWeights(), OptimiserSettings(), a.seed)
    agent = Agent(model, tasks, COLLECTING_PLANNER)
    store = open_or_create(a.work / "store", tasks)
    kept = a.work / "model.safetensors"
    started, step, number = time.perf_counter(), 0, 0
    if kept.exists():
        earlier = read_checkpoint(kept)
        assert earlier.metadata is not None
        model.load_state_dict(build_model(earlier, tasks, device).state_dict())
        step = earlier.metadata.step
        print(f"going on from {kept}, {step} updates")
    for name, episodes in (("oscillating", 10), ("uniform", 4)):
        if any(segment.source == name for segment in store.segments):
            continue
        got = grow(store, tasks, episodes, a.seed, name, explorer(tasks, name == "oscillating"))
        print(f"{name}: {got}", flush=True)

    while (minutes := (time.perf_counter() - started) / 60) < a.minutes:
        number += 1
        sampler = SliceSampler(store, tasks, a.batch_size, 3, a.seed)
        with Prefetcher(sampler, device, step) as batches:
            for _ in range(a.updates):
                metrics = learner.update(next(batches))
        step += a.updates
        result = evaluate(agent, EvaluationSettings(episodes=2, mpc=False, greedy=True, num_workers=0), label="prior")
        returns = " ".join(f"{t} {sum(r) / len(r):.0f}" for t, r in result.returns().items())
        print(
            f"round {number}, {minutes:.1f} min, {step} updates, {len(store)} episodes, "
            f"loss {float(metrics['total_loss']):.3f}; prior: {returns}",
            flush=True,
        )
        config = {k: v for k, v in vars(a).items() if k not in ("out", "work")}
        metadata = CheckpointMetadata(tasks.name, tasks.tasks, dims, published_size(dims), step, config=config)
        save_checkpoint(kept, model.state_dict(), metadata)
        bundled = quantise(without_target(model.state_dict()), "fp16").tensors
        save_checkpoint(a.out, bundled, replace(metadata, scheme="fp16"))
        # Planned episodes are the best and the slowest: every other round.
        for label, noise, episodes in (("prior", 0.5, 4), ("prior", 0.2, 3), ("planner", 0.1, number % 2)):
            if not episodes:
                continue
            source = f"round {number}, {label}, noise {noise}"
            got = grow(store, tasks, episodes, a.seed, source, actor(agent, label == "planner", noise))
            print(f"  {label} with noise {noise}: {got}", flush=True)
