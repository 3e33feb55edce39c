"""Online training measured: decisions and updates a second, and where the time of a decision and its updates goes.

python benchmarks/online.py                                      # 1, 8 and 30 environments of MT30, 1M, planner=fast
python benchmarks/online.py --envs 8 --model-size 5 --act-with prior --json online.json
python benchmarks/online.py --batch                              # `Batch` beside the same as a tensordict @tensorclass

An online run as `train.py` has it, `--workers` simulator processes included, after a seed phase of random actions that
is not measured. Each row is one run of `--seconds`; parts are measured in it, by the wall clock:

act      choosing actions: laying out the changed weights, planning or the prior
wait     for the simulators, which have worked during the updates
draw     a batch out of the replay
update   the update
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tdmpc2.agent import Agent
from tdmpc2.data.batch import Batch
from tdmpc2.data.replay import Replay
from tdmpc2.envs import EnvPool
from tdmpc2.errors import run_program
from tdmpc2.evaluation.results import this_machine
from tdmpc2.execution import Execution
from tdmpc2.fileio import atomic_write_text
from tdmpc2.losses import LossWeights
from tdmpc2.model import WorldModel, model_dims
from tdmpc2.online import OnlineSettings, OnlineSource
from tdmpc2.online.acting import LearningController
from tdmpc2.planner import PlannerSettings
from tdmpc2.reporting.tables import format_table
from tdmpc2.tasks import MT30, TaskSet, task_set
from tdmpc2.training import Learner, OptimiserSettings
from tdmpc2.versions import package_versions

FAST = PlannerSettings(iterations=3, num_samples=128, num_elites=16, num_pi_trajs=6)
UTD = {1: 1.0}  # as the default keys have it; several tasks: 0.15
PARTS = ("act", "wait", "draw", "update")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 8, 30], help="tasks, one environment each")
    parser.add_argument("--model-size", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--act-with", nargs="+", default=["planner", "prior"], choices=("planner", "prior"))
    parser.add_argument("--workers", type=int, default=1, help="simulator processes (1)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--batch", action="store_true", help="measure the batch's class instead")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    rows: list[dict[str, Any]] = []
    if a.batch:
        rows = batch_classes(a)
    else:
        for count in a.envs:
            for act_with in a.act_with:
                rows.append(measured(count, act_with, a))
                print(rows[-1], flush=True)
    print(format_table(list(rows[0]), [[str(v) for v in row.values()] for row in rows]))
    machine = dataclasses.asdict(this_machine("cpu"))
    print(json.dumps({"machine": machine, "versions": package_versions()}))
    if a.json:
        content = {"arguments": {k: str(v) for k, v in vars(a).items()}, "machine": machine, "rows": rows}
        atomic_write_text(a.json, json.dumps(content, indent=1) + "\n")


# -- an online run -----------------------------------------------------------------------------------------------------


def measured(count: int, act_with: str, a: argparse.Namespace) -> dict[str, Any]:
    tasks = task_set(MT30[0]) if count == 1 else task_set(f"first{count}", MT30[:count])
    execution = Execution(compile=a.compile, precision=a.precision)
    learner = new_learner(tasks, a, execution)
    online = OnlineSettings(utd=UTD.get(count, 0.15), seed_episodes=1, act_with=act_with)
    replay = Replay(tasks, online.buffer_size, 501, a.batch_size, 3, 1)
    spent: dict[str, float] = defaultdict(float)

    def timed(owner: Any, name: str, part: str) -> None:
        function = getattr(owner, name)

        def wrapped(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                spent[part] += time.perf_counter() - began

        setattr(owner, name, wrapped)

    held: dict[type, dict[str, Callable[..., Any]]] = {
        EnvPool: {"step_wait": EnvPool.step_wait, "reset": EnvPool.reset},
        LearningController: {"actions": LearningController.actions},
        Replay: {"batch": Replay.batch},
        Learner: {"update": Learner.update},
    }
    try:
        for owner, part in ((EnvPool, "wait"), (LearningController, "act"), (Replay, "draw"), (Learner, "update")):
            for name in held[owner]:
                timed(owner, name, part)
        with tempfile.TemporaryDirectory() as folder:
            source = OnlineSource(
                Agent(learner.model, tasks, FAST, execution=execution),
                replay,
                online,
                seed_behaviour="uniform",
                trained=True,  # no updates at once for the seed phase
                seed=1,
                workers=a.workers,
                store=Path(folder) / "store",
                device=torch.device("cpu"),
            )
            with source:
                for _ in range(3):  # the seed phase, and what is compiled
                    learner.update(next(source))
                spent.clear()
                decisions, updates, began = source.standing()["decisions"], 0, time.perf_counter()
                while time.perf_counter() - began < a.seconds:
                    learner.update(next(source))
                    updates += 1
                seconds = time.perf_counter() - began
                decisions = source.standing()["decisions"] - decisions
    finally:
        for owner, functions in held.items():
            for name, function in functions.items():
                setattr(owner, name, function)
    shares = {part: f"{100 * spent[part] / seconds:.0f}%" for part in PARTS}
    return {
        "environments": count,
        "acting": act_with,
        "decisions/s": round(decisions / seconds, 1),
        "updates/s": round(updates / seconds, 2),
        **shares,
        "ms a decision": round(1000 * (spent["act"] + spent["wait"]) / max(decisions, 1), 2),
        "ms an update": round(1000 * spent["update"] / updates, 1),
        "ms a batch": round(1000 * spent["draw"] / updates, 2),
    }


def new_learner(tasks: TaskSet, a: argparse.Namespace, execution: Execution) -> Learner:
    dims = model_dims(a.model_size, tasks.obs_dim, tasks.action_dim, len(tasks))
    model = WorldModel(dims, tasks.action_masks() if tasks.multitask else None)
    model.init_weights(torch.Generator().manual_seed(1))
    discounts = torch.from_numpy(tasks.discounts())
    return Learner(model, discounts, LossWeights(), OptimiserSettings(), 1, execution)


# -- the batch as a tensorclass ----------------------------------------------------------------------------------------


def batch_classes(a: argparse.Namespace) -> list[dict[str, Any]]:
    """The same update from `Batch` and from a tensorclass, in turns; reading, cloning and moving of each."""
    from tensordict import tensorclass

    @tensorclass
    class TensorBatch:
        obs: torch.Tensor
        action: torch.Tensor
        reward: torch.Tensor
        task: torch.Tensor
        labels: torch.Tensor | None = None
        targets: dict | None = None

    tasks = task_set("mt30")
    generator = torch.Generator().manual_seed(1)
    parts = {
        "obs": torch.randn(4, a.batch_size, tasks.obs_dim, generator=generator),
        "action": torch.rand(3, a.batch_size, tasks.action_dim, generator=generator),
        "reward": torch.rand(3, a.batch_size, 1, generator=generator),
        "task": torch.randint(0, len(tasks), (a.batch_size,), generator=generator),
    }
    made: dict[str, Callable[[], Any]] = {
        "Batch": lambda: Batch(**parts),
        "tensorclass": lambda: TensorBatch(**parts, batch_size=[]),
    }
    rows = []
    for compiled in (False, True):
        execution = Execution(compile=compiled, precision=a.precision)
        learners = {name: new_learner(tasks, a, execution) for name in made}
        times: dict[str, list[float]] = {name: [] for name in made}
        for turn in range(25):
            for name, make in made.items():
                batch = make()
                began = time.perf_counter()
                learners[name]._update(batch)
                if turn >= 5:
                    times[name].append(time.perf_counter() - began)
        for name, make in made.items():
            batch = make()
            rows.append(
                {
                    "class": name,
                    "update": "compiled" if compiled else "eager",
                    "ms an update": round(1000 * sorted(times[name])[10], 1),
                    "us to make": micro(make),
                    "us to read obs": micro(lambda: batch.obs),  # noqa: B023 - called at once
                    "us to clone": micro(lambda: batch.clone()),  # noqa: B023
                }
            )
    return rows


def micro(function: Callable[[], Any], count: int = 2000) -> float:
    began = time.perf_counter()
    for _ in range(count):
        function()
    return round(1e6 * (time.perf_counter() - began) / count, 2)


if __name__ == "__main__":
    run_program(main)
