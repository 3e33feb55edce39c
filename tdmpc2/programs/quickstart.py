"""The whole path on a small embedded problem: `make quickstart` (at most 10 minutes on 2 quiet cores).

Data from the real simulator; three students at the same budget by the ordinary program (`tdmpc2/train.py`): from
scratch, by the papers' reward distillation, and by the teacher's values and policy prior; FP16 and int8; and all of
them evaluated side by side, planned and by the prior alone. Writes results/quickstart/ (report.html, which needs
nothing else; report.md and report.json with two charts). Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tdmpc2.agent import load_agent, resolve_device
from tdmpc2.checkpointing import read_checkpoint
from tdmpc2.embedded import PLANNER, TASK_SET, TEACHER, embedded_store
from tdmpc2.errors import UserError, printable
from tdmpc2.evaluation.comparison import compare, comparison_notes, comparison_table
from tdmpc2.evaluation.results import EvaluationResult, finite_or_null, load_json
from tdmpc2.evaluation.runner import EvaluationSettings, evaluate
from tdmpc2.places import INSTALLED, PACKAGE, ROOT
from tdmpc2.programs.arguments import ProgramParser
from tdmpc2.reporting.charts import Mark, Point, Value, interval_chart, line_chart
from tdmpc2.reporting.report import Report
from tdmpc2.reporting.sinks import metric_series, read_metrics
from tdmpc2.reporting.tables import format_table
from tdmpc2.tasks import task_set

SCRATCH, REWARDS, VALUES = "scratch", "rewards", "values+prior"
SMALLER = {f"{VALUES}, FP16": "fp16", f"{VALUES}, int8": "int8"}
"""That student by schemes of quantisation."""
ROWS = {VALUES: "objectives/value_policy", REWARDS: "objectives/reward_0.40", SCRATCH: "objectives/scratch"}
"""The students, the one that takes longest first, and the experiment that trains each."""
_LOG = "quickstart.log"


@dataclass(frozen=True)
class Plan:
    """The budget of a run."""

    steps: int
    batch_size: int
    episodes: int
    d_coef: float
    seed: int


@dataclass(frozen=True)
class Scored:
    """One agent's row: its file, and its evaluations on the same episodes; None where the prior was not evaluated."""

    checkpoint: Path
    planned: EvaluationResult
    prior: EvaluationResult | None


# -- training --------------------------------------------------------------------------------------------------------


