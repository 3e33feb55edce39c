"""Layers of the world model: linear, dropout, LayerNorm and Mish, or a stack of them for an ensemble's heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdmpc2.errors import UserError
from tdmpc2.execution.capabilities import half_product_problem, integer_product_problem, widened

Activation = Literal["mish", "simnorm", "none"]
_HALVES = (torch.float16, torch.bfloat16)


def simnorm(x: Tensor, group: int) -> Tensor:
    """Softmax within each group of `group` neighbours of the last axis (TD-MPC2, section 3.1)."""
    groups = x.unflatten(-1, (-1, group))
    if x.device.type == "cpu":
        # torch's CPU softmax is ten times slower than this over so short an axis.
        raised = torch.exp(groups - groups.detach().amax(dim=-1, keepdim=True))
        return (raised / raised.sum(dim=-1, keepdim=True)).flatten(-2)
    return torch.softmax(groups, dim=-1).flatten(-2)


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)), elementwise."""
    if x.device.type != "cpu" or x.dtype != torch.float32:  # half types would round between the steps below
        return F.mish(x)
    if torch.is_grad_enabled() and x.requires_grad:
        out: Tensor = _CpuMish.apply(x)
        return out
    return torch.addcmul(x, x, _mish_remainder(x), value=-1.0)


def _mish_remainder(x: Tensor) -> Tensor:
    """d = 1 / (1 + e + e^2 / 2) with e = exp(x): mish(x) = x - x d. Beyond 20 it is below float32's resolution."""
    remainder = x.clamp(max=20.0).exp_()
    return remainder.addcmul_(remainder, remainder, value=0.5).add_(1.0).reciprocal_()


class _CpuMish(torch.autograd.Function):
    """Mish by one exponential, which on a CPU is twice as fast as torch's kernels, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        remainder = _mish_remainder(x)
        ctx.save_for_backward(x, remainder)
        return torch.addcmul(x, x, remainder, value=-1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, remainder = ctx.saved_tensors
        # mish'(x) = 1 - d + x d^2 (e + e^2)
        slope = x.clamp(max=20.0).exp_()
        slope.addcmul_(slope, slope).mul_(remainder).mul_(remainder).mul_(x)
        return slope.sub_(remainder).add_(1.0).mul_(grads[0])


class Layer(nn.Module):
    """Linear -> (dropout) -> LayerNorm -> activation; activation "none" is a plain linear output.

    With `heads` = E the parameters carry a leading head axis, and inputs [E, ..., in] map to [E, ..., out].
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        activation: Activation,
        *,
        heads: int | None = None,
        simnorm_dim: int = 8,
    ) -> None:
        super().__init__()
        lead = () if heads is None else (heads,)
        self.out_dim = out_dim
        self.activation: Activation = activation
        self.simnorm_dim = simnorm_dim
        self.weight = nn.Parameter(torch.empty(*lead, out_dim, in_dim))
        self.bias = nn.Parameter(torch.empty(*lead, out_dim))
        if activation == "none":
            self.register_parameter("norm_weight", None)
            self.register_parameter("norm_bias", None)
        else:
            self.norm_weight = nn.Parameter(torch.empty(*lead, out_dim))
            self.norm_bias = nn.Parameter(torch.empty(*lead, out_dim))

    def forward(
        self, *pieces: Tensor, heads: Tensor | None = None, dropout: Tensor | None = None, frozen: bool = False
    ) -> Tensor:
        """[..., in] -> [..., out].

        Args:
            pieces: the input, whole or in pieces along its last axis whose leading axes broadcast. Each piece's
                product is taken once, at its own leading axes: an embedding is not multiplied anew for every step.
            heads: int64 [K], use these heads of a stack only.
            dropout: factors [..., out] on the linear output, 0 where a unit is dropped.
            frozen: hold the weights constant: gradients reach the input alone.
        """
        weight, bias, norm_weight, norm_bias = (
            self._used(parameter, heads, frozen)
            for parameter in (self.weight, self.bias, self.norm_weight, self.norm_bias)
        )
        assert weight is not None and bias is not None
        blocks = weight.split([piece.shape[-1] for piece in pieces], dim=-1) if len(pieces) > 1 else (weight,)
        y = _product(pieces[0], blocks[0], bias)
        for piece, block in zip(pieces[1:], blocks[1:], strict=True):
            y = y + _product(piece, block)
        y = y.to(weight.dtype)  # under autocast the products alone are in bfloat16
        return self._activate(y, norm_weight, norm_bias, dropout)

    def _activate(
        self, y: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, dropout: Tensor | None = None
    ) -> Tensor:
        if self.activation == "none":
            return y
        if dropout is not None:
            y = y * dropout
        if self.bias.dim() == 2:
            assert norm_weight is not None and norm_bias is not None
            y = F.layer_norm(y, (self.out_dim,))
            y = torch.addcmul(_per_head(norm_bias, y), y, _per_head(norm_weight, y))
        else:
            y = F.layer_norm(y, (self.out_dim,), norm_weight, norm_bias)
        return mish(y) if self.activation == "mish" else simnorm(y, self.simnorm_dim)

    @staticmethod
    def _used(parameter: Tensor | None, heads: Tensor | None, frozen: bool) -> Tensor | None:
        if parameter is None:
            return None
        if frozen:
            parameter = parameter.detach()
        return parameter if heads is None else parameter[heads]


