"""Discrete regression of scalars in a log space (TD-MPC2, section 3.1 and appendix).

A scalar is symlog-transformed and spread over the two nearest of `num_bins` evenly spaced bins. The prediction is
the expectation over the bins, transformed back.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|), elementwise."""
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`, elementwise."""
    return torch.sign(x) * torch.expm1(x.abs())


def _bin_position(x: Tensor, vmin: float, vmax: float, num_bins: int) -> tuple[Tensor, Tensor]:
    """Lower bin index (int64) and the weight of the bin above it, both shaped like x."""
    position = (symlog(x).clamp(vmin, vmax) - vmin) * ((num_bins - 1) / (vmax - vmin))
    # Clamped as whole numbers: NaN must give a NaN loss, not an index out of range, which ends a CUDA process.
    lower = position.floor().long().clamp(0, num_bins - 2)
    return lower, position - lower


def two_hot(x: Tensor, vmin: float, vmax: float, num_bins: int) -> Tensor:
    """Two-hot encoding of scalars x [..., 1] -> [..., num_bins]; each row sums to 1."""
    lower, above = _bin_position(x, vmin, vmax, num_bins)
    out = x.new_zeros((*x.shape[:-1], num_bins))
    return out.scatter(-1, lower, 1 - above).scatter(-1, lower + 1, above)


def two_hot_inverse(logits: Tensor, vmin: float, vmax: float) -> Tensor:
    """Scalars [..., 1] that logits [..., num_bins] stand for: symexp of the expected bin."""
    bins = torch.linspace(vmin, vmax, logits.shape[-1], device=logits.device, dtype=logits.dtype)
    expected = torch.softmax(logits, dim=-1) @ bins
    return symexp(expected.unsqueeze(-1))


def two_hot_cross_entropy(logits: Tensor, target: Tensor, vmin: float, vmax: float) -> Tensor:
    """Cross entropy [..., 1] of logits [..., num_bins] against scalars [..., 1], whose leading axes broadcast."""
    lower, above = _bin_position(target, vmin, vmax, logits.shape[-1])
    lower = lower.expand(*logits.shape[:-1], 1)
    log_p = F.log_softmax(logits, dim=-1)
    return -((1 - above) * log_p.gather(-1, lower) + above * log_p.gather(-1, lower + 1))
