"""The running scale that the policy's values are divided by (TD-MPC2, appendix)."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningScale:
    """The 5th to 95th percentile range of Q, at least 1, moved by `tau` at each update (TD-MPC2, appendix).

    Published, it begins at 1: a new model's Q is small. The Q of a trained one may range over tens, and its first
    policy steps would be too large by that: with `measured` it is the mean of the first batches' ranges, as long as
    that moves it further than `tau` does.

    `value` is a tensor [1] changed in place, so that it can live in a captured graph; so is `updates`, a count that
    only a measured one has.
    """

    def __init__(self, tau: float, device: torch.device | str = "cpu", *, measured: bool = False) -> None:
        self.tau = tau
        self.value = torch.ones(1, device=device)
        self.updates = torch.zeros(1, device=device) if measured else None

    @torch.no_grad()
    def update(self, q: Tensor) -> None:
        """Takes in one batch of values, any shape."""
        ordered = q.flatten().float().sort().values
        low, high = (_percentile(ordered, quantile) for quantile in (0.05, 0.95))
        spread = (high - low).clamp(min=1.0)
        if self.updates is None:
            self.value.lerp_(spread, self.tau)
        else:
            self.updates += 1
            self.value.lerp_(spread, (1 / self.updates).clamp(min=self.tau))


def _percentile(ordered: Tensor, quantile: float) -> Tensor:
    """Linear interpolation between the two nearest ranks of sorted values [n]."""
    position = quantile * (ordered.numel() - 1)
    below = int(position)
    above = min(below + 1, ordered.numel() - 1)
    return torch.lerp(ordered[below], ordered[above], position - below)
