"""Trains or distils a student.

python tdmpc2/train.py task=mt30 model_size=1 teacher=317M teacher.checkpoint=mt30-317M.pt d_coef=0.4
torchrun --nproc_per_node=2 tdmpc2/train.py … splits every batch over two GPUs (or, without any, two CPU processes)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from tdmpc2.settings.convert import teacher_of, train_settings
from tdmpc2.settings.entry import hydra_entry, set_matmul_precision
from tdmpc2.training import finished_run, joined, train


@hydra_entry("train")
def main(config: DictConfig) -> None:
    set_matmul_precision(config.matmul_precision)
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    settings = train_settings(config, Path(HydraConfig.get().runtime.output_dir), sweep=sweep)
    settings = replace(settings, log_name="train.log")
    with joined(settings.device) as ranks:
        finished = finished_run(settings)
        if finished is not None:
            if ranks.first:
                print(f"{settings.run_dir} has ended already, after {settings.steps:,} updates: {finished}")
            return
        teacher = teacher_of(config, settings.task_set, settings.device)
        if ranks.first:
            learns_from = "from scratch"
            if teacher is not None:
                loaded = f"{teacher.num_parameters / 1e6:.1f}M parameters loaded"
                learns_from = f"teacher {settings.teacher_name} ({loaded}), d_coef {settings.weights.d_coef}"
            elif settings.labels is not None:
                learns_from = f"labels in {settings.labels}, d_coef {settings.weights.d_coef}"
            where = f"{settings.device}" if ranks.size == 1 else f"{ranks.size} processes ({settings.device.type})"
            print(f"{settings.task_set.name}: {settings.dims.latent_dim}-wide latent, {learns_from}, on {where}")
        result = train(settings, teacher, ranks)
    if result.interrupted:
        raise SystemExit(130)
    if ranks.first:
        print(f"{result.step:,} updates, {result.updates_per_second:.1f} a second; {result.checkpoint}")
