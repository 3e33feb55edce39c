"""What a planner's settings cost and what they score: the study behind docs/planning.md and the planner presets.

python benchmarks/planner_study.py CHECKPOINT --task mt30 --out results/study          # everything, hours on a CPU
python benchmarks/planner_study.py … --tasks cup-spin walker-walk --episodes 1 --configurations greedy horizon-1
python benchmarks/planner_study.py … --show                                            # what is there already

Each configuration differs from the papers' planner in what its name says. It is evaluated on the same episodes (starts
and seeds) and written to OUT/<name>.json. One that is there already is not run again: the study can be stopped, and
divided over processes that take different configurations. Costs are measured apart, all configurations in turn, one
environment at a time. Differences are paired with `default`'s episodes, or with those of --baseline.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tdmpc2.agent import Agent, load_agent
from tdmpc2.errors import UserError, run_program
from tdmpc2.evaluation.comparison import compare
from tdmpc2.evaluation.results import EvaluationResult, check_replaceable, joined, load_json
from tdmpc2.evaluation.runner import EvaluationSettings, evaluate
from tdmpc2.evaluation.scores import verdict
from tdmpc2.execution import Execution
from tdmpc2.planner import PlannerSettings
from tdmpc2.reporting.progress import Progress
from tdmpc2.reporting.tables import format_table

PAPERS = PlannerSettings()


@dataclass(frozen=True)
class Configuration:
    planner: PlannerSettings = PAPERS
    greedy: bool = False


def with_samples(count: int, **others: Any) -> PlannerSettings:
    """As many elites and prior trajectories to a sample as in the papers."""
    return replace(PAPERS, num_samples=count, num_elites=count // 8, num_pi_trajs=round(count * 24 / 512), **others)


FAST = with_samples(128, iterations=3)
CONFIGURATIONS = {
    "default": Configuration(),
    "greedy": Configuration(greedy=True),
    "iterations-3": Configuration(replace(PAPERS, iterations=3)),
    "iterations-12": Configuration(replace(PAPERS, iterations=12)),
    "samples-256": Configuration(with_samples(256)),
    "samples-128": Configuration(with_samples(128)),
    "samples-64": Configuration(with_samples(64)),
    "samples-2048": Configuration(with_samples(2048)),
    "prior-0": Configuration(replace(PAPERS, num_pi_trajs=0)),
    "prior-128": Configuration(replace(PAPERS, num_pi_trajs=128)),
    "elites-16": Configuration(replace(PAPERS, num_elites=16)),
    "temperature-2": Configuration(replace(PAPERS, temperature=2.0)),
    "horizon-1": Configuration(replace(PAPERS, horizon=1)),
    "horizon-2": Configuration(replace(PAPERS, horizon=2)),
    "horizon-5": Configuration(replace(PAPERS, horizon=5)),
    "cold-start": Configuration(replace(PAPERS, warm_start=False)),
    # Around planner=fast, where a study is cheap.
    "fast": Configuration(FAST),
    "fast-greedy": Configuration(FAST, greedy=True),
    "fast-prior-0": Configuration(replace(FAST, num_pi_trajs=0)),
    "fast-prior-32": Configuration(replace(FAST, num_pi_trajs=32)),
    "fast-elites-8": Configuration(replace(FAST, num_elites=8)),
    "fast-temperature-2": Configuration(replace(FAST, temperature=2.0)),
    "fast-horizon-1": Configuration(replace(FAST, horizon=1)),
    "fast-horizon-2": Configuration(replace(FAST, horizon=2)),
    "fast-horizon-5": Configuration(replace(FAST, horizon=5)),
    "fast-cold-start": Configuration(replace(FAST, warm_start=False)),
    "fast-std-1": Configuration(replace(FAST, max_std=1.0)),
    # Between planning and the prior alone, for a prior that was extracted.
    "refine": Configuration(
        replace(with_samples(32, iterations=1), num_elites=8, num_pi_trajs=24, max_std=0.5), greedy=True
    ),
}


def run(agent: Agent, name: str, choice: Configuration, a: argparse.Namespace) -> None:
    """Evaluates one configuration into its file, unless it is there."""
    path = a.out / f"{name}.json"
    described = {
        "checkpoint": str(a.checkpoint),
        "precision": a.precision,
        "greedy": choice.greedy,
        **asdict(choice.planner),
    }
    check_replaceable(path, described)
    if path.exists():
        return
    settings = EvaluationSettings(
        episodes=a.episodes,
        tasks=None if a.tasks is None else tuple(a.tasks),
        seed=a.seed,
        greedy=choice.greedy,
        num_workers=a.num_workers,
    )
    with Progress(settings.decisions_of(agent.task_set), name, "decisions") as progress:
        result = evaluate(agent, settings, label=name, configuration=described, on_decisions=progress.update)
    result.save_json(path)


def costs(agents: dict[str, Agent], seconds: float) -> dict[str, float]:
    """Median seconds of one environment's decision, all configurations in turn."""
    times: dict[str, list[float]] = {name: [] for name in agents}
    begun = time.perf_counter()
    while min(map(len, times.values())) < 4 or time.perf_counter() - begun < seconds:
        for name, agent in agents.items():
            tasks = agent.task_set
            obs = torch.zeros(1, tasks.obs_dim, device=agent.device)
            task = torch.zeros(1, dtype=torch.int64, device=agent.device) if tasks.multitask else None
            start = time.perf_counter()
            agent.plan(obs, task, agent.zero_plan(1), None)[0].cpu()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}  # the first lays the model out


