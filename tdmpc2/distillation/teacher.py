"""The frozen teacher (TD-MPC-Opt, section 3): loaded with the parts that are asked, and what it says of a batch.

Axes: B batch, K actions, Z latent, O observation, A action.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
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

REWARD_PARTS: tuple[Part, ...] = ("encoder", "reward_head")
"""All that reward distillation needs: with the task embedding, 79.8M of the 317M teacher's parameters."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Teacher:
    """A frozen model with its own task embedding, asked in the student's tasks and widths.

    Args:
        model: the teacher's model, with the parts that will be asked.
        task_set: the teacher's tasks.
        student_tasks: the student's tasks; each that is asked about must be one of the teacher's, matched by name.
        precision: float32, or bfloat16 weights and products, in half the memory. The model is cast in place.
        asked: the student's tasks that it is asked about; all by default.

    Raises:
        UserError: when the teacher does not know a task of the student, or the precision is unknown.
    """

    def __init__(
        self,
        model: WorldModel,
        task_set: TaskSet,
        student_tasks: TaskSet,
        precision: str = "float32",
        asked: tuple[str, ...] | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise UserError(f"teacher.precision={precision} is unknown; choose one of {', '.join(PRECISIONS)}.")
        self.asked = student_tasks.tasks if asked is None else asked
        unknown = [t for t in self.asked if t not in task_set.tasks]
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
        ids = [task_set.index(t) if t in self.asked else -1 for t in student_tasks.tasks]
        self._ids = torch.tensor(ids, device=self.device)
        masks = student_tasks.action_masks() if student_tasks.multitask else None
        self.action_masks = None if masks is None else torch.as_tensor(masks, dtype=torch.float32, device=self.device)
        """[tasks, A] of the student's tasks and width; None for a student of a single task."""

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
        ids = self.ids(task)
        z = self.encode(obs, ids)
        return self.model.decode(self.model.reward(z, _fit(action, self.dims.action_dim), ids))

    def ids(self, task: Tensor) -> Tensor | None:
        """The teacher's own ids [B] of the student's [B]; None for a teacher of a single task."""
        return self._ids[task] if self.dims.num_tasks else None

    def encode(self, obs: Tensor, ids: Tensor | None) -> Tensor:
        """Latents [..., Z] of observations [..., O] of the student's width, in the teacher's precision."""
        return self.model.encode(_fit(obs, self.dims.obs_dim).to(PRECISIONS[self.precision]), ids)

    def view(self, batch: Batch, observations: int, draws: Draws) -> TeacherView:
        """What it says of a batch, of which the first `observations` are asked about."""
        return TeacherView(self, batch, observations, draws)


class TeacherView:
    """One teacher's answers about one batch, each computed when it is first asked for (`objectives.Knowledge`).

    Args:
        teacher: frozen.
        batch: the student's.
        observations: of every slice, how many are asked about in all: these are encoded together, once.
        draws: random numbers for actions that the data does not hold.
    """

    def __init__(self, teacher: Teacher, batch: Batch, observations: int, draws: Draws) -> None:
        self.batch = batch
        self.model = teacher.model
        self.task = teacher.ids(batch.task)
        self._teacher = teacher
        self._observations = observations
        self._draws = draws
        self._latents: Tensor | None = None
        self._reward_logits: Tensor | None = None
        self._next_latents: Tensor | None = None

    def latents(self, steps: int) -> Tensor:
        if self._latents is None:
            self._latents = self._teacher.encode(self.batch.obs[: self._observations], self.task)
        return self._latents[:steps]

    def reward_logits(self, steps: int) -> Tensor:
        if self._reward_logits is None or len(self._reward_logits) < steps:
            action = self.as_teacher_s(self.batch.action[:steps])
            self._reward_logits = self.model.reward(self.latents(steps), action, self.task).float()
        return self._reward_logits[:steps]

    def rewards(self, steps: int) -> Tensor:
        return self.model.decode(self.reward_logits(steps))

    def next_latents(self) -> Tensor:
        if self._next_latents is None:
            action = self.as_teacher_s(self.batch.action[0])
            self._next_latents = self.model.next(self.latents(1)[0], action, self.task).float()
        return self._next_latents

    def as_teacher_s(self, actions: Tensor) -> Tensor:
        return _fit(actions, self.model.dims.action_dim)

    def as_student_s(self, actions: Tensor) -> Tensor:
        return _fit(actions, self.batch.action.shape[-1])

    def random_actions(self) -> Tensor:
        uniform = self._draws.uniform(self.batch.action.shape[-1], self.batch.action.device)
        return self._of_task(2 * uniform - 1)

    def perturbed(self, actions: Tensor, std: float) -> Tensor:
        noise = self._draws.normal(actions.shape[-1], actions.device)
        return self._of_task((actions + std * noise).clamp(-1, 1))

    def _of_task(self, actions: Tensor) -> Tensor:
        """0 where a task has no such action."""
        masks = self._teacher.action_masks
        return actions if masks is None else actions * masks[self.batch.task]


class Draws:
    """Random numbers of one update's questions: a function of (seed, step, who asks) alone, so that nothing of them
    needs to be kept, and another objective beside it changes nothing for the first.

    Args:
        seed: of the run.
        step: updates done before.
        batch_size: of all processes together.
        part: this process's slices of it, or the positions of some.
    """

    def __init__(self, seed: int, step: int, batch_size: int, part: slice | Tensor) -> None:
        self._seed, self._step = seed, step
        self._size, self._part = batch_size, part
        self._generator: torch.Generator | None = None
        self._asker = ""

    def of(self, positions: Tensor) -> Draws:
        """Those of some of this process's slices."""
        own = torch.arange(self._size, device=positions.device)[self._part]
        return Draws(self._seed, self._step, self._size, own[positions])

    def by(self, name: str) -> None:
        """Who asks from now on."""
        self._asker, self._generator = name, None

    def uniform(self, width: int, device: torch.device) -> Tensor:
        """[B, width] in [0, 1)."""
        return torch.rand(self._size, width, generator=self._stream(device), device=device)[self._part]

    def normal(self, width: int, device: torch.device) -> Tensor:
        """[B, width], standard normal."""
        return torch.randn(self._size, width, generator=self._stream(device), device=device)[self._part]

    def _stream(self, device: torch.device) -> torch.Generator:
        if self._generator is None:
            digest = hashlib.blake2b(f"{self._seed} {self._step} {self._asker}".encode(), digest_size=7).digest()
            self._generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))
        return self._generator


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
    parts: Collection[Part] = REWARD_PARTS,
) -> Teacher:
    """Loads only the teacher's parts from a checkpoint of any supported format.

    Args:
        path: the teacher's checkpoint.
        student_tasks: the student's task set.
        task: the teacher's task set; a file that names its own needs none.
        model_size: the expected published size; None accepts any.
        device: where to put it.
        precision: see `Teacher`.
        parts: of the model, those that will be asked.

    Raises:
        CheckpointError: for a file that is damaged, of another size or task set.
    """
    model, tasks = teacher_model(path, task=task, model_size=model_size, device=device, parts=parts)
    return Teacher(model, tasks, student_tasks, precision)


