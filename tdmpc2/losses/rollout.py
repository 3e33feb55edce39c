"""What the losses have in common: the weights of a rollout's steps, and which heads of Q are asked."""

from __future__ import annotations

import torch
from torch import Tensor

from tdmpc2.model import WorldModel


def picked_heads(model: WorldModel, heads: Tensor) -> Tensor | None:
    """Two heads of two are all of them, and their order does not matter: no weights need to be picked."""
    return heads if model.dims.num_q > 2 else None


def decay(rho: float, steps: int, like: Tensor) -> Tensor:
    """Weights rho^t of a rollout's steps, [steps]."""
    return rho ** torch.arange(steps, device=like.device, dtype=like.dtype)