class Int8Layer(Layer):
    """A `Layer` that multiplies integers: int8 weight [out, in] or [E, out, in] with a float32 scale an output channel.

    Each row of an input piece is quantised as it comes, symmetrically: its largest absolute value becomes 127. The
    int32 product times both scales, plus the bias, goes on in the bias's type. For inference alone.
    """

    weight_scale: Tensor

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        activation: Activation,
        *,
        heads: int | None = None,
        simnorm_dim: int = 8,
    ) -> None:
        super().__init__(in_dim, out_dim, activation, heads=heads, simnorm_dim=simnorm_dim)
        shape = self.weight.shape
        del self.weight
        self.register_buffer("weight", torch.empty(shape, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(shape[:-1], dtype=torch.float32))

    def _apply(self, fn: Any, recurse: bool = True) -> Int8Layer:
        # A model turned to half keeps these in float32: small scales have few digits in half.
        scale = self.weight_scale
        super()._apply(fn, recurse)
        self.weight_scale = scale.to(self.weight.device)
        return self

    def forward(
        self, *pieces: Tensor, heads: Tensor | None = None, dropout: Tensor | None = None, frozen: bool = False
    ) -> Tensor:
        """As `Layer.forward`, without gradients: dropout is an error."""
        if dropout is not None:
            raise UserError("a model of int8 weights cannot be trained: train the float one it was made from.")
        weight: Tensor = self.weight
        scale = self.weight_scale
        bias, norm_weight, norm_bias = (
            self._used(parameter, heads, True) for parameter in (self.bias, self.norm_weight, self.norm_bias)
        )
        if heads is not None:
            weight, scale = weight[heads], scale[heads]
        assert bias is not None
        y = int8_product(pieces, weight, scale)
        y = y.add_(bias if bias.dim() == 1 else _per_head(bias, y)).to(bias.dtype)
        return self._activate(y, norm_weight, norm_bias)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., in] -> int8 [..., in] and float32 scale [..., 1]; a row that is not finite has a scale that is not."""
    x = x.float()
    scale = (x.abs().amax(dim=-1, keepdim=True) * (1 / 127)).clamp_(min=torch.finfo(torch.float32).tiny)
    return (x / scale).round_().to(torch.int8), scale


def int8_product(pieces: Sequence[Tensor], weight: Tensor, weight_scale: Tensor) -> Tensor:
    """As `_product` of an input in pieces, in float32, with int8 weights [..., out, in] and their scales [..., out].

    Each row of each piece is quantised by itself.
    """
    blocks = weight.split([piece.shape[-1] for piece in pieces], dim=-1)
    first, *others = (_int8_piece(x, block, weight_scale) for x, block in zip(pieces, blocks, strict=True))
    return sum(others, first)


def _int8_piece(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    if weight.dim() == 2:
        rows, scale = quantise_rows(x.reshape(-1, x.shape[-1]))
        product = _integer_matmul(rows, weight) * scale
        return product.mul_(weight_scale).reshape(*x.shape[:-1], -1)
    if x.stride(0) == 0:  # every head sees the same input: it is quantised once
        rows, scale = (part.expand(len(weight), -1, -1) for part in quantise_rows(x[0].reshape(-1, x.shape[-1])))
    else:
        rows, scale = quantise_rows(x.reshape(x.shape[0], -1, x.shape[-1]))
    product = torch.stack([_integer_matmul(rows[head], weight[head]) for head in range(len(weight))]) * scale
    return product.mul_(weight_scale.unsqueeze(1)).reshape(*x.shape[:-1], -1)


def _integer_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """int8 [rows, in] times int8 [out, in] -> int32 [rows, out]."""
    if x.device.type == "cpu":
        if integer_product_problem() is None:
            return torch._int_mm(x, weight.t())
        # Floats hold such sums exactly over so many inputs: (2^7)^2 2^10 = 2^24.
        blocks = zip(x.split(1024, -1), weight.split(1024, -1), strict=True)
        sums = [F.linear(part.float(), block.float()).to(torch.int32) for part, block in blocks]
        return sum(sums[1:], sums[0])
    # CUDA's needs more than 16 rows, and widths that are multiples of 8; zeros add nothing.
    (rows, width), out = x.shape, weight.shape[0]
    x = F.pad(x, (0, -width % 8, 0, max(0, 32 - rows)))
    weight = F.pad(weight, (0, -width % 8, 0, -out % 8))
    return torch._int_mm(x, weight.t())[:rows, :out]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times weight [out, in]; for a stack [E, out, in], x [..., in] or [E, ..., in] -> [E, ..., out]."""
    if weight.dtype in _HALVES and weight.device.type == "cpu" and half_product_problem(weight.dtype) is not None:
        return widened(_product, x, weight, bias)
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    lead = x.shape[:-1]
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    if bias is None:
        return torch.bmm(rows, weight.transpose(1, 2)).view(*lead, -1)
    return torch.baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2)).view(*lead, -1)


