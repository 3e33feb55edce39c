"""What the tests of extraction share: states to imagine from, a batch, and a learner of a tiny model."""

from __future__ import annotations

from dataclasses import replace

import torch
from run_fixtures import DUO, tiny_model

from tdmpc2.data.batch import Batch
from tdmpc2.extraction import ExtractionSettings
from tdmpc2.training import OptimiserSettings
from tdmpc2.training.policy_learner import PolicyLearner

STATES, HORIZON = 6, 3
GAMMA = torch.tensor([0.9, 0.99])


def asked(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, tasks, discounts and noise for the tiny model."""
    generator = torch.Generator().manual_seed(seed)
    model, task = tiny_model(), torch.arange(STATES) % 2
    obs = torch.randn(STATES, DUO.obs_dim, generator=generator)
    noise = torch.randn(HORIZON + 1, STATES, DUO.action_dim, generator=generator)
    return model.encode(obs, task).detach(), task, GAMMA[task].unsqueeze(-1), noise


def learner(settings: ExtractionSettings | None = None, /, **changes: float | str) -> PolicyLearner:
    settings = settings or ExtractionSettings(imagine_horizon=2)
    optimiser = replace(OptimiserSettings(), **changes)  # type: ignore[arg-type]
    return PolicyLearner(tiny_model(), GAMMA, settings, optimiser, 1e-4, 50, 3)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    return Batch(
        obs=torch.randn(4, 8, DUO.obs_dim, generator=generator),
        action=torch.zeros(3, 8, DUO.action_dim),
        reward=torch.zeros(3, 8, 1),
        task=torch.arange(8) % 2,
    )
