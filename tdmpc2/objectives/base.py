"""What a distillation objective is.

Axes: H horizon, B batch, E heads, Z latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.model import WorldModel


@dataclass(frozen=True)
class Rollout:
    """What the student predicts along a slice; gradients reach it.

    Attributes:
        latents: [H+1, B, Z], the encoded first observation and the predicted next latents.
        reward_logits: [H, B, bins] of the slice's actions.
        q_logits: [E, H, B, bins] likewise.
    """

    latents: Tensor
    reward_logits: Tensor
    q_logits: Tensor


class Objective(Protocol):
    """One more term of the world model's loss, with its own coefficient and its own name in the log."""

    @property
    def name(self) -> str:
        """Its loss is logged as `<name>_loss`."""

    @property
    def coef(self) -> float:
        """What its loss is multiplied by in the total."""

    def has_target(self, batch: Batch) -> bool:
        """Whether the batch brings what the loss is measured against; without it there is no term."""

    def loss(self, model: WorldModel, batch: Batch, rollout: Rollout) -> Tensor:
        """A scalar. It is compiled with the update: plain tensor operations, nothing that waits for the device."""
