"""A model of many tasks made into one of some of them: the same function on these, in their widths.

What a task set pads is zero, so columns that only other tasks use can go; so can other tasks' embeddings. A single
task's model has no embedding: there its row, which no longer varies, becomes part of the biases behind it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tdmpc2.model import ALL_PARTS, ModelDims
from tdmpc2.tasks import TaskSet


def dims_of_fewer(dims: ModelDims, wanted: TaskSet) -> ModelDims:
    """The dimensions of a model made into one of these tasks."""
    kept = (len(wanted), dims.task_dim) if wanted.multitask else (0, 0)
    return replace(dims, obs_dim=wanted.obs_dim, action_dim=wanted.action_dim, num_tasks=kept[0], task_dim=kept[1])


def weights_of_fewer(weights: dict[str, Tensor], dims: ModelDims, had: TaskSet, wanted: TaskSet) -> dict[str, Tensor]:
    """The float weights of a model of `had`, for tasks that are all among them.

    Args:
        weights: a `WorldModel.state_dict()` of `dims`, whatever parts it has.
        dims: the model's.
        had: its tasks, two at least.
        wanted: those to keep, in any order.
    """
    rows = weights["task_embedding"][[had.index(task) for task in wanted.tasks]]
    made = dict(weights)
    if wanted.multitask:
        made["task_embedding"] = rows
    else:
        del made["task_embedding"]
    for part in ALL_PARTS:
        name = f"{part}.layers.0.weight"
        if name not in weights:
            continue
        first = dims.obs_dim if part == "encoder" else dims.latent_dim
        state, embedding, action = weights[name].split(
            [first, dims.task_dim, weights[name].shape[-1] - first - dims.task_dim], dim=-1
        )
        state = state[..., : wanted.obs_dim] if part == "encoder" else state
        kept = [state, *([embedding] if wanted.multitask else []), action[..., : wanted.action_dim]]
        made[name] = torch.cat(kept, -1)
        if not wanted.multitask:
            row = rows[0] / max(1.0, float(torch.linalg.vector_norm(rows[0])))
            made[f"{part}.layers.0.bias"] = weights[f"{part}.layers.0.bias"] + embedding @ row
    for name in ("policy_head.layers.2.weight", "policy_head.layers.2.bias"):
        if name in weights:
            mean, log_std = weights[name].chunk(2)
            made[name] = torch.cat([mean[: wanted.action_dim], log_std[: wanted.action_dim]])
    return {name: values.contiguous() for name, values in made.items()}
