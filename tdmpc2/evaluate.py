"""Evaluates a checkpoint: `python tdmpc2/evaluate.py checkpoint=student.pt task=mt30 eval_episodes=10`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Run as a script: the clone's root stands in for this folder, whose rooms are not top-level modules.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig

from tdmpc2.agent import load_agent, resolve_device
from tdmpc2.evaluation.results import check_replaceable, load_json, results_table
from tdmpc2.evaluation.runner import evaluate
from tdmpc2.evaluation.scores import task_statistics
from tdmpc2.reporting.progress import Progress
from tdmpc2.settings.convert import chosen_task_set, evaluation_settings, plain, planner_settings, required, result_name
from tdmpc2.settings.entry import hydra_entry, set_matmul_precision


@hydra_entry("evaluate")
def main(config: DictConfig) -> None:
    set_matmul_precision(config.matmul_precision)
    checkpoint = Path(required(config, "checkpoint"))
    device = resolve_device(config.device)
    agent = load_agent(
        checkpoint,
        chosen_task_set(config),
        device,
        planner_settings(config),
        precision=config.precision,
        compile=config.compile,
        cudagraphs=config.cudagraphs,
    )
    label = config.label or result_name(checkpoint)
    output = Path(config.output or f"results/{label}")
    settings = evaluation_settings(config, output / "videos" if config.save_video else None)
    target = output / "evaluation.json"
    check_replaceable(target, plain(config))
    reference = None if config.reference is None else load_json(config.reference)
    print(
        f"{checkpoint}: {len(settings.tasks_of(agent.task_set))} tasks x {settings.episodes} episodes on {device}, "
        f"{'planning' if settings.mpc else 'policy prior'}, {'greedy' if settings.greedy else 'exploring'}"
    )
    with Progress(settings.decisions_of(agent.task_set), "evaluating", "decisions") as progress:
        result = evaluate(agent, settings, label=label, configuration=plain(config), on_decisions=progress.update)
    if reference is None:
        print(results_table(result))
    else:
        means = {task: stats.mean for task, stats in task_statistics(reference.returns()).items()}
        print(results_table(result, means, reference.score().value, reference.label))
    result.save_json(target)
    result.save_csv(output / "episodes.csv")
    print(f"{result.decisions / result.wall_seconds:.1f} decisions a second; results in {output}/")


if __name__ == "__main__":
    main()
