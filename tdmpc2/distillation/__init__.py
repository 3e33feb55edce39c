"""Distillation: the frozen teacher and what it predicts for a student's batch."""

from tdmpc2.distillation.teacher import TEACHER_PARTS, RewardTeacher, load_teacher, random_teacher

__all__ = ["TEACHER_PARTS", "RewardTeacher", "load_teacher", "random_teacher"]
