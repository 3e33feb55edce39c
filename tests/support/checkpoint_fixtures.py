"""Checkpoints of the small model: what this project says of them, and their published forms."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch
from model_fixtures import SMALL_DIMS, small_model, small_tasks

from tdmpc2.checkpointing import CheckpointMetadata

PREFIXES = {
    "encoder.layers": "_encoder.state",
    "dynamics.layers": "_dynamics",
    "reward_head.layers": "_reward",
    "policy_head.layers": "_pi",
}
LEAVES = {"weight": "weight", "bias": "bias", "norm_weight": "ln.weight", "norm_bias": "ln.bias"}
NUMBERS = [(i, leaf) for i in range(3) for leaf in LEAVES if i < 2 or "norm" not in leaf]


def metadata(**changes: Any) -> CheckpointMetadata:
    tasks = small_tasks()
    meta = CheckpointMetadata(tasks.name, tasks.tasks, SMALL_DIMS, None, 7, config={"lr": 3e-4, "name": "été"})
    return replace(meta, **changes)


def released(current: bool) -> OrderedDict[str, Any]:
    """The small model's weights as the public programs name them, older or current."""
    out: OrderedDict[str, Any] = OrderedDict()
    for name, tensor in small_model().state_dict().items():
        stem, _, leaf = name.rpartition(".")
        if name == "task_embedding":
            out["_task_emb.weight"] = tensor
        elif stem[:-2] in PREFIXES:
            out[f"{PREFIXES[stem[:-2]]}.{stem[-1]}.{LEAVES[leaf]}"] = tensor
        else:
            ensemble = {"q_heads": "_Qs", "target_q_heads": "_target_Qs"}[stem.split(".")[0]]
            layer = int(stem[-1])
            if not current:
                out[f"{ensemble}.params.{NUMBERS.index((layer, leaf))}"] = tensor
            elif ensemble == "_Qs":
                out[f"_Qs.params.{layer}.{LEAVES[leaf]}"] = tensor
                out[f"_detach_Qs_params.{layer}.{LEAVES[leaf]}"] = tensor.clone()
            else:
                out[f"_target_Qs_params.{layer}.{LEAVES[leaf]}"] = tensor
    if current:
        out |= {
            "_action_masks": torch.from_numpy(small_tasks().action_masks()),
            "log_std_min": torch.tensor(-10.0),
            "log_std_dif": torch.tensor(12.0),
        }
        for group in ("_Qs.params", "_target_Qs_params", "_detach_Qs_params"):
            out[f"{group}.__batch_size"] = torch.Size([3])
            out[f"{group}.__device"] = None
    return out
