"""Trains or distils a student.

python tdmpc2/train.py task=mt30 model_size=1 teacher=317M teacher.checkpoint=mt30-317M.pt d_coef=0.4
torchrun --nproc_per_node=2 tdmpc2/train.py … shares every batch out over two GPUs (or, without any, two CPU processes)
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Run as a script: the clone's root stands in for this folder, whose rooms are not top-level modules.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tdmpc2.settings.convert import teacher_of, train_settings
from tdmpc2.settings.entry import hydra_entry, set_matmul_precision
from tdmpc2.training import joined, train


@hydra_entry("train")
def main(config: DictConfig) -> None:
    set_matmul_precision(config.matmul_precision)
    settings = train_settings(config, Path(HydraConfig.get().runtime.output_dir))
    with joined(settings.device) as peers:
        teacher = teacher_of(config, settings.task_set, settings.device)
        if peers.first:
            taught = "from scratch"
            if teacher is not None:
                loaded = f"{teacher.num_parameters / 1e6:.1f}M parameters loaded"
                taught = f"teacher {settings.teacher_name} ({loaded}), d_coef {settings.weights.d_coef}"
            elif settings.labels is not None:
                taught = f"labels in {settings.labels}, d_coef {settings.weights.d_coef}"
            where = f"{settings.device}" if peers.size == 1 else f"{peers.size} processes ({settings.device.type})"
            print(f"{settings.task_set.name}: {settings.dims.latent_dim}-wide latent, {taught}, on {where}")
        result = train(settings, teacher, peers)
    if result.interrupted:
        raise SystemExit(130)
    if peers.first:
        print(f"{result.step:,} updates, {result.updates_per_second:.1f} a second; {result.checkpoint}")


if __name__ == "__main__":
    main()
