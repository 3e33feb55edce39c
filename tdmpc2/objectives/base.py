"""What a distillation objective is: what it asks of a teacher, and its loss on a batch and the student's rollout.

Axes: H horizon, B batch, K actions, E heads, Z latent, A action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from tdmpc2.data.batch import Batch
from tdmpc2.errors import UserError
from tdmpc2.keys import key
from tdmpc2.model import ModelDims, Part, WorldModel
from tdmpc2.ranges import MOST_SCALE, Within

O = TypeVar("O", bound="Objective")  # noqa: E741  # Self, which a frozen dataclass's `replace` loses


@dataclass(frozen=True)
class Rollout:
    """What the student predicts along a slice; gradients reach it.

    Attributes:
        latents: [H+1, B, Z], the encoded first observation and the predicted next latents.
        reward_logits: [H, B, bins] of the slice's actions.
        q_logits: [E, H, B, bins] likewise.
        decay: [H+1], the weight rho^t of each step.
    """

    latents: Tensor
    reward_logits: Tensor
    q_logits: Tensor
    decay: Tensor


@dataclass(frozen=True)
class PolicyRollout:
    """What the student's policy prior does along a slice, on latents held constant; gradients reach the prior alone.

    Attributes:
        latents: [H+1, B, Z], detached.
        mean: [H+1, B, A] after tanh, 0 for actions that a task does not have.
        log_std: [H+1, B, A].
        decay: [H+1], the weight rho^t of each step.
    """

    latents: Tensor
    mean: Tensor
    log_std: Tensor
    decay: Tensor


class Knowledge(Protocol):
    """What an objective may ask about one batch, without gradient. A column of labels and the dataset itself know
    `rewards` alone; the rest is the teacher's own (`distillation.TeacherView`)."""

    batch: Batch

    def rewards(self, steps: int) -> Tensor:
        """[steps, B, 1]: of the slice's first actions."""

    @property
    def model(self) -> WorldModel:
        """The frozen teacher, with the parts that the chosen objectives name."""

    @property
    def task(self) -> Tensor | None:
        """[B], the teacher's own task ids."""

    def latents(self, steps: int) -> Tensor:
        """[steps, B, Z] of the slice's first observations, as the teacher encodes them."""

    def reward_logits(self, steps: int) -> Tensor:
        """[steps, B, bins] of the slice's first actions, float32."""

    def next_latents(self) -> Tensor:
        """[B, Z] float32: what the teacher predicts to follow the slice's first action."""

    def as_teacher_s(self, actions: Tensor) -> Tensor:
        """Actions [..., A] of the student's width in the teacher's."""

    def as_student_s(self, actions: Tensor) -> Tensor:
        """Actions [..., A] of the teacher's width in the student's."""

    def random_actions(self) -> Tensor:
        """[B, A], uniform in [-1, 1]; 0 for actions that a task does not have."""

    def perturbed(self, actions: Tensor, std: float) -> Tensor:
        """Actions [B, A] with Gaussian noise of that std, clipped to [-1, 1]."""


@dataclass(frozen=True, eq=False)
class Objective(ABC):
    """One more term of a loss, with its own coefficient and its own name in the log.

    A subclass is a frozen dataclass whose `coef` is a key (`coefficient`), and is listed in `objectives.OBJECTIVES`.

    Attributes:
        coef: what its loss is multiplied by in the total; 0 leaves it out.
        module: what it learns or fits of its own (`bound`); it is in the run's state, not in the student's checkpoint.
        name: its loss is logged as `<name>_loss`.
        parts: of the teacher, what it asks; the teacher has no others.
        of_policy: whether its loss belongs to the policy's optimiser (`policy_loss`) or the world model's (`loss`).
        rewards_suffice: whether it only asks for `rewards`, which labels and the dataset's own rewards can stand for.
        one_latent: whether it compares latents with the teacher's, which several teachers do not share.
        fit_batches: batches that it wants to see before a new run's first update (`fit`).
    """

    coef: float
    module: nn.Module | None = None
    name: ClassVar[str]
    parts: ClassVar[tuple[Part, ...]] = ()
    of_policy: ClassVar[bool] = False
    rewards_suffice: ClassVar[bool] = False
    one_latent: ClassVar[bool] = False

    @property
    def fit_batches(self) -> int:
        return 0

    def observations(self, horizon: int) -> int:
        """How many of a slice's first observations it asks about: 1 to horizon + 1."""
        return 1

    @abstractmethod
    def ask(self, teacher: Knowledge) -> dict[str, Tensor]:
        """What its loss needs of the teacher for one batch, each [..., B, N]; it comes back in `Batch.targets`
        (`target`)."""

    def target(self, batch: Batch, what: str) -> Tensor:
        """What `ask` returned under that name."""
        return batch.targets[f"{self.name}.{what}"]

    def has_target(self, batch: Batch) -> bool:
        """Whether the batch brings what the loss is measured against; without it there is no term."""
        return any(name.startswith(f"{self.name}.") for name in batch.targets)

    def loss(self, model: WorldModel, batch: Batch, rollout: Rollout) -> Tensor:
        """A scalar. It is compiled with the update: plain tensor operations, nothing that waits for the device."""
        raise NotImplementedError(f"{type(self).__name__} has no loss of the world model")

    def policy_loss(self, model: WorldModel, batch: Batch, rollout: PolicyRollout) -> Tensor:
        """Likewise, of the policy prior."""
        raise NotImplementedError(f"{type(self).__name__} has no loss of the policy")

    def bound(self: O, student: ModelDims, teacher: ModelDims | None, seed: int) -> O:
        """The objective for models of these dimensions, with a `module` of its own if it needs one.

        Raises:
            UserError: when the two do not go together.
        """
        return self

    def fit(self, views: Iterable[Knowledge]) -> None:  # noqa: B027  # most fit nothing
        """Fits `module` to what a teacher says of `fit_batches` batches; before a new run's first update."""


def coefficient(name: str, text: str, *, default: float = 0.0, source: str) -> Any:
    """The key of an objective's `coef`."""
    return key(default, text, name=name, unit="factor", source=source, check=Within(0, MOST_SCALE))


def check_same_bins(name: str, student: ModelDims, teacher: ModelDims | None) -> None:
    """Raises a `UserError` for models whose discrete regressions differ, so that bins cannot be compared."""
    if teacher is None:
        return
    grids = [(dims.num_bins, dims.vmin, dims.vmax) for dims in (student, teacher)]
    if grids[0] != grids[1]:
        raise UserError(
            f"{name} compares bins, but the student has num_bins, vmin, vmax {grids[0]} and the teacher {grids[1]}; "
            f"set the student's to the teacher's, or {name}=0."
        )


def task_of(model: WorldModel, batch: Batch) -> Tensor | None:
    """Task ids int64 [B] as the model takes them: None for a single-task model."""
    return batch.task if model.dims.num_tasks else None


def own_action_error(model: WorldModel, batch: Batch, mean: Tensor, target: Tensor) -> Tensor:
    """Squared error of actions [T, B, A], its mean over the actions that each slice's task has: [T, B]."""
    error = (mean - target).square()
    if model.action_masks is None:
        return error.mean(-1)
    mask = model.action_masks[batch.task]
    return (error * mask).sum(-1) / mask.sum(-1)
