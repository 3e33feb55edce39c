"""Reward distillation on the bins (beyond the papers, which compare decoded rewards)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from tdmpc2.data.batch import Batch
from tdmpc2.keys import THIS_PROJECT
from tdmpc2.model import ModelDims, Part, WorldModel
from tdmpc2.objectives.base import Knowledge, Objective, Rollout, check_same_bins, coefficient


@dataclass(frozen=True, eq=False)
class RewardLogitsDistillation(Objective):
    """KL divergence of the student's distribution over the bins from the teacher's, for the first step of each slice.

    An MSE of decoded rewards weighs an error by the slope of symexp, so that large rewards count most.
    """

    coef: float = coefficient(
        "d_reward_logits", "weight of the distillation of the reward's distribution over its bins", source=THIS_PROJECT
    )
    name: ClassVar[str] = "d_reward_logits"
    parts: ClassVar[tuple[Part, ...]] = ("encoder", "reward_head")

    def bound(self, student: ModelDims, teacher: ModelDims | None, seed: int) -> RewardLogitsDistillation:
        check_same_bins(self.name, student, teacher)
        return self

    def ask(self, teacher: Knowledge) -> dict[str, Tensor]:
        return {"log_probs": F.log_softmax(teacher.reward_logits(1)[0], dim=-1)}

    def loss(self, model: WorldModel, batch: Batch, rollout: Rollout) -> Tensor:
        log_probs = F.log_softmax(rollout.reward_logits[0].float(), dim=-1)
        return F.kl_div(log_probs, self.target(batch, "log_probs"), log_target=True, reduction="batchmean")
