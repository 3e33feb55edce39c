"""Distillation objectives: what a student is to learn from a teacher beside its data, one file each.

A new one is a subclass of `Objective` in a file of its own, listed in `OBJECTIVES`: its coefficient is then a key of
`train.py`, and a run has it where that is above 0.
"""

from tdmpc2.objectives.base import Knowledge, Objective, PolicyRollout, Rollout, coefficient, own_action_error, task_of
from tdmpc2.objectives.latent_linear import LatentLinearDistillation
from tdmpc2.objectives.latent_pca import LatentPcaDistillation, PrincipalComponents
from tdmpc2.objectives.latent_relational import LatentRelationalDistillation
from tdmpc2.objectives.policy import PolicyDistillation
from tdmpc2.objectives.reward import RewardDistillation
from tdmpc2.objectives.reward_all import RewardAllDistillation
from tdmpc2.objectives.reward_logits import RewardLogitsDistillation
from tdmpc2.objectives.reward_off_data import RewardOffDataDistillation
from tdmpc2.objectives.value import ValueDistillation

OBJECTIVES: tuple[type[Objective], ...] = (
    RewardDistillation,
    RewardAllDistillation,
    RewardLogitsDistillation,
    RewardOffDataDistillation,
    LatentLinearDistillation,
    LatentPcaDistillation,
    LatentRelationalDistillation,
    ValueDistillation,
    PolicyDistillation,
)
"""All that a configuration can choose, the papers' first."""

__all__ = [
    "OBJECTIVES",
    "Knowledge",
    "LatentLinearDistillation",
    "LatentPcaDistillation",
    "LatentRelationalDistillation",
    "Objective",
    "PolicyDistillation",
    "PolicyRollout",
    "PrincipalComponents",
    "RewardAllDistillation",
    "RewardDistillation",
    "RewardLogitsDistillation",
    "RewardOffDataDistillation",
    "Rollout",
    "ValueDistillation",
    "coefficient",
    "own_action_error",
    "task_of",
]
