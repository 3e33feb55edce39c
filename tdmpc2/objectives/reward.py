"""Reward distillation, the papers' objective (TD-MPC-Opt, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from tdmpc2.data.batch import Batch
from tdmpc2.model import WorldModel
from tdmpc2.objectives.base import Rollout


@dataclass(frozen=True)
class RewardDistillation:
    """MSE between the teacher's and the student's decoded rewards for the first step of each slice.

    Each encodes obs_0 with its own encoder; the student's receives the gradient.

    Attributes:
        coef: `d_coef`; the best published ones are 0.4 (200K steps) and 0.45 (1M steps).
    """

    coef: float
    name: str = "distillation"

    def has_target(self, batch: Batch) -> bool:
        return batch.teacher_reward is not None

    def loss(self, model: WorldModel, batch: Batch, rollout: Rollout) -> Tensor:
        assert batch.teacher_reward is not None
        return F.mse_loss(model.decode(rollout.reward_logits[0]), batch.teacher_reward)
