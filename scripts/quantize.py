"""Casts a trained student, stores it, and evaluates it before and after.

python scripts/quantize.py checkpoint=logs/mt30/default/seed1/checkpoints/final.safetensors scheme=fp16
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from tdmpc2.agent import load_agent, resolve_device
from tdmpc2.checkpointing import checkpoint_metadata, load_model, save_checkpoint
from tdmpc2.errors import UserError
from tdmpc2.evaluation.comparison import compare, comparison_text
from tdmpc2.evaluation.results import score_text
from tdmpc2.evaluation.runner import evaluate_to_files
from tdmpc2.quantisation import quantise, without_target
from tdmpc2.reporting.tables import format_table
from tdmpc2.settings.convert import chosen_task_set, evaluation_settings, plain, planner_settings, required, result_name
from tdmpc2.settings.entry import hydra_entry, set_matmul_precision


def after_precision(wanted: str, device: torch.device) -> str:
    """The arithmetic of the cast student: half on CUDA; a CPU computes in float32 on the half weights."""
    if wanted != "auto":
        return wanted
    return "float16" if device.type == "cuda" else "float32"


@hydra_entry("quantize")
def main(config: DictConfig) -> None:
    set_matmul_precision(config.matmul_precision)
    source = Path(required(config, "checkpoint"))
    device = resolve_device(config.device)
    model, tasks, checkpoint = load_model(source, chosen_task_set(config))
    if "int8" in checkpoint.stored_as:
        raise UserError(f"{source}: stored as {checkpoint.stored_as}; quantise the float student it was made from.")
    if checkpoint.stored_as == "float16" and config.scheme == "fp16":
        print(f"{source} is stored as float16 already: before and after hold the same weights.")

    quantised = quantise(model.state_dict(), config.scheme)
    output = Path(config.output or f"results/{result_name(source)}-{config.scheme}")
    metadata = replace(checkpoint_metadata(checkpoint, tasks), scheme=config.scheme, normalised_score=None)
    full = output / f"{source.stem}-{config.scheme}.safetensors"
    deployed = output / f"{source.stem}-{config.scheme}-deploy.safetensors"
    deploy_tensors = without_target(quantised.tensors)
    sizes = [("source", source, source.stat().st_size)]
    if len(deploy_tensors) < len(quantised.tensors):
        sizes.append(("with target Q", full, save_checkpoint(full, quantised.tensors, metadata)))
    sizes.append(("without target Q", deployed, save_checkpoint(deployed, deploy_tensors, metadata)))
    rows = [[what, str(path), f"{size:,}", f"{size / 2**20:.2f}"] for what, path, size in sizes]
    print(format_table(["file", "path", "bytes", "MiB"], rows, align="llrr"))
    print(f"largest error of a weight: {quantised.largest_error:.2e} of its tensor's largest")
    if not config.evaluate:
        return

    settings = evaluation_settings(config, output / "videos" if config.save_video else None)
    planner = planner_settings(config)
    precision = after_precision(config.precision, device)
    print(
        f"before: float32 arithmetic; after: {precision} arithmetic on {config.scheme} weights"
        + (" (a CPU has no fast half arithmetic)" if device.type == "cpu" else "")
    )
    # Both are made before the first is evaluated: what is wrong with either shows at once.
    agents = {
        "before": (load_agent(source, tasks, device, planner), "float32"),
        "after": (load_agent(deployed, tasks, device, planner, precision=precision), precision),
    }
    before, after = (
        evaluate_to_files(
            agent, settings, label=label, configuration={**plain(config), "precision": arithmetic}, folder=output
        )
        for label, (agent, arithmetic) in agents.items()
    )
    print(comparison_text(compare(before, after)))
    for result in (before, after):
        print(f"{result.label:<7}{score_text(result.score())}")
    score = after.score().value
    if settings.tasks is None and math.isfinite(score):
        scored = replace(metadata, normalised_score=score)
        save_checkpoint(deployed, deploy_tensors, scored)
        if len(sizes) == 3:
            save_checkpoint(full, quantised.tensors, scored)
    print(f"results in {output}/")


if __name__ == "__main__":
    main()
