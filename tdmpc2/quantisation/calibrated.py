"""Rounding that looks at what a layer is given: which numbers and scales of a grid change its outputs least.

For weights W [out, in] and the inputs that the layer sees, the squared error of its outputs is a quadratic in what is
stored, Q: the trace of (W - Q) H (W - Q)^T with H the inputs' second moments. Rounding to nearest ignores H; here

1. W becomes the layer that answers the quantised model's inputs as the float one answers its own (least squares),
2. columns are rounded one after the other, and what each is off by is made up for by those still free (second-order
   rounding: OBQ, arXiv 2208.11580; GPTQ, arXiv 2210.17323), every group's scale the one with the least error of a list,
3. numbers and scales are changed one after the other as long as the error falls (coordinate descent).

Pure functions of tensors. A codec's stored form stays what it is: every reader of a scheme reads these weights too.

Axes: R rows of inputs, E heads (or 1), G groups of inputs that share a scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdmpc2.errors import UserError
from tdmpc2.quantisation.codecs import Grid

_SHRINKS = torch.linspace(1.0, 0.5, 21)
"""Scales tried for a group, as parts of the one that clips nothing."""
_SWEEPS = 4
DAMPING = 0.1
"""Part of the mean second moment that is added to each input's: other data than the calibration's counts too."""


@dataclass
class Moments:
    """Second moments of a layer's inputs, gathered block by block; float64 [E, in, in], of one layer E = 1.

    Attributes:
        inputs: mean of w x^T x, x the quantised model's inputs and w a row's weight.
        cross: mean of w f^T x, f the float model's inputs of the same rows.
        rows: how many were seen.
    """

    inputs: Tensor
    cross: Tensor
    rows: int = 0

    @staticmethod
    def of(width: int, heads: int = 1, device: torch.device | str = "cpu") -> Moments:
        zeros = torch.zeros(heads, width, width, dtype=torch.float64, device=device)
        return Moments(zeros, zeros.clone())

    def add(self, exact: Tensor, seen: Tensor, weight: Tensor | None = None) -> None:
        """Counts rows of the float model's inputs and the quantised one's, each [R, in] or [E, R, in].

        Args:
            exact: inputs in the float model.
            seen: the same rows' inputs in the quantised one.
            weight: of each row, [R] or [E, R]; None counts all alike.
        """
        exact, seen = (x.reshape(-1, *x.shape[-2:]) for x in (exact, seen))
        weighed = seen if weight is None else seen * weight.reshape(-1, seen.shape[1], 1)
        rows = self.rows + seen.shape[1]
        share = seen.shape[1] / rows
        for held, first in ((self.inputs, seen), (self.cross, exact)):
            held.lerp_((first.mT @ weighed).double() / seen.shape[1], share)
        self.rows = rows


def calibrated(codec: Grid, name: str, weight: Tensor, moments: Moments, damping: float = DAMPING) -> dict[str, Tensor]:
    """Stored tensors of a weight matrix by suffix, as `codec.encode` lays them out.

    Args:
        codec: of whole numbers and scales.
        name: for the message.
        weight: [out, in] or [E, out, in], left as it is.
        moments: of what the layer is given.
        damping: part of the mean second moment added to each input's.

    Raises:
        UserError: for a weight or inputs that are not finite, or a weight that the codec cannot store.
    """
    codec.encode(name, weight)  # refuses what cannot be stored, by its name
    if not moments.rows or not bool(moments.inputs.isfinite().all() and moments.cross.isfinite().all()):
        raise UserError(f"'{name}': what the layer is given holds values that are not finite; check the data.")
    hessian = _damped(moments.inputs, damping)
    lifted = weight.detach().reshape(-1, *weight.shape[-2:])
    wanted = _refitted(lifted.double(), moments, hessian).float()
    numbers, scale = _by_columns(codec, wanted, hessian)
    numbers, scale = _descended(codec, wanted, hessian.float(), numbers, scale)
    return codec.pack(numbers.reshape(weight.shape), scale.reshape(*weight.shape[:-1], -1))


def _damped(moments: Tensor, damping: float) -> Tensor:
    mean = moments.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(torch.float32).tiny)
    return moments + damping * mean[:, None, None] * torch.eye(moments.shape[-1], dtype=moments.dtype).to(moments)


def _refitted(weight: Tensor, moments: Moments, hessian: Tensor) -> Tensor:
    """The weights [E, out, in] whose outputs on x are nearest to the given ones' on f; damping draws to the latter."""
    difference = weight @ (moments.cross - moments.inputs)
    return weight + torch.linalg.solve(hessian, difference.mT).mT


