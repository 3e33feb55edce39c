"""Evaluates a checkpoint in the simulator.

python tdmpc2/evaluate.py checkpoint=student.pt task=mt30 eval_episodes=10
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from tdmpc2.agent import load_agent, resolve_device
from tdmpc2.evaluation.films import save_film_page
from tdmpc2.evaluation.results import check_replaceable, load_json, results_table
from tdmpc2.evaluation.runner import evaluate
from tdmpc2.evaluation.scores import task_statistics
from tdmpc2.fileio import check_writable, safe_name, write_or_rescue
from tdmpc2.reporting.progress import Progress
from tdmpc2.settings.convert import (
    chosen_task_set,
    evaluation_settings,
    path_of,
    plain,
    planning_of,
    required,
    result_name,
)
from tdmpc2.settings.entry import hydra_entry, set_matmul_precision


@hydra_entry("evaluate")
def main(config: DictConfig) -> None:
    set_matmul_precision(config.matmul_precision)
    checkpoint = required(config, "checkpoint")
    device = resolve_device(config.device)
    agent = load_agent(checkpoint, chosen_task_set(config), device, **planning_of(config))
    label = config.label or result_name(checkpoint)
    output = path_of(config, "output") or Path("results") / safe_name(label)
    settings = evaluation_settings(config, output / "videos" if config.save_video else None)
    target, table = output / "evaluation.json", output / "episodes.csv"
    configuration = {**plain(config), "weights": agent.checksum()}
    for file in (target, table):
        check_writable(file)
    check_replaceable(target, configuration)
    if settings.mpc:
        agent.check_plans()
    reference_path = path_of(config, "reference")
    reference = None if reference_path is None else load_json(reference_path)
    print(
        f"{checkpoint}: {len(settings.tasks_of(agent.task_set))} tasks x {settings.episodes} episodes on {device}, "
        f"{'planning' if settings.mpc else 'policy prior'}, {'greedy' if settings.greedy else 'exploring'}"
    )
    with Progress(settings.decisions_of(agent.task_set), "evaluating", "decisions") as progress:
        result = evaluate(agent, settings, label=label, configuration=configuration, on_decisions=progress.update)
    if reference is None:
        print(results_table(result))
    else:
        means = {task: stats.mean for task, stats in task_statistics(reference.returns()).items()}
        print(results_table(result, means, reference.score().value, reference.label))
    write_or_rescue(target, result.save_json)
    write_or_rescue(table, result.save_csv)
    if settings.video_dir is not None:
        print(f"films: {save_film_page(result, settings.video_dir)}")
    print(f"{result.decisions / result.wall_seconds:.1f} decisions a second; results in {output}/")
