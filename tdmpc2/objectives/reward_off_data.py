"""Reward distillation at actions that the data does not hold.

At the data's own actions the teacher's reward is the label plus the teacher's error. Elsewhere it is what the data
cannot say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tdmpc2.data.batch import Batch
from tdmpc2.keys import THIS_PROJECT, key
from tdmpc2.model import Part, WorldModel
from tdmpc2.objectives.base import Knowledge, Objective, Rollout, coefficient, task_of
from tdmpc2.ranges import MOST_SCALE, Within


@dataclass(frozen=True, eq=False)
class RewardOffDataDistillation(Objective):
    """MSE of decoded rewards at obs_0 for two actions of each slice: a uniform one, and the data's with noise."""

    coef: float = coefficient(
        "d_reward_off_data",
        "weight of the distillation of rewards at actions that the data does not hold",
        source=THIS_PROJECT,
    )
    noise: float = key(
        0.3,
        "std of the noise on the data's actions in d_reward_off_data",
        name="off_data_noise",
        unit="action units",
        source=THIS_PROJECT,
        check=Within(0, MOST_SCALE),
    )
    name: ClassVar[str] = "d_reward_off_data"
    parts: ClassVar[tuple[Part, ...]] = ("encoder", "reward_head")

    def ask(self, teacher: Knowledge) -> dict[str, Tensor]:
        actions = torch.stack([teacher.random_actions(), teacher.perturbed(teacher.batch.action[0], self.noise)])
        z = teacher.latents(1)
        logits = teacher.model.reward(z, teacher.as_teacher_s(actions), teacher.task)
        return {"action": actions, "reward": teacher.model.decode(logits)}

    def loss(self, model: WorldModel, batch: Batch, rollout: Rollout) -> Tensor:
        logits = model.reward(rollout.latents[:1], self.target(batch, "action"), task_of(model, batch))
        return F.mse_loss(model.decode(logits), self.target(batch, "reward"))
