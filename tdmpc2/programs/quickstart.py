"""The whole path on a small embedded problem: `make quickstart` (about 10 minutes on 2 cores).

Data from the real simulator, a student from scratch and one distilled from the bundled teacher at the same budget,
FP16, and all of them evaluated side by side. Writes results/quickstart/ (report.md, report.json, two plots).
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from tdmpc2.agent import Agent, load_agent, resolve_device
from tdmpc2.checkpointing import checkpoint_metadata, load_model, read_checkpoint, save_checkpoint
from tdmpc2.data.importing import open_or_create, summary
from tdmpc2.data.store import EpisodeStore
from tdmpc2.distillation import Teacher, load_teacher
from tdmpc2.envs import EnvPool
from tdmpc2.errors import UserError
from tdmpc2.evaluation.comparison import compare, comparison_text
from tdmpc2.evaluation.results import EvaluationResult, finite_or_null
from tdmpc2.evaluation.runner import EvaluationSettings, default_workers, envs_at_a_time, evaluate, evaluate_to_files
from tdmpc2.model import model_dims
from tdmpc2.objectives import RewardDistillation
from tdmpc2.planner import PlannerSettings
from tdmpc2.programs.arguments import ProgramParser
from tdmpc2.quantisation import quantise, without_target
from tdmpc2.reporting.metrics import LoggingSettings
from tdmpc2.reporting.plots import learning_curves, score_bars
from tdmpc2.reporting.progress import Progress
from tdmpc2.reporting.report import AgentScores, Report, scores_table
from tdmpc2.reporting.sinks import metric_series, read_metrics
from tdmpc2.rollout import AgentController, Controller, RandomController
from tdmpc2.rollout.collecting import collect
from tdmpc2.tasks import TaskSet
from tdmpc2.training import TrainSettings, train

ROOT = Path(__file__).resolve().parents[2]
TEACHER = ROOT / "checkpoints" / "quickstart_teacher.safetensors"
PLANNER = PlannerSettings(iterations=3, num_samples=64, num_elites=8, num_pi_trajs=12)
# (name, episodes of each task, std of the noise): a range of skill, as replay buffers of the published data have.
COLLECTIONS: tuple[tuple[str, int, float], ...] = (
    ("oscillate", 8, 0.1),
    ("teacher prior", 6, 0.6),
    ("teacher prior", 6, 0.3),
    ("teacher prior", 4, 0.1),
)
FACTS = ("parameters", "file (MiB)")
"""What the report's table says of an agent itself."""


@dataclass(frozen=True)
class Plan:
    """The budget of a run."""

    steps: int
    batch_size: int
    episodes: int
    d_coef: float
    seed: int


def prepare_data(folder: Path, teacher: Agent, seed: int) -> EpisodeStore:
    """The store at `folder`, with whatever collections it does not hold yet."""
    tasks = teacher.task_set
    made_by = hashlib.sha256(TEACHER.read_bytes()).hexdigest()[:12]
    folder = folder / f"seed{seed}-{made_by}"  # another seed or teacher has data of its own
    store = open_or_create(folder, tasks, notes="made by scripts/quickstart.py")
    for behaviour, episodes, noise in COLLECTIONS:
        source = f"{behaviour}, noise {noise}, {episodes} episodes a task, seed {seed}, teacher {made_by}"
        if any(segment.source == source for segment in store.segments):
            continue

        def controller(slots: int, behaviour: str = behaviour, noise: float = noise) -> Controller:
            if behaviour == "oscillate":
                return RandomController(tasks, slots, oscillate=True, noise=noise)
            return AgentController(teacher, slots, mpc=False, noise=noise)

        def pool(jobs: int) -> EnvPool:
            return EnvPool(tasks, num_envs=envs_at_a_time(jobs, None, teacher.device), num_workers=default_workers())

        with Progress(episodes * sum(tasks.episode_steps), f"data: {behaviour}, noise {noise}", "decisions") as bar:
            collect(store, tasks.tasks, episodes, controller, pool, seed=seed, source=source, on_decisions=bar.update)
    print(summary(store))
    return store


def prior_evaluation(plan: Plan) -> EvaluationSettings:
    """Of the learning curves: the prior alone, greedily, cheap enough to look often. The final scores are planned."""
    return EvaluationSettings(episodes=2, seed=plan.seed + 1, mpc=False, greedy=True, num_workers=0)


