"""Imitation: the policy prior's mean is pulled towards what this model's own planner would do (`planned.py`).

Axes: T steps, B batch, Z latent, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.model import WorldModel
from tdmpc2.objectives import own_action_error, task_of


@dataclass(frozen=True)
class Imitation:
    """What imitation came to, scalars.

    Attributes:
        loss: in gradient of the policy's mean.
        labelled: the part of the states that were planned from; without gradient, as the next.
        better: the part of these in which Q prefers the planner's action; None where that was not asked.
    """

    loss: Tensor
    labelled: Tensor
    better: Tensor | None


def imitation(model: WorldModel, batch: Batch, latents: Tensor, mean: Tensor, *, where_better: bool) -> Imitation:
    """Squared error of the squashed mean, over the actions that a task has, averaged over the labelled states.

    Args:
        model: its Q judges, the mean of the heads; it knows which actions a task has.
        batch: `planned` [T, B, A] is NaN in the states that were not planned from.
        latents: [T, B, Z] of the observations, without gradient.
        mean: [T, B, A] of the policy prior, after tanh.
        where_better: states in which Q does not prefer the planner's action to the prior's mean count as 0
            (the binary filter of critic regularised regression, arXiv 2006.15134).
    """
    assert batch.planned is not None
    known = batch.planned.isfinite().all(-1)
    planned = torch.where(known.unsqueeze(-1), batch.planned, 0.0)
    error = own_action_error(model, batch, mean, planned)
    count = known.sum().clamp(min=1)
    if not where_better:
        return Imitation((error * known).sum() / count, known.float().mean(), None)
    task = task_of(model, batch)
    with torch.no_grad():
        first, second = (model.decode(model.q_values(latents, a, task)).mean(0)[..., 0] for a in (planned, mean))
    better = known & (first > second)
    return Imitation((error * better).sum() / count, known.float().mean(), better.sum() / count)
