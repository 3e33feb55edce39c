"""Milliseconds of a planning decision, by environments and way of running, beside the floor.

python benchmarks/plan.py                                        # everything that this machine has, CPU or CUDA
python benchmarks/plan.py --envs 1 30 --mode plain eager eager-bf16
python benchmarks/plan.py --device cuda --json plan.json

Modes: plain (the reference planner, eager float32 as one writes it plainly: what the others are compared with); eager;
compiled; graphs (CUDA graphs); compiled+graphs; the last four also with "-bf16", "-fp16" (CUDA) or "-tf32" (CUDA).
A decision draws its noise, one generator for each environment as in an evaluation, plans, and brings the actions to
the CPU. The weights are random, of the 1M model for MT30. Every mode plans in turn, so that a slow spell of the machine
hits all. The floor is the larger of FLOPs over the measured product rate and bytes over the measured copy rate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from train_step import multiply_adds, rates, synchronise

from tdmpc2.agent import Agent, resolve_device
from tdmpc2.errors import UserError, run_program
from tdmpc2.evaluation.results import this_machine
from tdmpc2.evaluation.runner import device_name
from tdmpc2.execution import Execution
from tdmpc2.fileio import atomic_write_text
from tdmpc2.model import ModelDims, WorldModel, model_dims
from tdmpc2.planner import PlannerSettings, ReferencePlanner
from tdmpc2.reporting.tables import format_table
from tdmpc2.tasks import task_set
from tdmpc2.versions import package_versions

MT30 = task_set("mt30")
WAYS = ("eager", "compiled", "graphs", "compiled+graphs")
ARITHMETIC = {"": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}
Decide = Callable[[], Tensor]


@dataclass(frozen=True)
class Row:
    """One measurement: seconds of a decision of all environments together."""

    envs: int
    mode: str
    median_s: float
    fastest_s: float
    decisions: int
    first_s: float
    flops: float
    bytes: float
    floor_s: float


def plan_flops(d: ModelDims, s: PlannerSettings, plain: bool) -> float:
    """FLOPs of the products of one environment's plan; `plain` counts what the plain planner multiplies."""
    action, hidden = d.action_dim, [d.mlp_dim, d.mlp_dim]
    latent = d.latent_dim + (d.task_dim if plain else 0)

    def network(inputs: int, outputs: int) -> int:
        return multiply_adds([inputs, *hidden, outputs])

    def step(inputs: int) -> int:
        return network(inputs, d.num_bins) + network(inputs, d.latent_dim)

    policy, value = network(latent, 2 * action), d.num_q * network(latent + action, d.num_bins)
    if plain:
        per_trajectory = s.horizon * step(latent + action) + policy + value
        prior = s.horizon * (policy + network(latent + action, d.latent_dim))
        return 2.0 * (s.iterations * s.num_samples * per_trajectory + s.num_pi_trajs * prior)
    follow = step(action) + (s.horizon - 1) * step(latent + action)
    rollouts = s.iterations * (s.num_samples - s.num_pi_trajs) + s.num_pi_trajs
    prior = s.num_pi_trajs * (s.horizon - 1) * policy
    return 2.0 * (rollouts * follow + prior + s.iterations * s.num_samples * (policy + value))


def plan_bytes(model: WorldModel, s: PlannerSettings, envs: int, size: int) -> float:
    """Bytes that must move at least: the weights once a round, noise and actions once."""
    weights = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("target_"))
    noise = s.iterations * s.num_samples * (s.horizon + 1) * model.dims.action_dim
    return weights * size * s.iterations + envs * noise * 4 * 2


def random_model(device: torch.device) -> WorldModel:
    """The 1M model with random weights, outputs too."""
    model = WorldModel(model_dims(1, MT30.obs_dim, MT30.action_dim, len(MT30)), MT30.action_masks())
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    with torch.no_grad():
        for part in (model.reward_head, model.q_heads):
            part.layers[-1].get_parameter("weight").normal_(0, 0.02, generator=generator)
    return model.to(device).eval()


def decision(mode: str, model: WorldModel, envs: int, device: torch.device) -> Decide:
    """A function that takes one decision for all environments."""
    way, _, half = mode.partition("-")
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(envs, MT30.obs_dim, generator=generator).to(device)
    task = (torch.arange(envs) % len(MT30)).to(device)
    generators = [torch.Generator(device).manual_seed(seed) for seed in range(envs)]
    execution = Execution()
    if way != "plain":
        execution = Execution(compile="compiled" in way, cudagraphs="graphs" in way, precision=ARITHMETIC[half])
    agent = Agent(model, MT30, execution=execution)
    if agent.planner.execution != execution:
        raise UserError(f"mode {mode} is not possible here")
    warm = agent.zero_plan(envs)
    plain = ReferencePlanner(model, agent.settings, agent.planner.discounts)

    def decide() -> Tensor:
        torch.set_float32_matmul_precision("high" if half == "tf32" else "highest")
        if way == "plain":
            return plain.plan(obs, task, warm, agent.planner.draw_noise(envs, generators)).action.cpu()
        return agent.plan(obs, task, warm, generators)[0].cpu()

    return decide


