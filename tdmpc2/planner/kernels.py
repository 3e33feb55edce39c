"""What a fused model is made of: products with weights laid out once, and the elementwise functions between them.

The functions are plain torch; `Kernels` holds them as they are, compiled for a GPU, or as `native` builds them for a
CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tdmpc2.execution.capabilities import (
    half_product_problem,
    packed_product,
    packed_product_problem,
    packed_weight,
    widened,
)
from tdmpc2.model.layers import int8_product


class Dense:
    """A linear layer with weight [out, in], or a stack [G, out, in], in the arithmetic's type.

    On a CPU with oneDNN a single layer's weight is packed once, which otherwise happens in every product. Where a CPU's
    products in half types are no faster, weights and inputs rounded to that type are multiplied in float32.

    Args:
        weight: of any float type, or int8.
        bias: [out] or [G, out].
        dtype: of products, inputs and outputs.
        scale: [out] or [G, out] in float32, of an int8 weight. Its products are of integers, whatever `dtype`, as
            `Int8Layer`'s are: each row of each piece of the input is quantised by itself.
        widths: of the pieces of the input; default one.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        scale: Tensor | None = None,
        widths: Sequence[int] | None = None,
    ) -> None:
        self.dtype = dtype
        self._bias = None if bias is None else bias.to(dtype)
        self._scale = scale
        self._widths = list(widths or weight.shape[-1:])
        self._weight = weight if scale is not None else weight.to(dtype)
        floats = scale is None and weight.device.type == "cpu"
        self._widened = floats and dtype != torch.float32 and half_product_problem(dtype) is not None
        if self._widened:
            self._weight = self._weight.float()  # once, not in every product
        self._packed = floats and weight.dim() == 2 and packed_product_problem(self._weight.dtype) is None
        if self._packed:
            self._weight = packed_weight(self._weight)

    def __call__(self, x: Tensor) -> Tensor:
        """Rows [M, in] -> [M, out]; [G, M, in] or [M, in] -> [G, M, out] for a stack."""
        return self._product(x, self._bias)

    def added_to(self, partial: Tensor, x: Tensor) -> Tensor:
        """Rows x [N * S, in] -> [N * S, out], plus each environment's partial product, which includes the bias.

        partial is [N, 1, out], or [G, N, 1, out] for a stack.
        """
        if partial.dim() == 3 and partial.shape[0] == 1:
            return self._product(x, partial.flatten())
        y = self._product(x, None)
        return y.unflatten(-2, (partial.shape[-3], -1)).add_(partial).flatten(-3, -2)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self._scale is not None:
            return self._of_integers(x.expand(*self._weight.shape[:-2], *x.shape[-2:]), bias)
        return widened(self._of_floats, x, bias) if self._widened else self._of_floats(x, bias)

    def _of_floats(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self._packed:
            return packed_product(x, self._weight, bias)
        if self._weight.dim() == 2:
            return F.linear(x, self._weight, bias)
        rows = x.expand(*self._weight.shape[:-2], *x.shape[-2:])
        if bias is None:
            return torch.bmm(rows, self._weight.transpose(1, 2))
        return torch.baddbmm(bias.unsqueeze(1), rows, self._weight.transpose(1, 2))

    def _of_integers(self, x: Tensor, bias: Tensor | None) -> Tensor:
        assert self._scale is not None
        y = int8_product(x.split(self._widths, -1), self._weight, self._scale)
        return (y if bias is None else y + bias.unsqueeze(-2)).to(self.dtype)


# -- elementwise functions ---------------------------------------------------------------------------------------------


def norm_form(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """LayerNorm's weight and bias as `norm_mish` wants them: negated, in float32."""
    return -weight.float(), -bias.float()


def norm_mish(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Mish of LayerNorm of x [..., hidden], whose weight and bias come negated.

    With y the negated input of Mish and s = sigmoid(y), x tanh(softplus(x)) is y - 2 y / (1 + s^2): three passes.
    """
    y = _layer_norm(x, weight, bias)
    if y.device.type != "cpu":
        return F.mish(-y)
    s = torch.sigmoid(y)
    return torch.addcdiv(y, y, torch.addcmul(s.new_ones(()), s, s), value=-2)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """With statistics in float32; weight [hidden], or [G, hidden] for x [G, M, hidden]."""
    if weight.dim() == 1:
        if x.device.type != "cpu":
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        return F.layer_norm(x, weight.shape, weight, bias)
    y = F.layer_norm(x, weight.shape[1:])
    return torch.addcmul(bias.unsqueeze(1).to(y.dtype), y, weight.unsqueeze(1).to(y.dtype))


def simnorm_order(latent_dim: int, group: int) -> Tensor:
    """int64 [Z]: where each number of a latent laid out for planning comes from.

    A softmax wants its numbers a stride apart, so that neighbours are of different groups and a vector holds many
    groups: the k-th numbers of all groups lie together.
    """
    return torch.arange(latent_dim).view(-1, group).T.flatten()


def norm_simnorm(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> Tensor:
    """SimNorm of LayerNorm of x [..., Z], all in `simnorm_order`; inside, in float32."""
    y = _layer_norm(x.float(), weight, bias).unflatten(-1, (group, -1))
    return torch.softmax(y, -2).flatten(-2).to(x.dtype)


def expectation(logits: Tensor, bins: Tensor) -> Tensor:
    """Scalars [...] that logits [..., bins] stand for: symexp of the expected bin, in float32."""
    expected = torch.softmax(logits.float(), -1) @ bins
    return torch.sign(expected) * torch.expm1(expected.abs())


def squashed(out: Tensor, noise: Tensor, mask: Tensor | None, low: float, high: float) -> Tensor:
    """Actions [N, S, A] in float32, from the policy's outputs [N, S or 1, 2 A]; mask [N, 1, A]."""
    mean, raw = out.float().chunk(2, -1)
    log_std = low + 0.5 * (high - low) * (torch.tanh(raw) + 1)
    action = torch.tanh(mean + noise * log_std.exp())
    return action if mask is None else action * mask


@dataclass(frozen=True)
class Kernels:
    """The elementwise functions: eager, or others with the same numbers but for rounding.

    `norm_mish` may write into its first argument.
    """

    norm_mish: Callable[[Tensor, Tensor, Tensor], Tensor] = norm_mish
    norm_simnorm: Callable[[Tensor, Tensor, Tensor, int], Tensor] = norm_simnorm
    expectation: Callable[[Tensor, Tensor], Tensor] = expectation
    squashed: Callable[[Tensor, Tensor, Tensor | None, float, float], Tensor] = squashed
