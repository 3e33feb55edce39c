"""One short text that stands for a model's weights, whatever file they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from tdmpc2.model.world_model import WorldModel


def model_checksum(model: WorldModel, tasks: Sequence[str]) -> str:
    """16 hexadecimal digits over all that a prediction depends on.

    These are the weights, the bins' range, SimNorm's groups and the tasks' names in the order of their ids.
    """
    d = model.dims
    digest = hashlib.sha256(repr((tuple(tasks), d.vmin, d.vmax, d.simnorm_dim)).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(repr((name, tuple(value.shape), str(value.dtype))).encode())
        digest.update(_bytes(value))
    return digest.hexdigest()[:16]


def world_checksum(model: WorldModel, tasks: Sequence[str]) -> str:
    """Likewise over what planning uses but for the policy prior, whatever float type the weights are stored in.

    So it is the same before and after the prior alone was trained, and for a half precision file and its float32 copy.
    """
    d = model.dims
    digest = hashlib.sha256(repr(("world", tuple(tasks), d.vmin, d.vmax, d.simnorm_dim)).encode())
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith(("policy_head.", "target_q_heads.")):
            digest.update(repr((name, tuple(value.shape))).encode())
            digest.update(_bytes(value.float()))
    return digest.hexdigest()[:16]


def _bytes(value: Tensor) -> memoryview:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