def table(found: dict[str, EvaluationResult], baseline: EvaluationResult | None, cost: dict[str, float]) -> str:
    rows = []
    for name, result in found.items():
        score = result.score()
        row = [name, f"{cost[name] * 1e3:.1f}", f"{cost[name] / cost['default']:.2f}", f"{score.value:.2f}"]
        if baseline is None or name == "default":
            row += ["-", "-", "-", "-"]
        else:
            paired = compare(baseline, result).paired
            interval = paired.interval
            row += [
                str(paired.pairs),
                f"{paired.difference:+.2f}",
                "-" if interval is None else f"{interval.low:+.2f} to {interval.high:+.2f}",
                verdict(paired),
            ]
        rows.append(row)
    headers = ["planner", "ms a decision", "cost", "score", "pairs", "difference", "95% interval", "same score?"]
    return format_table(headers, rows, align="l" + "r" * 6 + "l", style="markdown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--task", help="task set; needed for released files, which do not name theirs")
    parser.add_argument("--tasks", nargs="+", help="evaluate only these")
    parser.add_argument("--episodes", type=int, default=4, help="of each task")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--configurations", nargs="+", metavar="NAME", help=f"of {', '.join(CONFIGURATIONS)}")
    parser.add_argument("--baseline", type=Path, nargs="+", help="results files of the papers' planner, to pair with")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cudagraphs", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--num-workers", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--show", action="store_true", help="run nothing: show what OUT holds")
    a = parser.parse_args()
    names = a.configurations or list(CONFIGURATIONS)
    if unknown := [name for name in names if name not in CONFIGURATIONS]:
        raise UserError(f"configuration {unknown[0]} is unknown; choose of {', '.join(CONFIGURATIONS)}.")
    whole = load_agent(a.checkpoint, a.task, a.device, None, a.precision, a.compile, a.cudagraphs)
    execution = Execution(compile=a.compile, cudagraphs=a.cudagraphs, precision=a.precision)

    def agent_of(name: str) -> Agent:
        return Agent(whole.model, whole.task_set, CONFIGURATIONS[name].planner, execution=execution)

    if not a.show:
        for name in names:
            run(agent_of(name), name, CONFIGURATIONS[name], a)
    found = {name: load_json(path) for name in names if (path := a.out / f"{name}.json").exists()}
    baseline = joined([load_json(path) for path in a.baseline], "baseline") if a.baseline else found.get("default")
    cost = costs({name: agent_of(name) for name in {"default", *found}}, 2.0 * len(found))
    print(table(found, baseline, cost))


if __name__ == "__main__":
    run_program(main)
