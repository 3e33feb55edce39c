"""Bytes, memory, errors and speed of every quantisation scheme, beside the float32 student.

python benchmarks/quantize.py ../shared/checkpoints/mt30_1M_steps_045dist_fp16.pt --observations mt30_chunk_60eps.pt
python benchmarks/quantize.py student.safetensors --scheme fp16 int8 int8-dynamic --json quantize.json
python benchmarks/quantize.py student.safetensors --scheme int4 --calibrate data/mt30 --observations …

Errors are against the student's float32 weights in float32 arithmetic, on observations and actions of a file in the
published dataset format: latent z, predicted reward, Q averaged over its heads, the policy's mean action, and a
planned action with the same noise. Values are spread over rows: mean and largest absolute difference. Memory counts
what the loaded acting model holds. A decision is one environment's, with the papers' planner: the median of --repeats
rounds, each of which times every scheme once. Every scheme goes through a file, as a user's would. With --calibrate,
schemes of whole numbers are measured twice: rounded to nearest, and for the states of a store.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdmpc2.agent import Agent, load_agent, resolve_device
from tdmpc2.calibration import calibrate
from tdmpc2.checkpointing import (
    build_model,
    checkpoint_metadata,
    checkpoint_task_set,
    read_checkpoint,
    require_float,
    save_checkpoint,
)
from tdmpc2.data.published import PublishedFile
from tdmpc2.errors import run_program
from tdmpc2.evaluation.results import this_machine
from tdmpc2.fileio import atomic_write_text
from tdmpc2.model import WorldModel
from tdmpc2.quantisation import FLOAT32, SCHEMES, quantise_by, scheme_named, without_target
from tdmpc2.reporting.tables import format_table
from tdmpc2.tasks import TaskSet
from tdmpc2.versions import package_versions

EVERY = 25
"""Of a dataset file, every so many steps of each episode are looked at."""


@dataclass(frozen=True)
class Rows:
    """Real observations [R, O] and actions [R, A] of tasks [R]."""

    obs: Tensor
    action: Tensor
    task: Tensor


@dataclass(frozen=True)
class Error:
    """Of one output: mean and largest absolute difference, and the output's mean absolute value."""

    mean: float
    largest: float
    scale: float


@dataclass(frozen=True)
class Measured:
    """One scheme. Bytes of the tensors, of the files, and of the acting model in memory; seconds of a decision."""

    scheme: str
    tensor_bytes: int
    file_bytes: int
    deployed_bytes: int
    memory_bytes: int
    errors: dict[str, Error]
    decision_s: float = 0.0


def read_rows(paths: list[Path]) -> Rows:
    """Rows of files in the published dataset format, and of .npz files with obs, action and task."""
    obs, action, task = [], [], []
    for path in paths:
        if path.suffix == ".npz":
            with np.load(path) as file:
                obs.append(torch.from_numpy(file["obs"]))
                action.append(torch.from_numpy(file["action"]))
                task.append(torch.from_numpy(file["task"]).long())
            continue
        for block in PublishedFile.open(path).blocks(64):
            # A step holds the action that led to it: the next step's was taken here.
            obs.append(torch.from_numpy(block.obs[:, :-1:EVERY]).flatten(0, 1))
            action.append(torch.from_numpy(block.action[:, 1::EVERY]).flatten(0, 1))
            steps = obs[-1].shape[0] // block.obs.shape[0]
            task.append(torch.from_numpy(block.task[:, :1]).long().expand(-1, steps).flatten())
    return Rows(torch.cat(obs).float(), torch.cat(action).float(), torch.cat(task))


@torch.no_grad()
def outputs(model: WorldModel, tasks: TaskSet, rows: Rows, planned: int) -> dict[str, Tensor]:
    """What the errors are of; plans are made for `planned` rows spread over all."""
    device = next(model.parameters()).device
    obs, action, task = (t.to(device) for t in (rows.obs, rows.action, rows.task))
    z = model.encode(obs, task)
    found = {
        "z": z,
        "reward": model.decode(model.reward(z, action, task)),
        "Q": model.decode(model.q_values(z, action, task)).mean(0),
        "policy": model.policy(z, task)[0],
    }
    agent = Agent(model, tasks)
    chosen = torch.linspace(0, len(obs) - 1, planned, device=device).long()
    generator = torch.Generator(device).manual_seed(0)
    found["plan"], _ = agent.plan(obs[chosen], task[chosen], agent.zero_plan(planned), generator)
    return {name: value.float().cpu() for name, value in found.items()}


def memory(model: WorldModel) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Error]:
    return {
        name: Error(float(off.mean()), float(off.max()), float(expected[name].abs().mean()))
        for name, off in ((name, (found[name] - expected[name]).abs()) for name in expected)
    }


