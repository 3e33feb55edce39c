"""Distillation: the frozen teacher, what it says of a student's batch, or once for a whole store."""

from tdmpc2.distillation.committee import Committee, load_committee
from tdmpc2.distillation.labelling import label_facts, label_store
from tdmpc2.distillation.lessons import AnyTeacher, DatasetRewards, LabelledRewards, Lessons, Source
from tdmpc2.distillation.teacher import PRECISIONS, REWARD_PARTS, Draws, Teacher, load_teacher, random_teacher

__all__ = [
    "PRECISIONS",
    "REWARD_PARTS",
    "AnyTeacher",
    "Committee",
    "DatasetRewards",
    "Draws",
    "LabelledRewards",
    "Lessons",
    "Source",
    "Teacher",
    "label_facts",
    "label_store",
    "load_committee",
    "load_teacher",
    "random_teacher",
]
