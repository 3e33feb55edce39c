"""The running scale that the policy's values are divided by (TD-MPC2, appendix)."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningScale:
    """The 5th to 95th percentile range of Q, at least 1, moved by `tau` at each update (TD-MPC2, appendix).

    `value` is a tensor [1] changed in place, so that it can live in a captured graph.
    """

    def __init__(self, tau: float, device: torch.device | str = "cpu") -> None:
        self.tau = tau
        self.value = torch.ones(1, device=device)

    @torch.no_grad()
    def update(self, q: Tensor) -> None:
        """Takes in one batch of values, any shape."""
        ordered = q.flatten().float().sort().values
        low, high = (_percentile(ordered, quantile) for quantile in (0.05, 0.95))
        self.value.lerp_((high - low).clamp(min=1.0), self.tau)


def _percentile(ordered: Tensor, quantile: float) -> Tensor:
    """Linear interpolation between the two nearest ranks of sorted values [n]."""
    position = quantile * (ordered.numel() - 1)
    below = int(position)
    above = min(below + 1, ordered.numel() - 1)
    return torch.lerp(ordered[below], ordered[above], position - below)