def time_decisions(agents: dict[str, Agent], rows: Rows, repeats: int) -> dict[str, float]:
    """Median seconds of one environment's decision, each round timing every agent once."""
    times: dict[str, list[float]] = {name: [] for name in agents}
    for turn in range(repeats + 1):
        for name, agent in agents.items():
            row = (turn * 37) % len(rows.obs)
            generator = torch.Generator(agent.device).manual_seed(turn)
            obs, task = rows.obs[row : row + 1].to(agent.device), rows.task[row : row + 1].to(agent.device)
            start = time.perf_counter()
            agent.plan(obs, task, agent.zero_plan(1), generator)
            if agent.device.type == "cuda":
                torch.cuda.synchronize(agent.device)
            if turn:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def table(rows: list[Measured]) -> str:
    header = ["scheme", "bytes", "without target Q", "in memory", "decision ms", "x float32"]
    names = list(rows[0].errors)
    lines = []
    for row in rows:
        sizes = [f"{row.file_bytes:,}", f"{row.deployed_bytes:,}", f"{row.memory_bytes:,}"]
        speed = ["-", "-"]
        if row.decision_s:
            speed = [f"{row.decision_s * 1e3:.1f}", f"{rows[0].decision_s / row.decision_s:.2f}"]
        lines.append([row.scheme, *sizes, *speed])
    sizes_table = format_table(header, lines)
    lines = [["(mean size)", *(f"{rows[0].errors[n].scale:.3g}" for n in names)]]
    for row in rows[1:]:
        lines.append([row.scheme, *(f"{row.errors[n].mean:.2g} / {row.errors[n].largest:.2g}" for n in names)])
    return f"{sizes_table}\n\nmean / largest error against float32\n{format_table(['scheme', *names], lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a student of floats, released or trained here")
    parser.add_argument("--task", help="its task set; default the one it names, mt30 for a released file")
    parser.add_argument("--observations", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--scheme", nargs="+", default=list(SCHEMES))
    parser.add_argument("--calibrate", type=Path, metavar="STORE", help="a store of episodes of the student's tasks")
    parser.add_argument("--calibrate-states", type=int, default=2048)
    parser.add_argument("--plans", type=int, default=30, help="how many rows are planned for, for the plan's error")
    parser.add_argument("--repeats", type=int, default=15, help="rounds of timed decisions; 0 times nothing")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and the machine to FILE")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    schemes = [scheme_named(name) for name in arguments.scheme]
    checkpoint = read_checkpoint(arguments.checkpoint)
    require_float(checkpoint, "quantisation")
    tasks = checkpoint_task_set(checkpoint, arguments.task or (None if checkpoint.metadata else "mt30"))
    model = build_model(checkpoint, tasks, device)
    rows = read_rows(arguments.observations)
    print(
        f"{this_machine('cpu').cpu}, {torch.get_num_threads()} threads, {device}, torch {torch.__version__}; "
        f"{len(rows.obs):,} observations, {arguments.plans} plans"
    )
    expected = outputs(model, tasks, rows, arguments.plans)
    measured, agents = [], {}
    with tempfile.TemporaryDirectory() as folder:
        made = [("float32", FLOAT32, False), *((scheme.name, scheme, False) for scheme in schemes)]
        if arguments.calibrate is not None:
            made += [(f"{scheme.name}-calibrated", scheme, True) for scheme in schemes if scheme.has_grid]
        for name, scheme, with_data in made:
            quantised = (
                calibrate(model, tasks, scheme, arguments.calibrate, arguments.calibrate_states, seed=1)
                if with_data
                else quantise_by(model.state_dict(), scheme)
            )
            metadata = replace(
                checkpoint_metadata(checkpoint, tasks), scheme=scheme.name, scheme_version=scheme.version
            )
            whole, deployed = Path(folder) / f"{name}.safetensors", Path(folder) / f"{name}-deploy.safetensors"
            file_bytes = save_checkpoint(whole, quantised.tensors, metadata)
            deployed_bytes = save_checkpoint(deployed, without_target(quantised.tensors), metadata)
            agents[name] = load_agent(deployed, tasks, device)
            errors = compare(outputs(agents[name].model, tasks, rows, arguments.plans), expected)
            held = memory(agents[name].model)
            measured.append(Measured(name, quantised.bytes, file_bytes, deployed_bytes, held, errors))
    if arguments.repeats:
        seconds = time_decisions(agents, rows, arguments.repeats)
        measured = [replace(row, decision_s=seconds[row.scheme]) for row in measured]
    print(table(measured))
    if arguments.json is not None:
        machine = {**asdict(this_machine(str(device))), "threads": torch.get_num_threads()}
        content = {
            "machine": machine,
            "versions": package_versions(),
            "observations": len(rows.obs),
            "plans": arguments.plans,
            "repeats": arguments.repeats,
            "rows": [asdict(row) for row in measured],
        }
        atomic_write_text(arguments.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
