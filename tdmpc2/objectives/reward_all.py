"""Reward distillation at every step of a slice (beyond the papers, which take the first)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.keys import THIS_PROJECT
from tdmpc2.model import Part, WorldModel
from tdmpc2.objectives.base import Knowledge, Objective, Rollout, coefficient


@dataclass(frozen=True, eq=False)
class RewardAllDistillation(Objective):
    """MSE of decoded rewards for all H steps, weighted rho^t: on predicted latents, as it plans."""

    coef: float = coefficient(
        "d_reward_all", "weight of the distillation of the rewards of all H steps", source=THIS_PROJECT
    )
    name: ClassVar[str] = "d_reward_all"
    parts: ClassVar[tuple[Part, ...]] = ("encoder", "reward_head")
    rewards_suffice: ClassVar[bool] = True

    def observations(self, horizon: int) -> int:
        return horizon

    def ask(self, teacher: Knowledge) -> dict[str, Tensor]:
        return {"reward": teacher.rewards(teacher.batch.action.shape[0])}

    def loss(self, model: WorldModel, batch: Batch, rollout: Rollout) -> Tensor:
        error = (model.decode(rollout.reward_logits) - self.target(batch, "reward")).square()
        return (rollout.decay[:-1] * error.mean(dim=(1, 2))).mean()
