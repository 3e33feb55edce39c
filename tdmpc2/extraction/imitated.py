"""Imitation: the policy prior's mean is pulled towards what this model's own planner would do (`planned.py`)."""

from __future__ import annotations

import torch
from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.model import WorldModel
from tdmpc2.objectives import own_action_error


def imitation_loss(model: WorldModel, batch: Batch, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of the squashed mean, over the actions that a task has, averaged over the labelled states.

    Args:
        model: knows which actions a task has.
        batch: `planned` [T, B, A] is NaN in the states that were not planned from.
        mean: [T, B, A] of the policy prior, after tanh.

    Returns:
        Scalars: the loss, 0 for a batch without labelled states, and the labelled part of its states.
    """
    assert batch.planned is not None
    known = batch.planned.isfinite().all(-1)
    error = own_action_error(model, batch, mean, torch.where(known.unsqueeze(-1), batch.planned, 0.0))
    return (error * known).sum() / known.sum().clamp(min=1), known.float().mean()
