"""Distillation objectives: what a student is to learn from a teacher beside its data, one file each.

An objective is any class with the attributes and methods of `Objective`; the learner takes a tuple of them.
"""

from tdmpc2.objectives.base import Objective, Rollout
from tdmpc2.objectives.reward import RewardDistillation

__all__ = ["Objective", "RewardDistillation", "Rollout"]
