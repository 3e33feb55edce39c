"""How one float tensor is stored, and read back: a cast, int8 per output channel, int4 per group, or as published.

A codec is pure: float tensor -> stored tensors -> float tensor. The stored tensors of `name` are called `name` and,
for the integer codecs that have scales, `name` + `_scale`. Integer codecs are symmetric: zero is stored exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F

from tdmpc2.errors import UserError

SCALE = "_scale"
FLOAT_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})

_TINIEST_FLOAT = torch.finfo(torch.float32).tiny
_TINIEST_HALF = 2.0**-24

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """What one stored tensor must look like."""

    shape: Shape
    dtypes: frozenset[torch.dtype]


class Codec(Protocol):
    """One way to store a float tensor. Suffixes of the stored names: "" and, with scales, `SCALE`."""

    @property
    def kind(self) -> str:
        """One word for reports."""

    @property
    def is_float(self) -> bool:
        """Whether the stored numbers are floats, fit to be trained or quantised further."""

    def encode(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Float tensor -> stored tensors by suffix, all new; a UserError names a tensor that cannot be stored."""

    def decode(self, stored: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Stored tensors by suffix -> float32 of the model's shape."""

    def layout(self, shape: Shape) -> dict[str, Stored]:
        """What `encode` makes of a tensor of this shape, by suffix."""

    def rounded(self, tensor: Tensor) -> Tensor:
        """Float32: what `decode` makes of `encode`, bit for bit, without checks: nothing here waits for the device."""


class Grid(Codec, Protocol):
    """A codec of whole numbers times scales: which of either is stored is the encoder's choice."""

    @property
    def most(self) -> int:
        """Numbers run from minus this to this."""

    def share(self, width: int) -> int:
        """Of an output channel's `width` inputs, how many neighbours share a scale; the last ones may be fewer."""

    def storable(self, scale: Tensor) -> Tensor:
        """Float32 scales as near as the stored type has them, above 0; they come back as float32."""

    def pack(self, numbers: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """Stored tensors by suffix, of whole numbers [..., out, in] and storable scales [..., out, groups]."""


@dataclass(frozen=True)
class Cast:
    """Floats of another width, rounded to nearest; the paper's FP16 with `dtype` half."""

    dtype: torch.dtype
    is_float = True

    @property
    def kind(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def encode(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        source = tensor.detach().float()
        limit = float(torch.finfo(self.dtype).max)
        top = _top(name, source)
        if top > limit:
            raise UserError(f"'{name}' holds {top:.6g}, beyond {self.kind}'s {limit:.6g}; keep it in float32.")
        return {"": source.to(self.dtype, copy=True)}

    def decode(self, stored: Mapping[str, Tensor], shape: Shape) -> Tensor:
        return stored[""].to(torch.float32)

    def layout(self, shape: Shape) -> dict[str, Stored]:
        # The file itself says which float type a tensor has.
        return {"": Stored(shape, FLOAT_DTYPES)}

    def rounded(self, tensor: Tensor) -> Tensor:
        return tensor.detach().float().to(self.dtype, copy=True).float()


@dataclass(frozen=True)
class ChannelInt8:
    """int8 with one float32 scale an output channel: [..., out, in] -> int8 of that shape, scale [..., out].

    A step is the channel's largest absolute weight over 127, so no value is clipped and none is off by more than half
    a step. A stack of heads has scales of its own for every head.
    """

    kind = "int8"
    is_float = False
    most = 127

    def encode(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        source = tensor.detach().float()
        _top(name, source)
        return self.pack(*self._nearest(source))

    def rounded(self, tensor: Tensor) -> Tensor:
        numbers, scale = self._nearest(tensor.detach().float())
        return numbers.mul_(scale)

    def _nearest(self, source: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.storable(source.abs().amax(dim=-1, keepdim=True) / self.most)
        return (source / scale).round_(), scale

    def share(self, width: int) -> int:
        return width

    def storable(self, scale: Tensor) -> Tensor:
        return scale.clamp(min=_TINIEST_FLOAT)

    def pack(self, numbers: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"": numbers.to(torch.int8), SCALE: scale.squeeze(-1)}

    def decode(self, stored: Mapping[str, Tensor], shape: Shape) -> Tensor:
        return stored[""].to(torch.float32) * stored[SCALE].unsqueeze(-1)

    def layout(self, shape: Shape) -> dict[str, Stored]:
        return {"": _one(shape, torch.int8), SCALE: _one(shape[:-1], torch.float32)}


@dataclass(frozen=True)
class GroupInt4:
    """Two 4-bit numbers a byte, one half-precision scale for every `group` inputs of an output channel.

    [..., out, in] -> uint8 [..., out, ceil(in / 2)], scale [..., out, ceil(in / group)]. Numbers run from -7 to 7 and
    are stored plus 8; the even input is the low half of its byte. A step is the group's largest absolute weight over
    7, rounded up to half precision, so no value is clipped and none is off by more than half a step.
    """

    group: int = 32
    kind = "int4"
    is_float = False
    most = 7

    def encode(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        source = tensor.detach().float()
        limit = torch.finfo(torch.float16).max
        if (top := _top(name, source)) > limit:
            raise UserError(f"'{name}' holds {top:.6g}, beyond {limit:.0f}, which int4's half scales can hold.")
        return self.pack(*self._nearest(source))

    def rounded(self, tensor: Tensor) -> Tensor:
        numbers, scale = self._nearest(tensor.detach().float())
        return numbers.mul_(self._spread(scale, numbers.shape[-1]))

    def _nearest(self, source: Tensor) -> tuple[Tensor, Tensor]:
        width = source.shape[-1]
        groups = F.pad(source, (0, -width % self.group)).unflatten(-1, (-1, self.group))
        scale = _half_not_below((groups.abs().amax(dim=-1) / self.most).clamp(min=_TINIEST_HALF)).float()
        numbers = (groups / scale.unsqueeze(-1)).round_().clamp_(-self.most, self.most)
        return numbers.flatten(-2)[..., :width], scale

    def _spread(self, scale: Tensor, width: int) -> Tensor:
        return scale.repeat_interleave(self.group, dim=-1)[..., :width]

    def share(self, width: int) -> int:
        return self.group

    def storable(self, scale: Tensor) -> Tensor:
        return scale.clamp(_TINIEST_HALF, torch.finfo(torch.float16).max).half().float()

    def pack(self, numbers: Tensor, scale: Tensor) -> dict[str, Tensor]:
        codes = F.pad(numbers + 8, (0, numbers.shape[-1] % 2), value=8).to(torch.uint8)
        return {"": codes[..., 0::2] | (codes[..., 1::2] << 4), SCALE: scale.half()}

    def decode(self, stored: Mapping[str, Tensor], shape: Shape) -> Tensor:
        packed = stored[""]
        codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)[..., : shape[-1]]
        return (codes.to(torch.float32) - 8) * self._spread(stored[SCALE].float(), shape[-1])

    def layout(self, shape: Shape) -> dict[str, Stored]:
        *lead, width = shape
        return {
            "": _one((*lead, -(-width // 2)), torch.uint8),
            SCALE: _one((*lead, -(-width // self.group)), torch.float16),
        }


@dataclass(frozen=True)
class UnitInt8:
    """Rounded to whole numbers: int8 with scale 1, as the published files are (table 4). Most weights become 0."""

    kind = "int8, scale 1"
    is_float = False

    def encode(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        source = tensor.detach().float()
        _top(name, source)
        return {"": self.rounded(source).to(torch.int8)}

    def decode(self, stored: Mapping[str, Tensor], shape: Shape) -> Tensor:
        return stored[""].to(torch.float32)

    def layout(self, shape: Shape) -> dict[str, Stored]:
        return {"": _one(shape, torch.int8)}

    def rounded(self, tensor: Tensor) -> Tensor:
        return tensor.detach().float().round().clamp_(-128, 127)


def is_grid(codec: Codec) -> TypeGuard[Grid]:
    """Whether a codec stores whole numbers with scales."""
    return isinstance(codec, ChannelInt8 | GroupInt4)


def _one(shape: Shape, dtype: torch.dtype) -> Stored:
    return Stored(shape, frozenset({dtype}))


def _top(name: str, source: Tensor) -> float:
    """The largest absolute value; a UserError when one is not finite."""
    top = float(source.abs().max()) if source.numel() else 0.0
    if not top < float("inf"):
        raise UserError(f"'{name}' holds a value that is not finite: the model's training went wrong.")
    return top


def _half_not_below(values: Tensor) -> Tensor:
    """The smallest halves that are not below positive float32 `values`."""
    half = values.to(torch.float16)
    # Positive halves are in the order of their bits.
    return torch.where(half.float() < values, (half.view(torch.int16) + 1).view(torch.float16), half)
