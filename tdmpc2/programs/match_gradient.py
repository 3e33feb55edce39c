"""Prints the reward_coef whose gradient is as large as that of reward_coef and the control's d_coef together.

python scripts/match_gradient.py experiment=controls/dataset_0.40 scale=cpu checkpoint=logs/…/step_00000640.safetensors

The control `teacher=dataset` adds the MSE of decoded rewards to their cross entropy: more weight on the same labels. A
run without it, with the printed reward_coef, tells weight from form. The sizes are norms over all parameters, averaged
over batches of the run's data, at the weights of `checkpoint` (new ones without it): they change while training, so ask
at several checkpoints of a run.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor

from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.store import EpisodeStore
from tdmpc2.distillation import DatasetRewards, Lessons
from tdmpc2.embedded import embedded_store
from tdmpc2.losses import LossTerms, UpdateNoise, world_model_losses
from tdmpc2.model import WorldModel
from tdmpc2.objectives import RewardDistillation
from tdmpc2.settings.convert import train_settings
from tdmpc2.settings.entry import hydra_entry
from tdmpc2.training import TrainSettings
from tdmpc2.training.student import new_student

BATCHES = 50


@hydra_entry("train")
def main(config: DictConfig) -> float:
    folder = Path(HydraConfig.get().runtime.output_dir)
    with contextlib.suppress(OSError):  # Hydra made it for a run that is none
        folder.rmdir()
    settings = train_settings(config, folder)
    if config.make_data:
        store = embedded_store(settings.data_dir, settings.task_set)
    else:
        store = EpisodeStore.open(settings.data_dir)
    matched, cross_entropy, added = matched_reward_coef(settings, store, config.d_coef)
    w, start = settings.weights, settings.checkpoint or "new weights"
    print(
        f"{start}: gradient norm of {w.reward_coef:g} x cross entropy {cross_entropy:.4g}, with {config.d_coef:g} x "
        f"MSE on the dataset's rewards {added:.4g}\nreward_coef={matched:.4g}"
    )
    return matched


def matched_reward_coef(settings: TrainSettings, store: EpisodeStore, d_coef: float) -> tuple[float, float, float]:
    """The coefficient, and the mean gradient norms of the weighted cross entropy, alone and with the control's term."""
    model, w = new_student(settings), settings.weights
    sampler = SliceSampler(store, settings.task_set, settings.batch_size, settings.horizon, settings.seed)
    whole = slice(0, settings.batch_size)
    lessons = Lessons(DatasetRewards(), (RewardDistillation(d_coef),), settings.seed, settings.batch_size, whole)
    terms = LossTerms(w, (RewardDistillation(d_coef),))
    discounts = torch.from_numpy(settings.task_set.discounts()).to(settings.device)
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    alone = together = 0.0
    for step in range(BATCHES):
        batch = lessons.of(sampler.batch(step).to(settings.device), step)
        noise = UpdateNoise.draw(model.dims, settings.horizon, settings.batch_size, generator)
        losses = world_model_losses(model, batch, discounts, terms, noise)
        reward = w.reward_coef * losses.reward
        alone += gradient_norm(model, reward) / BATCHES
        together += gradient_norm(model, reward + d_coef * losses.distillation["distillation"]) / BATCHES
    return w.reward_coef * together / alone, alone, together


def gradient_norm(model: WorldModel, loss: Tensor) -> float:
    """Over all parameters that the loss reaches."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return float(torch.stack([g.norm() for g in gradients if g is not None]).norm())
