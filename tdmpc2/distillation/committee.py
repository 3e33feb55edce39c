"""Several teachers in the place of one: each is asked about the tasks that it knows (specialists into one student)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.distillation.teacher import REWARD_PARTS, Teacher, teacher_model
from tdmpc2.errors import UserError
from tdmpc2.model import ModelDims, Part
from tdmpc2.tasks import TaskSet


class Committee:
    """Frozen teachers of any sizes, that may know single tasks or several.

    Args:
        members: each with the tasks of the student that it is asked about.
        student_tasks: every one of them belongs to one member.
    """

    def __init__(self, members: Sequence[Teacher], student_tasks: TaskSet) -> None:
        self.members = tuple(members)
        self.precision = members[0].precision
        sums = "".join(f"{member.checksum} {' '.join(member.asked)}\n" for member in members)
        self.checksum = hashlib.sha256(sums.encode()).hexdigest()[:16]
        """Short hex over the members' and their tasks."""
        owners = [next(m for m, member in enumerate(members) if task in member.asked) for task in student_tasks.tasks]
        self._owners = torch.tensor(owners, device=members[0].device)

    @property
    def all_dims(self) -> tuple[ModelDims, ...]:
        return tuple(member.dims for member in self.members)

    @property
    def num_parameters(self) -> int:
        return sum(member.num_parameters for member in self.members)

    def check_frozen(self) -> None:
        """Raises a UserError if one of them could learn or drop units."""
        for member in self.members:
            member.check_frozen()

    def shares(self, batch: Batch) -> list[tuple[Teacher, Tensor]]:
        """The members that a batch asks, each with the positions int64 [b] of its slices."""
        owner = self._owners[batch.task]
        shares = [(member, (owner == number).nonzero().squeeze(1)) for number, member in enumerate(self.members)]
        return [(member, positions) for member, positions in shares if len(positions)]


def load_committee(
    paths: Sequence[str | Path],
    student_tasks: TaskSet,
    *,
    task: str | TaskSet | None = None,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    parts: Collection[Part] = REWARD_PARTS,
) -> Committee:
    """Loads a checkpoint of each member; a task that several know is the first one's.

    Args:
        paths: their checkpoints.
        student_tasks: the student's task set.
        task: the task set of files that do not name their own.
        device, precision, parts: of all, see `load_teacher`.

    Raises:
        CheckpointError: for a file that is damaged or of another task set.
        UserError: for a task that none knows, or a file whose tasks others before it know.
    """
    left = list(student_tasks.tasks)
    members = []
    for path in paths:
        model, tasks = teacher_model(path, task=task, device=device, parts=parts)
        asked = tuple(name for name in left if name in tasks.tasks)
        if not asked:
            raise UserError(
                f"{path}: knows {', '.join(tasks.tasks)}, of which the student has none that an earlier teacher does "
                "not know; leave it out."
            )
        left = [name for name in left if name not in asked]
        members.append(Teacher(model, tasks, student_tasks, precision, asked))
    if left:
        raise UserError(f"none of the teachers knows {', '.join(left)}; a student can only learn tasks that one knows.")
    return Committee(members, student_tasks)
