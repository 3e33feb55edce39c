"""What the training loop asks of whatever learns: a world model, or a policy prior within one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tdmpc2.data.batch import Batch
from tdmpc2.model import WorldModel


class Learning(Protocol):
    """Changes a model, update by update.

    Attributes:
        model: what evaluations act with.
        master: what checkpoints hold: the model, but where it is trained for a quantisation scheme.
        own: what is learned beside it.
    """

    model: WorldModel
    master: WorldModel
    own: nn.ModuleDict

    @property
    def optimisers(self) -> Sequence[torch.optim.Optimizer]:
        """Those whose moments the state holds."""

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Takes one step and returns its scalars as tensors on the device."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict()` of a learner of the same model."""