def train_student(
    name: str, folder: Path, data: Path, tasks: TaskSet, plan: Plan, device: torch.device, teacher: Teacher | None
) -> tuple[Path, list[tuple[int, float]], float]:
    """Trains one student: its checkpoint, its learning curve (score of the policy prior), updates a second."""
    objectives = () if teacher is None else (RewardDistillation(plan.d_coef),)
    settings = TrainSettings(
        run_dir=folder / name,
        task_set=tasks,
        dims=model_dims(1, tasks.obs_dim, tasks.action_dim, len(tasks)),
        data_dir=data,
        steps=plan.steps,
        batch_size=plan.batch_size,
        seed=plan.seed,
        objectives=objectives,
        device=device,
        teacher_name="none" if teacher is None else TEACHER.stem,
        log_freq=max(1, plan.steps // 20),
        eval_freq=max(1, plan.steps // 8),
        state_freq=max(1, plan.steps // 4),
        evaluation=prior_evaluation(plan),
        planner=PLANNER,
        logging=LoggingSettings(),
        config={
            "made_by": "scripts/quickstart.py",
            "student": name,
            **asdict(plan),
            "d_coef": 0.0 if teacher is None else plan.d_coef,
        },
    )
    print(f"\ntraining: {name}, {plan.steps} updates of batch {plan.batch_size}")
    result = train(settings, teacher)
    if result.checkpoint is None:
        raise UserError("interrupted; run `make quickstart` again to start the students anew (the data is kept).")
    curve = metric_series(read_metrics(settings.run_dir), "normalised_score", "eval")
    return result.checkpoint, curve, result.updates_per_second


def cast_to_half(checkpoint: Path, target: Path) -> int:
    """Writes the FP16 student without target Q, as deployed; returns its size in bytes."""
    model, tasks, source = load_model(checkpoint)
    quantised = quantise(without_target(model.state_dict()), "fp16")
    metadata = replace(checkpoint_metadata(source, tasks), scheme="fp16", normalised_score=None)
    return save_checkpoint(target, quantised.tensors, metadata)


def facts_of(checkpoint: Path) -> tuple[str, str]:
    """The cells under `FACTS`: numbers without target Q, and the size of the file."""
    tensors = read_checkpoint(checkpoint).tensors
    count = sum(tensor.numel() for name, tensor in tensors.items() if not name.startswith("target"))
    return f"{count:,}", f"{checkpoint.stat().st_size / 2**20:.2f}"


def agent_scores(result: EvaluationResult, facts: Sequence[str]) -> AgentScores:
    score = result.score()
    interval = None if score.interval is None else (score.interval.low, score.interval.high)
    means = {task: sum(returns) / len(returns) for task, returns in result.returns().items()}
    return AgentScores(result.label, facts, means, score.value, interval)


def write_report(
    folder: Path,
    plan: Plan,
    device: torch.device,
    results: Mapping[str, EvaluationResult],
    facts: Mapping[str, Sequence[str]],
    curves: Mapping[str, Sequence[tuple[int, float]]],
    teacher_prior: float,
    minutes: float,
) -> str:
    """Writes the plots, report.md and report.json; returns the table that is printed too."""
    agents = [agent_scores(result, facts[label]) for label, result in results.items()]
    comparison = compare(results["scratch"], results["distilled"])
    first = next(iter(results.values()))
    learning_curves(
        curves,
        folder / "learning_curve.png",
        "Normalised score of the policy prior while training",
        "normalised score (0 to 100)",
        hlines={"teacher": teacher_prior},
    )
    score_bars(
        {agent.label: agent.bar for agent in agents},
        folder / "scores.png",
        "Quickstart: normalised score with planning",
    )
    report = Report("Quickstart report")
    report.paragraph(
        f"{len(first.tasks)} tasks, {plan.episodes} episodes each, the same episodes for every agent. Students: 1M "
        f"size, {plan.steps} updates of batch {plan.batch_size}, seed {plan.seed}, from the same data; the distilled "
        f"one with d_coef {plan.d_coef}. Planner: {PLANNER.num_samples} samples, {PLANNER.iterations} iterations, "
        f"horizon {PLANNER.horizon} (the papers use 512 samples and 6 iterations), exploration noise on."
    )
    report.paragraph(scores_table(agents, FACTS, style="markdown"))
    report.paragraph("Columns of tasks are mean episode returns (0 to 1000); the score is their mean divided by 10.")
    report.heading("Distilled against scratch, episode by episode")
    report.paragraph(comparison_text(comparison, style="markdown"))
    report.paragraph("One training run each: the interval says nothing about other training seeds.")
    report.plot("learning_curve.png", "learning curves")
    report.plot("scores.png", "scores")
    versions = ", ".join(f"{package} {version}" for package, version in first.versions.items())
    report.paragraph(
        f"{minutes:.1f} minutes on {first.machine.cpu}, {first.machine.cores} cores, device {device}; {versions}."
    )
    figures = {
        "plan": asdict(plan),
        "planner": asdict(PLANNER),
        "scores": {agent.label: agent.to_json() for agent in agents},
        "returns": {label: result.returns() for label, result in results.items()},
        "distilled_minus_scratch": comparison.to_json(),
        "learning_curves": curves,
        "minutes": minutes,
        "machine": asdict(first.machine),
        "versions": dict(first.versions),
    }
    report.write(folder, finite_or_null(figures))
    return f"{scores_table(agents, FACTS)}\n\n{comparison_text(comparison)}"


INTERRUPTED = "interrupted; the data collected so far is kept"


def main() -> None:
    parser = ProgramParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1600, help="updates of each student (1600)")
    parser.add_argument("--batch-size", type=int, default=128, help="slices in a batch (128)")
    parser.add_argument("--episodes", type=int, default=2, help="evaluation episodes of each task (2)")
    parser.add_argument("--d-coef", type=float, default=0.4, help="weight of the distillation loss (0.4)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "quickstart")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "quickstart")
    a = parser.parse_args()
    plan = Plan(a.steps, a.batch_size, a.episodes, a.d_coef, a.seed)
    final = EvaluationSettings(episodes=plan.episodes, seed=plan.seed)
    if plan.steps < 1 or plan.batch_size < 1:
        raise UserError("--steps and --batch-size must be at least 1.")
    started = time.perf_counter()
    device = resolve_device(a.device)
    torch.set_float32_matmul_precision("highest")

    teacher = load_agent(TEACHER, device=device, planner=PLANNER)
    tasks = teacher.task_set
    print(f"teacher: {TEACHER.name}, {read_checkpoint(TEACHER).describe()}; device {device}")
    data = prepare_data(a.data, teacher, plan.seed).path

    teacher_prior = evaluate(teacher, prior_evaluation(plan), label="teacher prior").score().value

    runs = a.out / "runs"
    shutil.rmtree(runs, ignore_errors=True)  # of an earlier quickstart
    frozen = load_teacher(TEACHER, tasks, device=device)
    scratch, scratch_curve, _ = train_student("scratch", runs, data, tasks, plan, device, None)
    distilled, distilled_curve, rate = train_student("distilled", runs, data, tasks, plan, device, frozen)
    half = a.out / "student-fp16.safetensors"
    size = cast_to_half(distilled, half)
    print(f"\n{rate:.1f} distillation updates a second; FP16 student: {size / 2**20:.2f} MiB\n")

    half_precision = "float16" if device.type == "cuda" else "float32"
    agents: dict[str, tuple[Path, str]] = {
        "teacher": (TEACHER, "float32"),
        "scratch": (scratch, "float32"),
        "distilled": (distilled, "float32"),
        "distilled FP16": (half, half_precision),
    }
    results, facts = {}, {}
    for label, (checkpoint, precision) in agents.items():
        agent = load_agent(checkpoint, device=device, planner=PLANNER, precision=precision)
        configuration = {"planner": asdict(PLANNER)}
        results[label] = evaluate_to_files(agent, final, label=label, configuration=configuration, folder=a.out)
        facts[label] = facts_of(checkpoint)
    minutes = (time.perf_counter() - started) / 60
    curves = {"scratch": scratch_curve, "distilled": distilled_curve}
    print()
    print(write_report(a.out, plan, device, results, facts, curves, teacher_prior, minutes))
    print(f"\n{minutes:.1f} minutes; report, plots and JSON in {a.out}/")
