"""The frozen teacher of reward distillation (TD-MPC-Opt, section 3)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tdmpc2.checkpointing import build_model, check_size, checkpoint_task_set, read_checkpoint
from tdmpc2.data.batch import Batch
from tdmpc2.errors import CheckpointError, UserError
from tdmpc2.memory import check_memory
from tdmpc2.model import ModelDims, Part, WorldModel, model_bytes, model_checksum
from tdmpc2.tasks import TaskSet

TEACHER_PARTS: tuple[Part, ...] = ("encoder", "reward_head")
"""All that reward distillation needs: with the task embedding, 79.8M of the 317M teacher's parameters."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class RewardTeacher:
    """Predicts rewards with a frozen model's own task embedding, encoder and reward head.

    Args:
        model: the teacher's model; only `TEACHER_PARTS` are used.
        task_set: the teacher's tasks.
        student_tasks: the student's tasks; each must be one of the teacher's, matched by name.
        precision: float32, or bfloat16 weights and products, in half the memory. The model is cast in place.

    Raises:
        UserError: when the teacher does not know a task of the student, or the precision is unknown.
    """

    def __init__(
        self, model: WorldModel, task_set: TaskSet, student_tasks: TaskSet, precision: str = "float32"
    ) -> None:
        if precision not in PRECISIONS:
            raise UserError(f"teacher.precision={precision} is unknown; choose one of {', '.join(PRECISIONS)}.")
        unknown = [t for t in student_tasks.tasks if t not in task_set.tasks]
        if unknown:
            raise UserError(
                f"the teacher knows task set '{task_set.name}' and not {', '.join(unknown)}; "
                "a student can only learn tasks that its teacher knows."
            )
        self.student_tasks = student_tasks
        self.precision = precision
        self.checksum = model_checksum(model, task_set.tasks)
        """Short hex: teachers with the same one predict the same, but for their precision."""
        self.model = model.to(PRECISIONS[precision]).eval().requires_grad_(False)
        self.dims = model.dims
        self.device = next(model.parameters()).device
        self._ids = torch.tensor([task_set.index(t) for t in student_tasks.tasks], device=self.device)

    def check_frozen(self) -> None:
        """Raises a UserError if the teacher could learn or drop units: it must stay as it was loaded."""
        if self.model.training or any(p.requires_grad for p in self.model.parameters()):
            raise UserError("the teacher is not frozen: it must be in eval mode and need no gradient.")

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @torch.no_grad()
    def rewards(self, obs: Tensor, action: Tensor, task: Tensor) -> Tensor:
        """Predicted rewards [B, 1] for observations [B, O] and actions [B, A] of the student's task ids [B].

        Widths are adjusted to the teacher's by adding or cutting zero padding: a task has its own width in both.
        """
        ids = self._ids[task] if self.dims.num_tasks else None
        dtype = PRECISIONS[self.precision]
        z = self.model.encode(_fit(obs, self.dims.obs_dim).to(dtype), ids)
        return self.model.decode(self.model.reward(z, _fit(action, self.dims.action_dim), ids))

    def with_teacher_rewards(self, batch: Batch) -> Batch:
        """The batch with the teacher's rewards for the first step of each slice."""
        return replace(batch, teacher_reward=self.rewards(batch.obs[0], batch.action[0], batch.task))


def _fit(x: Tensor, width: int) -> Tensor:
    """The last axis cut or zero-padded to `width`."""
    return F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] != width else x


def load_teacher(
    path: str | Path,
    student_tasks: TaskSet,
    *,
    task: str | TaskSet | None = None,
    model_size: int | None = None,
    device: torch.device | str = "cpu",
    precision: str = "float32",
) -> RewardTeacher:
    """Loads only the teacher's parts from a checkpoint of any supported format.

    Args:
        path: the teacher's checkpoint.
        student_tasks: the student's task set.
        task: the teacher's task set; a file that names its own needs none.
        model_size: the expected published size; None accepts any.
        device: where to put it.
        precision: see `RewardTeacher`.

    Raises:
        CheckpointError: for a file that is damaged, of another size or task set.
    """
    checkpoint = read_checkpoint(path, TEACHER_PARTS)
    if model_size is not None:
        check_size(checkpoint, model_size)
    if checkpoint.metadata is not None:
        tasks = checkpoint_task_set(checkpoint)
    else:
        hint = "set teacher.task to the task set it was trained on, such as teacher.task=mt30"
        if task is None:
            raise CheckpointError(f"{path}: a released file does not name its tasks; {hint}.")
        try:
            tasks = checkpoint_task_set(checkpoint, task)
        except CheckpointError as error:
            raise CheckpointError(f"{error} If the teacher knows other tasks than the student, {hint}.") from None
    return RewardTeacher(build_model(checkpoint, tasks, device), tasks, student_tasks, precision)


def random_teacher(
    dims: ModelDims,
    task_set: TaskSet,
    student_tasks: TaskSet,
    seed: int,
    device: torch.device | str = "cpu",
    precision: str = "float32",
) -> RewardTeacher:
    """A teacher of these dimensions with random weights, for measuring cost: it teaches nothing.

    Its reward head's last weight is not 0, as a new model's is, so that its predictions differ.
    """
    # It has two parts of a model whose others are no smaller together than this many of them.
    least = model_bytes(dims) // (2 * dims.num_q + 4)
    check_memory("a teacher of these dimensions", least, "choose a smaller teacher or lower teacher.…_dim")
    masks = task_set.action_masks() if task_set.multitask else None
    model = WorldModel(dims, masks, TEACHER_PARTS)
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    torch.nn.init.normal_(model.get_parameter("reward_head.layers.2.weight"), std=0.02, generator=generator)
    return RewardTeacher(model.to(device), task_set, student_tasks, precision)