def _by_columns(codec: Grid, weight: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [E, out, in] and scales [E, out, G], column by column.

    Row j of the inverse's Cholesky factor, from its diagonal on, says what changing column j by one asks of the later
    ones, once all before it are fixed.
    """
    inverse = torch.linalg.inv(hessian)
    factor = torch.linalg.cholesky((inverse + inverse.mT) / 2, upper=True).float()
    weight = weight.clone()
    width = weight.shape[-1]
    share = codec.share(width)
    numbers, scales = torch.empty_like(weight), []
    for start in range(0, width, share):
        stop = min(start + share, width)
        block = factor[:, start:stop, start:stop]
        scale = _best_scale(codec, weight[..., start:stop], block)
        found, errors = _round_group(codec, weight[..., start:stop], scale, block)
        numbers[..., start:stop] = found
        weight[..., stop:] -= errors @ factor[:, start:stop, stop:]
        scales.append(scale)
    return numbers, torch.stack(scales, dim=-1)


def _best_scale(codec: Grid, weight: Tensor, factor: Tensor) -> Tensor:
    """The scale [E, out] of a group [E, out, share] with the least error of those tried."""
    top = weight.abs().amax(dim=-1) / codec.most
    best, least = codec.storable(top), torch.full_like(top, float("inf"))
    for shrink in _SHRINKS.tolist():
        scale = codec.storable(top * shrink)
        _, errors = _round_group(codec, weight, scale, factor)
        error = errors.square().sum(-1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def _round_group(codec: Grid, weight: Tensor, scale: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers of a group's columns [E, out, share], and what each left to the later ones, in units of its pivot.

    The squares of these sum up to the group's part of the layer's error, later columns making up for it.
    """
    weight = weight.clone()
    numbers, errors = torch.empty_like(weight), torch.empty_like(weight)
    for j in range(weight.shape[-1]):
        column = weight[..., j]
        numbers[..., j] = (column / scale).round_().clamp_(-codec.most, codec.most)
        errors[..., j] = (column - numbers[..., j] * scale) / factor[:, None, j, j]
        weight[..., j:] -= errors[..., j, None] * factor[:, None, j, j:]
    return numbers, errors


def _descended(codec: Grid, weight: Tensor, hessian: Tensor, numbers: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers and scales with no more error: each in turn takes the value that is best while all others stay."""
    width, share = weight.shape[-1], codec.share(weight.shape[-1])
    groups = [slice(start, min(start + share, width)) for start in range(0, width, share)]
    scale = scale.clone()
    numbers = numbers.clone()
    for _ in range(_SWEEPS):
        spread = scale.repeat_interleave(share, dim=-1)[..., :width]
        slope = (weight - numbers * spread) @ hessian  # minus half the error's gradient, [E, out, in]
        for g, group in enumerate(groups):
            for j in range(group.start, group.stop):
                step = scale[..., g]
                wish = numbers[..., j] + slope[..., j] / hessian[:, None, j, j] / step
                found = wish.round_().clamp_(-codec.most, codec.most)
                change = (found - numbers[..., j]) * step
                numbers[..., j] = found
                slope -= change[..., None] * hessian[:, None, j]
            held = numbers[..., group]
            curved = held @ hessian[:, group, group]
            bend = (curved * held).sum(-1)
            moved = scale[..., g] + (slope[..., group] * held).sum(-1) / bend.clamp(min=1e-30)
            new = torch.where((bend > 0) & (moved > 0), codec.storable(moved), scale[..., g])
            slope -= (new - scale[..., g])[..., None] * (held @ hessian[:, group])
            scale[..., g] = new
    return numbers, scale
