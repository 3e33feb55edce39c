"""The running scale that the policy's values are divided by (TD-MPC2, appendix)."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningScale:
    """The 5th to 95th percentile range of Q, at least 1, moved by `tau` at each update (TD-MPC2, appendix).

    Published, there is one for all tasks, and it begins at 1: a new model's Q is small. The Q of a trained one may
    range over tens, and its first policy steps would be too large by that: with `measured` it is the mean of the first
    batches' ranges, as long as that moves it further than `tau` does.

    With `tasks` each has a scale of its own, of its slices alone, so that a task of small values counts as much in the
    policy's loss as one of large values. A batch without slices of a task leaves that task's as it is.

    `value` is a tensor [1] or [tasks] changed in place, so that it can live in a captured graph; so is `updates`,
    counts that only a measured one has.
    """

    def __init__(
        self, tau: float, device: torch.device | str = "cpu", *, measured: bool = False, tasks: int | None = None
    ) -> None:
        self.tau = tau
        self.by_task = tasks is not None
        self.value = torch.ones(tasks or 1, device=device)
        self.updates = torch.zeros(tasks or 1, device=device) if measured else None

    def of(self, task: Tensor) -> Tensor:
        """What the values of slices [B] of these tasks are divided by: [B], or [1] for all."""
        return self.value[task] if self.by_task else self.value

    @torch.no_grad()
    def update(self, q: Tensor, task: Tensor | None = None) -> None:
        """Takes in one batch of values, any shape; with scales by task their ids, one for each value."""
        values = q.flatten().float()
        if self.by_task:
            assert task is not None
            member = task.flatten() == torch.arange(len(self.value), device=values.device)[:, None]
        else:
            member = torch.ones_like(values, dtype=torch.bool)[None]
        count = member.sum(-1)
        # What is not a task's sorts behind all that is.
        ordered = torch.where(member, values, torch.inf).sort(-1).values
        low, high = (_percentile(ordered, count, quantile) for quantile in (0.05, 0.95))
        spread = torch.where(count > 0, (high - low).clamp(min=1.0), self.value)
        if self.updates is None:
            self.value.lerp_(spread, self.tau)
        else:
            self.updates += count > 0
            self.value.lerp_(spread, (1 / self.updates.clamp(min=1)).clamp(min=self.tau))


def _percentile(ordered: Tensor, count: Tensor, quantile: float) -> Tensor:
    """Linear interpolation between the two nearest ranks of the first `count` [T] of sorted values [T, n]: [T]."""
    last = (count - 1).clamp(min=0)
    position = quantile * last.double()
    below = position.long()
    above = torch.minimum(below + 1, last)
    at_below, at_above = (ordered.gather(1, rank[:, None])[:, 0] for rank in (below, above))
    return torch.lerp(at_below, at_above, (position - below).float())