def _per_head(values: Tensor, like: Tensor) -> Tensor:
    """[E, out] -> [E, 1, ..., out] with as many axes as `like`."""
    return values.view(values.shape[0], *(1,) * (like.dim() - 2), values.shape[1])


class Mlp(nn.Module):
    """A stack of `Layer`s: hidden ones with Mish, the last with `output`. [..., in] -> [..., out].

    With `heads` = E every head sees the same input: [..., in] -> [E, ..., out].
    """

    def __init__(
        self,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int,
        output: Activation,
        *,
        heads: int | None = None,
        simnorm_dim: int = 8,
    ) -> None:
        super().__init__()
        self.heads = heads
        widths = [in_dim, *hidden, out_dim]
        self.layers = nn.ModuleList(
            Layer(
                widths[i],
                widths[i + 1],
                "mish" if i < len(hidden) else output,
                heads=heads,
                simnorm_dim=simnorm_dim,
            )
            for i in range(len(widths) - 1)
        )

    def forward(
        self, *pieces: Tensor, heads: Tensor | None = None, dropout: Tensor | None = None, frozen: bool = False
    ) -> Tensor:
        """As `Layer.forward`; `heads` and `dropout` are for stacks, dropout [K, ..., hidden] for the first layer."""
        if self.heads is not None:
            used = self.heads if heads is None else heads.shape[0]
            pieces = tuple(piece.expand(used, *piece.shape) for piece in pieces)
        first, *others = self.layers
        x = first(*pieces, heads=heads, dropout=dropout, frozen=frozen)
        for layer in others:
            x = layer(x, heads=heads, frozen=frozen)
        return x

    def given(self, index: int, *pieces: Tensor) -> Tensor:
        """What layer `index` is given, in one piece, of `forward`'s input: [..., in], in a stack [E, ..., in]."""
        lead = () if self.heads is None else (self.heads,)
        rows = torch.broadcast_shapes(*(piece.shape[:-1] for piece in pieces))
        x = torch.cat([piece.expand(*lead, *rows, piece.shape[-1]) for piece in pieces], dim=-1)
        for layer in list(self.layers)[:index]:
            x = layer(x)
        return x

    def use_int8_products(self) -> None:
        """Replaces every layer by an `Int8Layer` of its shape, on its device; their weights are left unset."""
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            with layer.weight.device:
                self.layers[i] = Int8Layer(
                    layer.weight.shape[-1],
                    layer.out_dim,
                    layer.activation,
                    heads=self.heads,
                    simnorm_dim=layer.simnorm_dim,
                )

    def init_weights(self, generator: torch.Generator | None, *, zero_output: bool = False) -> None:
        """Linear weights normal with std 0.02, biases 0, LayerNorm the identity; output weight 0 if asked."""
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            if zero_output and i == len(self.layers) - 1:
                nn.init.zeros_(layer.weight)
            else:
                nn.init.normal_(layer.weight, std=0.02, generator=generator)
            nn.init.zeros_(layer.bias)
            if layer.norm_weight is not None:
                nn.init.ones_(layer.norm_weight)
                nn.init.zeros_(layer.norm_bias)
