"""Updates per second and peak memory of training, by batch size, teacher and way of running, beside the floor.

python benchmarks/train_step.py                                  # everything that this machine has, CPU or CUDA
python benchmarks/train_step.py --batch 256 --teacher labels 317M --mode eager compiled
python benchmarks/train_step.py --device cuda --memory-cap-gb 12 --json train_step.json

Each row runs in a new process, so that its peak memory is of it alone. Batches are random and lie ready:
`data.py` measures what makes them. A teacher has random weights of its size; "labels" is a batch that brings the
teacher's rewards along. Modes: eager; compiled (torch.compile); graphs (one CUDA graph); compiled+graphs; each also
with "-bf16", bfloat16 products, the teacher's too. The floor is the larger of FLOPs over the machine's measured product
rate and bytes over its measured copy rate; both rates are measured first, on the same device.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from tdmpc2.agent import resolve_device
from tdmpc2.allocation import keep_freed_memory
from tdmpc2.data.batch import Batch
from tdmpc2.distillation import Lessons, Teacher, random_teacher
from tdmpc2.errors import UserError, run_program
from tdmpc2.evaluation.results import this_machine
from tdmpc2.evaluation.runner import device_name
from tdmpc2.execution import Execution
from tdmpc2.execution.capabilities import half_product_problem
from tdmpc2.fileio import atomic_write_text
from tdmpc2.losses import LossWeights
from tdmpc2.model import ModelDims, WorldModel, model_dims
from tdmpc2.objectives import RewardDistillation
from tdmpc2.reporting.tables import format_table
from tdmpc2.tasks import task_set
from tdmpc2.training import Learner, OptimiserSettings
from tdmpc2.versions import package_versions

MT30 = task_set("mt30")
MODES = ("eager", "compiled", "graphs", "compiled+graphs")
TEACHERS = {"none": None, "labels": None, "48M": 48, "317M": 317}
HORIZON = 3


@dataclass(frozen=True)
class Row:
    """One measurement, in seconds and bytes; `peak_bytes` of the process or the GPU."""

    batch: int
    teacher: str
    mode: str
    median_s: float
    fastest_s: float
    updates: int
    first_s: float
    peak_bytes: int
    flops: float
    bytes: float
    floor_s: float = 0.0


# -- counting --------------------------------------------------------------------------------------------------------


def multiply_adds(widths: list[int]) -> int:
    return sum(a * b for a, b in itertools.pairwise(widths))


def update_flops(d: ModelDims, batch: int, horizon: int, teacher: ModelDims | None) -> float:
    """FLOPs of the products that one update needs at least, without the embedding's, which are taken once a slice.

    Forward 1, gradients by weights 1, gradients by inputs 1 (2 FLOPs a multiply-add); input gradients of the first
    layer only where something before it learns.
    """
    state, hidden = d.latent_dim, [d.mlp_dim, d.mlp_dim]
    encoder = multiply_adds([d.obs_dim, *[d.enc_dim] * (d.num_enc_layers - 1), d.latent_dim])
    dynamics = multiply_adds([state + d.action_dim, *hidden, d.latent_dim])
    scalar = multiply_adds([state + d.action_dim, *hidden, d.num_bins])
    policy = multiply_adds([state, *hidden, 2 * d.action_dim])
    rows, more = horizon * batch, (horizon + 1) * batch
    q_action_gradient = scalar - state * d.mlp_dim
    total = (
        rows * encoder  # next latents
        + rows * (policy + 2 * scalar)  # TD targets
        + 3 * batch * encoder - batch * d.obs_dim * d.enc_dim
        + 3 * rows * (dynamics + scalar + d.num_q * scalar)
        + more * (3 * policy - state * d.mlp_dim)
        + more * 2 * (scalar + q_action_gradient)
    )  # fmt: skip
    if teacher is not None:
        t = teacher
        width = t.latent_dim + t.task_dim + t.action_dim
        total += batch * multiply_adds(
            [t.obs_dim + t.task_dim, *[t.enc_dim] * (t.num_enc_layers - 1), t.latent_dim]
        ) + batch * multiply_adds([width, t.mlp_dim, t.mlp_dim, t.num_bins])
    return 2.0 * total


def update_bytes(d: ModelDims, batch: int, horizon: int, learnable: int, target: int, teacher: int) -> float:
    """Bytes that must move at least: weights, gradients and Adam's moments once each, hidden activations twice."""
    optimiser = learnable * 4 * 7 + target * 4 * 3  # w, g, m, v read, w, m, v written; target read, written, Q read
    rows, more = horizon * batch, (horizon + 1) * batch
    kept = rows * 2 * d.mlp_dim * (2 + d.num_q) + batch * d.enc_dim + more * 2 * d.mlp_dim * 3
    return optimiser + kept * 4 * 2 + teacher * 4


def rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(FLOP/s of a large product, bytes/s of a large copy), the best of several.

    On a CPU whose products in half types are slower than float32's, they are float32's, as the planner's are.
    """
    if device.type == "cpu" and dtype != torch.float32 and half_product_problem(dtype) is not None:
        dtype = torch.float32
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    c = torch.empty(64 << 20, device=device)
    d = torch.empty_like(c)

    def best(function: Callable[[], object], repeats: int = 6) -> float:
        fastest = float("inf")
        for _ in range(repeats):
            synchronise(device)
            start = time.perf_counter()
            function()
            synchronise(device)
            fastest = min(fastest, time.perf_counter() - start)
        return fastest

    return 2 * n**3 / best(lambda: a @ b), 2 * c.numel() * 4 / best(lambda: d.copy_(c))


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- one row ---------------------------------------------------------------------------------------------------------


def random_batch(size: int, device: torch.device, labelled: bool) -> Batch:
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        obs=torch.randn(HORIZON + 1, size, MT30.obs_dim, generator=generator),
        action=torch.rand(HORIZON, size, MT30.action_dim, generator=generator) * 2 - 1,
        reward=torch.rand(HORIZON, size, 1, generator=generator),
        task=torch.randint(0, len(MT30), (size,), generator=generator),
        targets={"distillation.reward": torch.rand(size, 1, generator=generator)} if labelled else {},
    )
    return batch.to(device)


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(
    batch_size: int, teacher_name: str, mode: str, device: torch.device, cap_gb: float | None, seconds: float
) -> Row:
    """Times one row in this process, for `seconds` after its first updates, which take no longer beyond the first."""
    if device.type == "cuda" and cap_gb is not None:
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap_gb * 2**30 / whole), device)
    way, _, half = mode.partition("-")
    precision = "bfloat16" if half else "float32"
    execution = Execution(compile="compiled" in way, cudagraphs="graphs" in way, precision=precision)
    dims = model_dims(1, MT30.obs_dim, MT30.action_dim, len(MT30))
    size = TEACHERS[teacher_name]
    teacher: Teacher | None = None
    teacher_dims = None
    if size is not None:
        teacher_dims = model_dims(size, MT30.obs_dim, MT30.action_dim, len(MT30))
        teacher = random_teacher(teacher_dims, MT30, MT30, 0, device, precision=precision)
    model = WorldModel(dims, MT30.action_masks())
    model.init_weights(torch.Generator().manual_seed(0))
    model.to(device)
    objectives = () if teacher_name == "none" else (RewardDistillation(0.4),)
    learner = Learner(
        model,
        torch.from_numpy(MT30.discounts()),
        LossWeights(),
        OptimiserSettings(),
        seed=0,
        execution=execution,
        objectives=objectives,
    )
    if learner.execution != execution:
        raise UserError(f"mode {mode} is not possible here")
    batch = random_batch(batch_size, device, labelled=teacher_name == "labels")

    lessons = None
    if teacher is not None:
        lessons = Lessons(teacher, objectives, 0, batch_size, slice(0, batch_size))

    def update() -> None:
        given = batch
        if lessons is not None:
            given = lessons.of(batch, 0)
        learner.update(given)

    start = time.perf_counter()
    update()  # compiles
    synchronise(device)
    first = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(4):
        if time.perf_counter() - start < seconds:
            update()
            synchronise(device)
    # On a GPU, launches run ahead of the device: time blocks of updates, not single ones.
    block = 1 if device.type == "cpu" else 20
    times: list[float] = []
    begun = time.perf_counter()
    while not times or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        for _ in range(block):
            update()
        synchronise(device)
        times.append((time.perf_counter() - start) / block)
    learnable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    target = sum(p.numel() for p in model.target_q_heads.parameters())
    return Row(
        batch=batch_size,
        teacher=teacher_name,
        mode=mode,
        median_s=statistics.median(times),
        fastest_s=min(times),
        updates=len(times) * block,
        first_s=first,
        peak_bytes=peak_bytes(device),
        flops=update_flops(dims, batch_size, HORIZON, teacher_dims),
        bytes=update_bytes(
            dims, batch_size, HORIZON, learnable, target, 0 if teacher is None else teacher.num_parameters
        ),
    )


# -- all of them -----------------------------------------------------------------------------------------------------


def in_a_new_process(arguments: argparse.Namespace, batch: int, teacher: str, mode: str) -> Row | str:
    """A row, or why there is none."""
    command = [sys.executable, str(Path(__file__)), "--one", "--device", arguments.device]
    command += ["--batch", str(batch), "--teacher", teacher, "--mode", mode, "--seconds", str(arguments.seconds)]
    if arguments.memory_cap_gb is not None:
        command += ["--memory-cap-gb", str(arguments.memory_cap_gb)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return Row(**json.loads(done.stdout.splitlines()[-1]))
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1]


def table(rows: list[Row]) -> str:
    eager = {(r.batch, r.teacher): r.median_s for r in rows if r.mode == "eager"}
    columns: dict[str, Callable[[Row], str]] = {
        "batch": lambda r: str(r.batch),
        "teacher": lambda r: r.teacher,
        "mode": lambda r: r.mode,
        "updates/s": lambda r: f"{1 / r.median_s:.1f}",
        "median ms": lambda r: f"{r.median_s * 1e3:.2f}",
        "min ms": lambda r: f"{r.fastest_s * 1e3:.2f}",
        "x eager": lambda r: f"{eager[r.batch, r.teacher] / r.median_s:.2f}" if (r.batch, r.teacher) in eager else "-",
        "first, s": lambda r: f"{r.first_s:.1f}",
        "peak MiB": lambda r: f"{r.peak_bytes / 2**20:,.0f}",
        "GFLOP": lambda r: f"{r.flops / 1e9:.2f}",
        "MB": lambda r: f"{r.bytes / 1e6:.0f}",
        "floor ms": lambda r: f"{r.floor_s * 1e3:.2f}",
        "x floor": lambda r: f"{r.median_s / r.floor_s:.1f}",
    }
    return format_table(
        list(columns), [[show(row) for show in columns.values()] for row in rows], align="rll" + "r" * 10
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 256, 1024])
    parser.add_argument("--teacher", nargs="+", default=list(TEACHERS), choices=list(TEACHERS))
    parser.add_argument("--mode", nargs="+", help="default: all that the device has, and bfloat16 products")
    parser.add_argument("--memory-cap-gb", type=float, help="GiB of GPU memory that a row may use")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each row is timed, at least one update")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the machine to FILE")
    parser.add_argument("--one", action="store_true", help="measure a single row in this process and print it as JSON")
    arguments = parser.parse_args()
    keep_freed_memory()  # as train.py does
    device = resolve_device(arguments.device)
    modes = arguments.mode or (
        [*MODES, "compiled+graphs-bf16"] if device.type == "cuda" else ["eager", "compiled", "compiled-bf16"]
    )
    known = [mode + suffix for mode in MODES for suffix in ("", "-bf16")]
    if wrong := [mode for mode in modes if mode not in known]:
        raise UserError(f"mode {wrong[0]} is unknown; choose of {', '.join(known)}.")
    if arguments.one:
        chosen = arguments.batch[0], arguments.teacher[0], modes[0]
        row = measure(*chosen, device, arguments.memory_cap_gb, arguments.seconds)
        print(json.dumps(asdict(row)))
        return
    here = this_machine(device_name(device))
    machine = {**asdict(here), "threads": torch.get_num_threads(), "versions": package_versions()}
    name = here.cpu if device.type == "cpu" else here.device
    products = {"": torch.float32, "bf16": torch.bfloat16}
    speed = {half: rates(device, dtype) for half, dtype in products.items()}
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"measured: float32 {speed[''][0] / 1e9:,.0f} GFLOP/s, bfloat16 {speed['bf16'][0] / 1e9:,.0f} GFLOP/s, "
        f"copying {speed[''][1] / 1e9:,.0f} GB/s"
    )
    rows = []
    for batch in arguments.batch:
        for teacher in arguments.teacher:
            for mode in modes:
                found = in_a_new_process(arguments, batch, teacher, mode)
                if isinstance(found, str):
                    print(f"batch {batch}, {teacher}, {mode}: {found}", file=sys.stderr)
                    continue
                flop_rate, byte_rate = speed[mode.partition("-")[2]]
                rows.append(replace(found, floor_s=max(found.flops / flop_rate, found.bytes / byte_rate)))
                print(f"batch {batch}, {teacher}, {mode}: {found.median_s * 1e3:.1f} ms", file=sys.stderr)
    print(table(rows))
    if arguments.json is not None:
        content = {"machine": machine, "rows": [asdict(row) for row in rows]}
        atomic_write_text(arguments.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