def measure(modes: list[str], envs: int, device: torch.device, seconds: float) -> list[Row]:
    """Every mode that is possible here in turn, again and again, until each has had its seconds."""
    model = random_model(device)
    settings = PlannerSettings()
    speed = {half: rates(device, dtype) for half, dtype in (("", torch.float32), ("half", torch.bfloat16))}
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        speed["tf32"] = rates(device, torch.float32)
    decide, first = {}, {}
    for mode in modes:
        try:
            decide[mode] = decision(mode, model, envs, device)
        except UserError as error:
            print(f"{envs} environments, {mode}: {error}", file=sys.stderr)
            continue
        start = time.perf_counter()
        for _ in range(2):
            decide[mode]()
        first[mode] = time.perf_counter() - start
    modes = list(decide)
    if not modes:
        return []
    times: dict[str, list[float]] = {mode: [] for mode in modes}
    begun = time.perf_counter()
    while len(times[modes[0]]) < 3 or time.perf_counter() - begun < seconds * len(modes):
        for mode in modes:
            synchronise(device)
            start = time.perf_counter()
            decide[mode]()
            times[mode].append(time.perf_counter() - start)
    rows = []
    for mode in modes:
        half = mode.partition("-")[2]
        size = 4 if ARITHMETIC[half] == "float32" else 2
        flop_rate, byte_rate = speed["half" if size == 2 else half]
        flops = envs * plan_flops(model.dims, settings, mode == "plain")
        moved = plan_bytes(model, settings, envs, size)
        floor = max(envs * plan_flops(model.dims, settings, False) / flop_rate, moved / byte_rate)
        taken = times[mode]
        rows.append(Row(envs, mode, statistics.median(taken), min(taken), len(taken), first[mode], flops, moved, floor))
    return rows


def kernel_launches(mode: str, device: torch.device) -> int:
    """Kernels that one decision for one environment starts on a GPU."""
    decide = decision(mode, random_model(device), 1, device)
    for _ in range(3):
        decide()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        decide()
        synchronise(device)
    return sum(event.count for event in profile.key_averages())


def table(rows: list[Row]) -> str:
    plain = {row.envs: row.median_s for row in rows if row.mode == "plain"}
    columns: dict[str, Callable[[Row], str]] = {
        "envs": lambda r: str(r.envs),
        "mode": lambda r: r.mode,
        "median ms": lambda r: f"{r.median_s * 1e3:.1f}",
        "min ms": lambda r: f"{r.fastest_s * 1e3:.1f}",
        "decisions/s": lambda r: f"{r.envs / r.median_s:.1f}",
        "x plain": lambda r: f"{plain[r.envs] / r.median_s:.2f}" if r.envs in plain else "-",
        "first 2, s": lambda r: f"{r.first_s:.1f}",
        "GFLOP": lambda r: f"{r.flops / 1e9:.1f}",
        "floor ms": lambda r: f"{r.floor_s * 1e3:.1f}",
        "x floor": lambda r: f"{r.median_s / r.floor_s:.2f}",
    }
    return format_table(list(columns), [[show(row) for show in columns.values()] for row in rows], align="rl" + "r" * 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 30, 300])
    parser.add_argument("--mode", nargs="+", help="default: all that the device has")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each row is timed, at least three times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the machine to FILE")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    modes = arguments.mode or (
        ["plain", *WAYS, "compiled+graphs-tf32", "graphs-bf16", "compiled+graphs-bf16", "compiled+graphs-fp16"]
        if device.type == "cuda"
        else ["plain", "eager", "compiled", "eager-bf16", "compiled-bf16"]
    )
    known = ["plain", *(f"{way}-{half}".removesuffix("-") for way in WAYS for half in ARITHMETIC)]
    if wrong := [mode for mode in modes if mode not in known]:
        raise UserError(f"mode {wrong[0]} is unknown; choose of {', '.join(known)}.")
    here = this_machine(device_name(device))
    name = here.cpu if device.type == "cpu" else here.device
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rows: list[Row] = []
    for envs in arguments.envs:
        found = measure(modes, envs, device, arguments.seconds)
        rows += found
        for row in found:
            print(f"{row.envs} environments, {row.mode}: {row.median_s * 1e3:.1f} ms", file=sys.stderr)
    print(table(rows))
    if device.type == "cuda":
        print(", ".join(f"{mode}: {kernel_launches(mode, device)} kernels" for mode in modes))
    if arguments.json is not None:
        machine = {**asdict(here), "threads": torch.get_num_threads(), "versions": package_versions()}
        content = {"machine": machine, "rows": [asdict(row) for row in rows]}
        atomic_write_text(arguments.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
