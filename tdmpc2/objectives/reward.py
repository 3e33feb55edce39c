"""Reward distillation, the papers' objective (TD-MPC-Opt, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from tdmpc2.data.batch import Batch
from tdmpc2.keys import TDMPC_OPT
from tdmpc2.model import Part, WorldModel
from tdmpc2.objectives.base import Knowledge, Objective, Rollout, coefficient


@dataclass(frozen=True, eq=False)
class RewardDistillation(Objective):
    """MSE between the teacher's and the student's decoded rewards for the first step of each slice.

    Each encodes obs_0 with its own encoder; the student's receives the gradient.
    """

    coef: float = coefficient(
        "d_coef",
        "weight of the distillation of rewards, 0 where there is no teacher; 0.4 was the papers' best at 200K updates",
        source=f"{TDMPC_OPT}, table 1",
    )
    name: ClassVar[str] = "distillation"
    parts: ClassVar[tuple[Part, ...]] = ("encoder", "reward_head")
    rewards_suffice: ClassVar[bool] = True

    def ask(self, teacher: Knowledge) -> dict[str, Tensor]:
        return {"reward": teacher.rewards(1)[0]}

    def loss(self, model: WorldModel, batch: Batch, rollout: Rollout) -> Tensor:
        return F.mse_loss(model.decode(rollout.reward_logits[0]), self.target(batch, "reward"))
