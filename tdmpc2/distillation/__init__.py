"""Distillation: the frozen teacher, what it predicts for a student's batch, or once for a whole store."""

from tdmpc2.distillation.labelling import label_facts, label_store
from tdmpc2.distillation.teacher import PRECISIONS, TEACHER_PARTS, RewardTeacher, load_teacher, random_teacher

__all__ = [
    "PRECISIONS",
    "TEACHER_PARTS",
    "RewardTeacher",
    "label_facts",
    "label_store",
    "load_teacher",
    "random_teacher",
]