def teacher_model(
    path: str | Path,
    *,
    task: str | TaskSet | None = None,
    model_size: int | None = None,
    device: torch.device | str = "cpu",
    parts: Collection[Part] = REWARD_PARTS,
) -> tuple[WorldModel, TaskSet]:
    """A teacher's parts and its tasks, before it is known what it is asked; see `load_teacher`."""
    checkpoint = read_checkpoint(path, tuple(parts))
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
    return build_model(checkpoint, tasks, device), tasks


def random_teacher(
    dims: ModelDims,
    task_set: TaskSet,
    student_tasks: TaskSet,
    seed: int,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    parts: Collection[Part] = REWARD_PARTS,
) -> Teacher:
    """A teacher of these dimensions with random weights, to measure cost or as a control: it teaches nothing.

    Its reward's and values' last weights are not 0, as a new model's are, so that its predictions differ.
    """
    # It has two parts of a model whose others are no smaller together than this many of them.
    least = model_bytes(dims) // (2 * dims.num_q + 4)
    check_memory("a teacher of these dimensions", least, "choose a smaller teacher or lower teacher.…_dim")
    masks = task_set.action_masks() if task_set.multitask else None
    model = WorldModel(dims, masks, tuple(parts))
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    for part in ("reward_head", "q_heads"):
        if part in parts:
            torch.nn.init.normal_(model.get_parameter(f"{part}.layers.2.weight"), std=0.02, generator=generator)
    return Teacher(model.to(device), task_set, student_tasks, precision)
