"""The teacher's policy prior (beyond the papers), through the policy's own optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.keys import THIS_PROJECT
from tdmpc2.model import Part, WorldModel
from tdmpc2.objectives.base import Knowledge, Objective, PolicyRollout, coefficient, own_action_error


@dataclass(frozen=True, eq=False)
class PolicyDistillation(Objective):
    """MSE between the two priors' squashed means along a slice, weighted rho^t, over the actions that a task has.

    The student's prior acts on its rolled-out latents, as in its own loss, the teacher's on the encoded observations.
    The standard deviation stays the student's own.
    """

    coef: float = coefficient(
        "d_policy", "weight of the distillation of the policy prior's mean, in the policy's loss", source=THIS_PROJECT
    )
    name: ClassVar[str] = "d_policy"
    parts: ClassVar[tuple[Part, ...]] = ("encoder", "policy_head")
    of_policy: ClassVar[bool] = True

    def observations(self, horizon: int) -> int:
        return horizon + 1

    def ask(self, teacher: Knowledge) -> dict[str, Tensor]:
        mean, _, _ = teacher.model.policy(teacher.latents(teacher.batch.obs.shape[0]), teacher.task)
        return {"mean": teacher.as_student_s(mean.float())}

    def policy_loss(self, model: WorldModel, batch: Batch, rollout: PolicyRollout) -> Tensor:
        error = own_action_error(model, batch, rollout.mean, self.target(batch, "mean"))
        return (rollout.decay * error.mean(1)).mean()
