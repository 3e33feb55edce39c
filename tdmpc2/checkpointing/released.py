"""Names and quirks of the published checkpoints, turned into this project's own tensor names.

Two generations exist (method: released models). Older files hold the value ensemble as `_Qs.params.0` to `.9`;
current ones name each tensor, add a detached copy of Q, the action masks, the policy's log std bounds, and entries
of tensordict that are no tensors. Either may be wrapped in {"model": ...}. Some are stored in half precision or as
torch.qint8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc2.errors import CheckpointError, printable

_LEAVES = {"weight": "weight", "bias": "bias", "ln.weight": "norm_weight", "ln.bias": "norm_bias"}
_PLAIN_PARTS = {
    "_encoder.state": "encoder",
    "_dynamics": "dynamics",
    "_reward": "reward_head",
    "_pi": "policy_head",
}
_ENSEMBLES = {
    "_Qs.params": "q_heads",
    "_target_Qs.params": "target_q_heads",
    "_target_Qs_params": "target_q_heads",
    "_detach_Qs_params": "detached_q_heads",
}
# Older files number an ensemble's tensors: four of each hidden layer, then the two of the output.
_NUMBERED = [
    f"layers.{layer}.{leaf}"
    for layer in range(3)
    for leaf in (("weight", "bias", "norm_weight", "norm_bias") if layer < 2 else ("weight", "bias"))
]
_DTYPES = {torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.qint8}
_FACT_DTYPES = _DTYPES - {torch.qint8} | {torch.int64}
_NUMBER = re.compile(r"[0-9]{1,4}")
_TENSORDICT_ENTRY = re.compile(r".*\.__(batch_size|device)$")


@dataclass(frozen=True)
class ReleasedWeights:
    """A published file's content under this project's names; `facts` are its non-weight tensors."""

    tensors: dict[str, Tensor]
    facts: dict[str, Tensor]
    stored_as: str


def own_name(released: str) -> str | None:
    """This project's name of a released tensor, or None if it is not one."""
    if released == "_task_emb.weight":
        return "task_embedding"
    for prefix, part in (*_PLAIN_PARTS.items(), *_ENSEMBLES.items()):
        if not released.startswith(prefix + "."):
            continue
        rest = released[len(prefix) + 1 :]
        if _NUMBER.fullmatch(rest):
            numbered = part in _ENSEMBLES.values() and int(rest) < len(_NUMBERED)
            return f"{part}.{_NUMBERED[int(rest)]}" if numbered else None
        layer, _, leaf = rest.partition(".")
        return f"{part}.layers.{layer}.{_LEAVES[leaf]}" if _NUMBER.fullmatch(layer) and leaf in _LEAVES else None
    return None


def from_released(path: Path, content: object) -> ReleasedWeights:
    """Renames and checks the content of a published file. Every entry is accounted for.

    Raises:
        CheckpointError: for content that is no released TD-MPC2 model, with the entries that do not belong.
    """
    weights = content
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        extra = sorted(str(k) for k in content if k != "model")
        if extra:
            found = printable(", ".join(extra[:5]))
            raise CheckpointError(f"{path}: besides 'model' it holds {found}; a released file has none.")
        weights = content["model"]
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{path}: holds a {type(weights).__name__}, expected a TD-MPC2 state dict.")

    tensors: dict[str, Tensor] = {}
    facts: dict[str, Tensor] = {}
    foreign: list[str] = []
    for key, value in weights.items():
        name = own_name(str(key))
        if isinstance(value, Tensor) and name is not None:
            if name in tensors:
                raise CheckpointError(f"{path}: '{printable(key)}' appears a second time under another name.")
            tensors[name] = value
        elif isinstance(value, Tensor) and key in ("_action_masks", "log_std_min", "log_std_dif"):
            facts[key] = value
        elif not _TENSORDICT_ENTRY.match(str(key)):
            foreign.append(str(key))
    if foreign or not tensors:
        found = printable(", ".join(foreign[:5])) if foreign else "nothing"
        raise CheckpointError(
            f"{path}: not a released TD-MPC2 model: "
            f"it holds {found}{' and more' if len(foreign) > 5 else ''}, "
            "expected entries such as '_encoder.state.0.weight'."
        )
    _check_types(path, tensors, facts)
    _drop_detached_copy(path, tensors)
    return ReleasedWeights(tensors, facts, _storage(tensors))


def _check_types(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Tensor]) -> None:
    for name, tensor in (*tensors.items(), *facts.items()):
        if tensor.dtype not in (_FACT_DTYPES if name in facts else _DTYPES):
            raise CheckpointError(f"{path}: '{name}' is stored as {tensor.dtype}, which a released model never is.")


def _drop_detached_copy(path: Path, tensors: dict[str, Tensor]) -> None:
    for name in [n for n in tensors if n.startswith("detached_q_heads.")]:
        copy = tensors.pop(name)
        original = tensors.get(name.replace("detached_q_heads", "q_heads"))
        if original is None or copy.dtype != original.dtype or not torch.equal(copy, original):
            raise CheckpointError(f"{path}: its detached copy of Q differs from Q at '{name}'; it is damaged.")


def _storage(tensors: Mapping[str, Tensor]) -> str:
    kinds = {str(t.dtype).removeprefix("torch.") for t in tensors.values()}
    return "+".join(sorted(kinds))


def dequantise(tensor: Tensor) -> Tensor:
    """Float32 values of a stored tensor: half and bfloat16 upcast, qint8 dequantised."""
    plain: Any = tensor.dequantize() if tensor.is_quantized else tensor
    return plain.to(torch.float32)
