"""Post-training quantisation: pure functions from a model's float tensors to what is stored (TD-MPC-Opt, section 4).

Offline conversion only. How a stored file is read back and run is the business of `checkpointing` and `agent`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tdmpc2.errors import UserError

_HALF_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Quantised:
    """Tensors to store, and the largest error of a stored weight relative to the largest weight of its tensor."""

    tensors: dict[str, Tensor]
    largest_error: float


def to_half(tensors: Mapping[str, Tensor]) -> Quantised:
    """Every tensor cast to IEEE half, new tensors throughout: the paper's FP16.

    Raises:
        UserError: naming a tensor with a value that half cannot hold.
    """
    stored, worst = {}, 0.0
    for name, tensor in tensors.items():
        source = tensor.detach().float()
        top = float(source.abs().max()) if source.numel() else 0.0
        if not top <= _HALF_MAX:
            raise UserError(f"'{name}' holds {top:.6g}, beyond half precision's {_HALF_MAX:.0f}; keep it in float32.")
        stored[name] = source.to(torch.float16)
        if top > 0:
            worst = max(worst, float((stored[name].float() - source).abs().max()) / top)
    return Quantised(stored, worst)


SCHEMES: dict[str, Callable[[Mapping[str, Tensor]], Quantised]] = {"fp16": to_half}


def quantise(tensors: Mapping[str, Tensor], scheme: str) -> Quantised:
    """Applies a scheme by name; a UserError lists the known ones."""
    if scheme not in SCHEMES:
        raise UserError(f"scheme={scheme} is unknown; choose one of {', '.join(SCHEMES)}.")
    return SCHEMES[scheme](tensors)


def without_target(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is deployed: everything but target Q."""
    return {name: t for name, t in tensors.items() if not name.startswith("target_q_heads.")}