def command(label: str, folder: Path, data: Path, plan: Plan, device: torch.device) -> list[str]:
    """The ordinary training command of a student."""
    keys = {
        "experiment": ROWS[label],
        "scale": "cpu",
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "seed": plan.seed,
        "device": device,
        "data_dir": data,
        "make_data": "false",
        "final_episodes": plan.episodes,
        "eval_freq": max(1, plan.steps // 8),
        "eval_episodes": 2,
        "mpc": "false",
        "log_freq": max(1, plan.steps // 20),
        "num_workers": 0,
        "resume": "auto",
        "logging.console": "false",
        "hydra.run.dir": folder,
    }
    keys |= {"d_coef": plan.d_coef} if label == REWARDS else {}
    keys |= {"evaluate_schemes": f"[{','.join(SMALLER.values())}]"} if label == VALUES else {}
    return [sys.executable, str(PACKAGE / "train.py"), *(f"{key}={value}" for key, value in keys.items())]


def teacher_command(folder: Path, plan: Plan, device: torch.device) -> list[str]:
    """The ordinary evaluation of the teacher, on the students' episodes."""
    keys = {
        "checkpoint": TEACHER,
        "planner": "small",
        "eval_episodes": plan.episodes,
        "seed": plan.seed,
        "device": device,
        "num_workers": 0,
        "output": folder,
    }
    return [sys.executable, str(PACKAGE / "evaluate.py"), *(f"{key}={value}" for key, value in keys.items())]


def run_all(commands: Mapping[str, Sequence[str]], folders: Mapping[str, Path], plan: Plan, cuda: bool) -> None:
    """Runs every command, in this order: on a CPU one for each core at a time, of one thread each.

    Raises:
        UserError: when one fails, with what it said.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_a_time = 1 if cuda else min(cores, len(commands))
    threads = {"OMP_NUM_THREADS": "1"} if at_a_time > 1 else {}
    waiting, running = list(commands), dict[str, subprocess.Popen[str]]()
    print(f"{'; '.join(commands)}: {plan.steps} updates of batch {plan.batch_size}, {at_a_time} at a time")
    told = began = time.perf_counter()
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                label = waiting.pop(0)
                folders[label].mkdir(parents=True, exist_ok=True)
                with (folders[label] / _LOG).open("w") as log:
                    running[label] = subprocess.Popen(
                        commands[label],
                        env={**os.environ, **threads},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        text=True,
                    )
            time.sleep(0.5)
            for label in [label for label, process in running.items() if process.poll() is not None]:
                _check(label, running.pop(label).returncode, folders[label])
                print(f"  {label}: done after {time.perf_counter() - began:.0f} s", flush=True)
            if time.perf_counter() - told > 20:
                told = time.perf_counter()
                print(f"  {'; '.join(f'{label}: {_stage(folders[label], plan)}' for label in running)}", flush=True)
    finally:
        for process in running.values():
            process.terminate()  # it writes its state; the same command goes on from there
        for process in running.values():
            process.wait()


def _stage(folder: Path, plan: Plan) -> str:
    if folder.name == "teacher":
        return "evaluating"
    with contextlib.suppress(UserError, OSError):
        steps = [int(row["step"]) for row in read_metrics(folder)]
        if steps and max(steps) < plan.steps:
            return f"{max(steps)}/{plan.steps}"
        return "evaluating" if steps else "starting"
    return "starting"


def _check(label: str, code: int, folder: Path) -> None:
    if code == 0:
        return
    said = (folder / _LOG).read_text(errors="replace").strip().splitlines()
    raise UserError(
        f"{label}: it ended with status {code}: "
        f"{printable(said[-1].removeprefix('error: ') if said else 'nothing was said', 500)}"
    )


# -- what came out ---------------------------------------------------------------------------------------------------


def student_results(folder: Path) -> Scored:
    """What a training run leaves in its folder."""
    final = folder / "checkpoints" / "final.safetensors"
    return Scored(final, load_json(folder / "evaluation.json"), load_json(folder / "evaluation-prior.json"))


def smaller_results(folder: Path, scheme: str) -> Scored:
    """Likewise, of the student by a scheme of quantisation."""
    final = folder / "checkpoints" / f"final-{scheme}.safetensors"
    return Scored(final, load_json(folder / f"evaluation-{scheme}.json"), None)


def teacher_results(folder: Path, plan: Plan, device: torch.device) -> Scored:
    """The teacher's evaluation, and that of its prior alone, which takes seconds."""
    teacher = load_agent(TEACHER, device=device, planner=PLANNER)
    prior = EvaluationSettings(episodes=plan.episodes, seed=plan.seed, mpc=False)
    return Scored(TEACHER, load_json(folder / "evaluation.json"), evaluate(teacher, prior, label="teacher, prior"))


def facts_of(checkpoint: Path) -> tuple[str, str]:
    """Parameters of a model without target Q, and the size of its file in MiB."""
    tensors = read_checkpoint(checkpoint).tensors
    # Scales belong to stored integers, and are no parameters.
    own = (name for name in tensors if not name.startswith("target") and not name.endswith("_scale"))
    count = sum(tensors[name].numel() for name in own)
    return f"{count:,}", f"{checkpoint.stat().st_size / 2**20:.2f}"


def agents_table(agents: Mapping[str, Scored]) -> tuple[list[str], list[list[str]]]:
    """Headers, and a row an agent: its size, mean returns by task and the score with its interval, planned; the prior's
    score."""
    tasks = next(iter(agents.values())).planned.tasks
    rows = []
    for label, agent in agents.items():
        means = [f"{sum(values) / len(values):.0f}" for values in agent.planned.returns().values()]
        row = [label, *facts_of(agent.checkpoint), *means, *_score(agent.planned)]
        rows.append([*row, *(_score(agent.prior) if agent.prior is not None else ("-", "-"))])
    sized = ("parameters", "file (MiB)")
    return ["agent", *sized, *tasks, "planned", "95% interval", "prior alone", "95% interval"], rows


def _score(result: EvaluationResult) -> tuple[str, str]:
    score = result.score()
    span = "-" if score.interval is None else f"{score.interval.low:.1f} to {score.interval.high:.1f}"
    return f"{score.value:.1f}", span


def _mark(result: EvaluationResult | None) -> Value | None:
    if result is None:
        return None
    score = result.score()
    return Value(score.value, *((None, None) if score.interval is None else (score.interval.low, score.interval.high)))


def write_report(
    folder: Path,
    plan: Plan,
    device: torch.device,
    agents: Mapping[str, Scored],
    curves: Mapping[str, Sequence[tuple[int, float]]],
    minutes: float,
) -> str:
    """Writes the report in its three forms and its charts; returns what is printed too."""
    first = agents[SCRATCH].planned
    comparisons = {label: compare(first, agents[label].planned) for label in (REWARDS, VALUES)}
    report = Report("Quickstart report")
    report.paragraph(
        f"{len(first.tasks)} tasks, {plan.episodes} episodes each, the same episodes for every agent. Students: 1M "
        f"size, {plan.steps} updates of batch {plan.batch_size}, seed {plan.seed}, from the same data, the same first "
        f"weights and the same order of batches: from scratch; by the papers' reward distillation (d_coef "
        f"{plan.d_coef}); by the teacher's values (d_value 0.1) and policy prior (d_policy 1). Planner: "
        f"{PLANNER.num_samples} samples, {PLANNER.iterations} iterations, horizon {PLANNER.horizon} (the papers use "
        "512 samples and 6 iterations), exploration noise on."
    )
    headers, rows = agents_table(agents)
    report.table(headers, rows)
    report.paragraph(
        "Columns of tasks are mean episode returns with planning (0 to 1000); a score is their mean divided by 10. The "
        "prior alone is one forward pass a decision, where planning takes thousands."
    )
    for label, comparison in comparisons.items():
        report.heading(f"{label} against scratch, planned, episode by episode")
        report.paragraph(f"a is {SCRATCH}, b is {label}.")
        report.table(*comparison_table(comparison))
        report.points(comparison_notes(comparison))
    report.paragraph("One training run each: the intervals say nothing about other training seeds.")
    marks = [Mark(label, tuple(map(_mark, (agent.planned, agent.prior)))) for label, agent in agents.items()]
    axis = "normalised score, 0 to 100"
    scores = interval_chart(marks, ("planned, 95% interval", "prior alone"), "scores", "Scores", axis)
    report.chart("scores", scores, "Scores")
    series = {label: [Point(step, value) for step, value in held] for label, held in curves.items()}
    title = "Score of the policy prior while training"
    report.chart("learning", line_chart(series, "learning", title, "updates", axis), title)
    versions = ", ".join(f"{package} {version}" for package, version in first.versions.items())
    report.paragraph(
        f"{minutes:.1f} minutes on {first.machine.cpu}, {first.machine.cores} cores, device {device}; {versions}."
    )
    figures = {
        "plan": asdict(plan),
        "planner": asdict(PLANNER),
        "scores": {
            label: {
                way: None if result is None else asdict(result.score())
                for way, result in (("planned", agent.planned), ("prior", agent.prior))
            }
            for label, agent in agents.items()
        },
        "returns": {label: agent.planned.returns() for label, agent in agents.items()},
        "against_scratch": {label: comparison.to_json() for label, comparison in comparisons.items()},
        "learning_curves": curves,
        "minutes": minutes,
        "machine": asdict(first.machine),
        "versions": dict(first.versions),
    }
    report.write(folder, finite_or_null(figures))
    report.write_page(folder)
    return format_table(headers, rows)


INTERRUPTED = "interrupted; the same command goes on from here"


def main() -> None:
    parser = ProgramParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1600, help="updates of each student (1600)")
    parser.add_argument("--batch-size", type=int, default=128, help="slices in a batch (128)")
    parser.add_argument("--episodes", type=int, default=2, help="evaluation episodes of each task (2)")
    parser.add_argument("--d-coef", type=float, default=0.4, help="weight of the papers' distillation loss (0.4)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")
    here = Path() if INSTALLED else ROOT  # nothing is written beside an installed package
    parser.add_argument("--out", type=Path, default=here / "results" / "quickstart")
    parser.add_argument("--data", type=Path, default=here / "data" / "quickstart")
    a = parser.parse_args()
    plan = Plan(a.steps, a.batch_size, a.episodes, a.d_coef, a.seed)
    EvaluationSettings(episodes=plan.episodes, seed=plan.seed)  # checks them
    if plan.steps < 1 or plan.batch_size < 1:
        raise UserError("--steps and --batch-size must be at least 1.")
    started = time.perf_counter()
    device = resolve_device(a.device)
    torch.set_float32_matmul_precision("highest")
    print(f"teacher: {TEACHER.name}, {read_checkpoint(TEACHER).describe()}; device {device}")
    data = embedded_store(a.data.resolve(), task_set(TASK_SET)).path
    budget = f"{plan.steps}x{plan.batch_size}-d{plan.d_coef:g}-seed{plan.seed}"
    runs = (a.out / "runs" / budget).resolve()
    folders = {label: runs / row.rpartition("/")[2] for label, row in ROWS.items()}
    teacher = runs / "teacher"
    commands = {label: command(label, folder, data, plan, device) for label, folder in folders.items()}
    if not (teacher / "evaluation.json").exists():
        commands["teacher"] = teacher_command(teacher, plan, device)
    run_all(commands, {**folders, "teacher": teacher}, plan, device.type == "cuda")
    agents = {"teacher": teacher_results(teacher, plan, device)}
    agents |= {label: student_results(folders[label]) for label in (SCRATCH, REWARDS, VALUES)}
    agents |= {label: smaller_results(folders[VALUES], scheme) for label, scheme in SMALLER.items()}
    curves = {
        label: metric_series(read_metrics(folder), "normalised_score", "eval") for label, folder in folders.items()
    }
    minutes = (time.perf_counter() - started) / 60
    print()
    print(write_report(a.out, plan, device, agents, curves, minutes))
    print(f"\n{minutes:.1f} minutes; the report: {a.out / 'report.html'}")
