"""The teacher's values (beyond the papers): what a state and an action are worth, which no reward in the data says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.keys import THIS_PROJECT
from tdmpc2.model import Part, WorldModel, two_hot_cross_entropy
from tdmpc2.objectives.base import Knowledge, Objective, Rollout, coefficient, task_of


@dataclass(frozen=True, eq=False)
class ValueDistillation(Objective):
    """Cross entropy of every head of the student's Q at obs_0 against the mean of the teacher's heads.

    It is taken for three actions of each slice: the data's, the mean of the teacher's prior, and a uniform one.
    """

    coef: float = coefficient(
        "d_value", "weight of the distillation of values at data, teacher's and random actions", source=THIS_PROJECT
    )
    name: ClassVar[str] = "d_value"
    parts: ClassVar[tuple[Part, ...]] = ("encoder", "policy_head", "q_heads")

    def ask(self, teacher: Knowledge) -> dict[str, Tensor]:
        z, model = teacher.latents(1), teacher.model
        own, _, _ = model.policy(z[0], teacher.task)
        others = torch.stack([teacher.as_student_s(own.float()), teacher.random_actions()])
        actions = torch.cat([teacher.batch.action[:1], others])
        logits = model.q_values(z, teacher.as_teacher_s(actions), teacher.task)
        return {"action": others, "value": model.decode(logits).mean(0)}

    def loss(self, model: WorldModel, batch: Batch, rollout: Rollout) -> Tensor:
        others = model.q_values(rollout.latents[:1], self.target(batch, "action"), task_of(model, batch))
        logits = torch.cat([rollout.q_logits[:, :1].to(others.dtype), others], dim=1)  # [E, 3, B, bins]
        values = self.target(batch, "value").expand(logits.shape[0], -1, -1, -1)
        return two_hot_cross_entropy(logits, values, model.dims.vmin, model.dims.vmax).mean()
