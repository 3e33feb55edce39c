"""Post-training quantisation: which codec every tensor of a model gets (TD-MPC-Opt, section 4 and table 4).

A scheme is a rule from a tensor's name to its codec, with a version: the two settle the stored names, types and shapes
of a whole model, so that a file can be checked against them. Offline conversion only: files are the business of
`checkpointing`, integer products that of `model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tdmpc2.errors import UserError, printable
from tdmpc2.model import ACTING_PARTS, PRIOR_PARTS, of_parts
from tdmpc2.quantisation.codecs import Cast, ChannelInt8, Codec, GroupInt4, Shape, Stored, UnitInt8, is_grid

_VECTORS = ("bias", "norm_weight", "norm_bias")
_VALUE_PARTS = ("q_heads", "target_q_heads")


@dataclass(frozen=True)
class Scheme:
    """How a model is stored.

    Attributes:
        name: as on the command line and in a file's metadata.
        matrices: codec of the weight matrices of encoder, dynamics, reward and policy.
        value_matrices: codec of those of Q and target Q, stacks [E, out, in].
        vectors: codec of biases and LayerNorm, about 1% of the numbers, and of the task embedding.
        value_vectors: the same of Q and target Q.
        integer_products: the model multiplies in int8 instead of turning the weights back into floats.
        version: of the stored form; a file of another version is refused.
    """

    name: str
    matrices: Codec
    value_matrices: Codec
    vectors: Codec
    value_vectors: Codec
    integer_products: bool = False
    version: int = 1

    def codec(self, name: str) -> Codec:
        """The codec of a tensor of the model; a UserError for a name that no model has, so that none is skipped."""
        part, _, leaf = name.rpartition(".")
        value = part.split(".")[0] in _VALUE_PARTS
        if leaf == "weight":
            return self.value_matrices if value else self.matrices
        if leaf in _VECTORS or name == "task_embedding":
            return self.value_vectors if value else self.vectors
        raise UserError(f"'{name}' is no tensor of a world model: no rule says how to quantise it.")

    def layout(self, shapes: Mapping[str, Shape]) -> dict[str, Stored]:
        """Stored name -> what it must look like, for a model's tensors of these shapes."""
        return {
            name + suffix: stored
            for name, shape in shapes.items()
            for suffix, stored in self.codec(name).layout(shape).items()
        }

    def decode(self, stored: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
        """Float32 tensors of a model from the stored ones; `shapes` names those to decode."""
        return {name: self._decode_one(name, stored, shape) for name, shape in shapes.items()}

    def _decode_one(self, name: str, stored: Mapping[str, Tensor], shape: Shape) -> Tensor:
        codec = self.codec(name)
        return codec.decode({suffix: stored[name + suffix] for suffix in codec.layout(shape)}, shape)

    @property
    def is_float(self) -> bool:
        """Whether all weights are stored as floats, fit to be trained or quantised further."""
        return self.matrices.is_float and self.value_matrices.is_float

    @property
    def has_grid(self) -> bool:
        """Whether some weights are whole numbers with scales, which an encoder may choose (`calibrated`)."""
        return any(is_grid(codec) for codec in (self.matrices, self.value_matrices))

    @torch.no_grad()
    def rounded(self, name: str, tensor: Tensor) -> Tensor:
        """Float32: a tensor of the model as it is read back once it was stored (`Codec.rounded`)."""
        return self.codec(name).rounded(tensor)


def _scheme(
    name: str,
    matrices: Codec,
    vectors: Codec,
    *,
    value: Codec | None = None,
    value_vectors: Codec | None = None,
    integer_products: bool = False,
) -> Scheme:
    return Scheme(name, matrices, value or matrices, vectors, value_vectors or vectors, integer_products)


_HALF, _INT8, _UNIT = Cast(torch.float16), ChannelInt8(), UnitInt8()
FLOAT32 = _scheme("float32", Cast(torch.float32), Cast(torch.float32))
_ALL = (
    _scheme("fp16", _HALF, _HALF),
    _scheme("bf16", Cast(torch.bfloat16), Cast(torch.bfloat16)),
    _scheme("int8", _INT8, _HALF),
    _scheme("int8-dynamic", _INT8, _HALF, integer_products=True),
    _scheme("mixed", _HALF, _HALF, value=_INT8),
    _scheme("int4", GroupInt4(), _HALF),
    _scheme("paper-int8", _UNIT, _UNIT),
    _scheme("paper-mixed", _HALF, _HALF, value=_UNIT, value_vectors=_UNIT),
)
SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in _ALL}
"""What a model can be quantised to; unquantised files are stored as `FLOAT32`."""


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor.

    Attributes:
        name: of the model's tensor.
        kind: how it is stored.
        numbers: how many.
        bytes: stored, scales included.
        largest: largest absolute value before.
        largest_error, mean_error: absolute, of the decoded tensor.
        zeroed: share of the numbers that were not 0 and are now.
    """

    name: str
    kind: str
    numbers: int
    bytes: int
    largest: float
    largest_error: float
    mean_error: float
    zeroed: float


@dataclass(frozen=True)
class Quantised:
    """Tensors to store, and a line about each tensor of the model."""

    scheme: Scheme
    tensors: dict[str, Tensor]
    report: tuple[TensorReport, ...]

    @property
    def bytes(self) -> int:
        return sum(line.bytes for line in self.report)

    @property
    def largest_error(self) -> float:
        """The largest error of a number relative to the largest of its tensor."""
        return max((line.largest_error / line.largest for line in self.report if line.largest), default=0.0)


def scheme_named(name: str, key: str = "scheme") -> Scheme:
    """A scheme by name; a UserError lists the known ones, and names the key that it was given by."""
    if name not in SCHEMES:
        raise UserError(f"{key}={printable(name)} is unknown; choose one of {', '.join(SCHEMES)}.")
    return SCHEMES[name]


def storage_scheme(name: str, version: int) -> Scheme | None:
    """The scheme that a stored file names, unquantised ones included; None if this version does not have it."""
    scheme = FLOAT32 if name == FLOAT32.name else SCHEMES.get(name)
    return scheme if scheme is not None and scheme.version == version else None


def quantise(tensors: Mapping[str, Tensor], scheme: str) -> Quantised:
    """Stores a model's float tensors by a scheme's name.

    Args:
        tensors: a `WorldModel.state_dict()`, left as it is.
        scheme: one of `SCHEMES`.

    Raises:
        UserError: for an unknown scheme, a tensor that no rule covers, or one with a value that cannot be stored.
    """
    return quantise_by(tensors, scheme_named(scheme))


def quantise_by(
    tensors: Mapping[str, Tensor], scheme: Scheme, chosen: Mapping[str, Mapping[str, Tensor]] | None = None
) -> Quantised:
    """As `quantise`, by the scheme itself; `chosen` are stored tensors by suffix of those rounded otherwise."""
    stored: dict[str, Tensor] = {}
    report = []
    for name, tensor in tensors.items():
        codec = scheme.codec(name)
        encoded = (chosen or {}).get(name) or codec.encode(name, tensor)
        report.append(_line(name, codec, tensor.detach().float(), encoded))
        stored |= {name + suffix: part for suffix, part in encoded.items()}
    return Quantised(scheme, stored, tuple(report))


def _line(name: str, codec: Codec, source: Tensor, encoded: Mapping[str, Tensor]) -> TensorReport:
    decoded = codec.decode(encoded, tuple(source.shape))
    error = (decoded - source).abs()
    return TensorReport(
        name=name,
        kind=codec.kind,
        numbers=source.numel(),
        bytes=sum(part.numel() * part.element_size() for part in encoded.values()),
        largest=float(source.abs().max()),
        largest_error=float(error.max()),
        mean_error=float(error.mean()),
        zeroed=float(((decoded == 0) & (source != 0)).float().mean()),
    )


def without_target(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is deployed to plan: everything but target Q."""
    return of_parts(tensors, ACTING_PARTS)


def prior_alone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is deployed to act by the policy prior alone: encoder, policy head and task embedding."""
    return of_parts(tensors, PRIOR_PARTS)
