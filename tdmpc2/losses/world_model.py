"""The world model's losses, as plain functions of a model and a batch (TD-MPC2, section 3.1; method: update).

Axes: H horizon, B batch, E heads, Z latent, O observation, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.losses.noise import UpdateNoise
from tdmpc2.losses.rollout import decay, picked_heads
from tdmpc2.losses.weights import LossWeights
from tdmpc2.model import WorldModel, two_hot_cross_entropy
from tdmpc2.objectives import Objective, Rollout, task_of


@dataclass(frozen=True)
class LossTerms:
    """What the total is made of: the coefficients of the world model's own losses, and the distillation objectives."""

    weights: LossWeights
    objectives: tuple[Objective, ...] = ()


@dataclass(frozen=True)
class WorldModelLosses:
    """Scalars, and the rolled-out latents [H+1, B, Z] that the policy update starts from.

    Attributes:
        original: the world model's own losses, weighted.
        distillation: loss of each objective that the batch has a target for, by name, not weighted.
        total: original, and the objectives weighted by their coefficients.
    """

    consistency: Tensor
    reward: Tensor
    value: Tensor
    original: Tensor
    distillation: dict[str, Tensor]
    total: Tensor
    latents: Tensor


@torch.no_grad()
def td_targets(model: WorldModel, next_z: Tensor, batch: Batch, discounts: Tensor, noise: UpdateNoise) -> Tensor:
    """TD targets [H, B, 1]: reward + gamma * min over two target heads at the policy's action.

    Args:
        next_z: [H, B, Z] encoded next observations.
        batch: gives rewards and tasks.
        discounts: gamma of each task, [tasks].
    """
    task = task_of(model, batch)
    _, _, action = model.policy(next_z, task, noise.target_action)
    assert action is not None
    logits = model.q_values(next_z, action, task, target=True, heads=picked_heads(model, noise.target_heads))
    return batch.reward + discounts[batch.task].unsqueeze(-1) * model.decode(logits).amin(0)


def world_model_losses(
    model: WorldModel, batch: Batch, discounts: Tensor, terms: LossTerms, noise: UpdateNoise
) -> WorldModelLosses:
    """Steps 1 to 4 of the update, and the distillation objectives (TD-MPC-Opt, section 3).

    Args:
        batch: slices, with what a teacher says of them for the objectives that need it.
        discounts: gamma of each task, [tasks].
        terms: coefficients and objectives.
    """
    task, horizon = task_of(model, batch), batch.action.shape[0]
    dims, weights = model.dims, terms.weights

    # -- 1: targets, without gradient ---------------------------------------------------------------------------
    with torch.no_grad():
        next_z = model.encode(batch.obs[1:], task)
    targets = td_targets(model, next_z, batch, discounts, noise)

    # -- 2: rollout from the encoded first observation ----------------------------------------------------------
    latents = [model.encode(batch.obs[0], task)]
    for t in range(horizon):
        latents.append(model.next(latents[-1], batch.action[t], task))
    z = torch.stack(latents)  # [H+1, B, Z]

    # -- 3: consistency, reward and value, weighted rho^t over the steps ----------------------------------------
    weight = decay(weights.rho, horizon, z)  # [H]
    consistency = (weight * (z[1:] - next_z).square().mean(dim=(1, 2))).mean()
    reward_logits = model.reward(z[:-1], batch.action, task)
    reward_ce = two_hot_cross_entropy(reward_logits, batch.reward, dims.vmin, dims.vmax)
    reward = (weight * reward_ce.mean(dim=(1, 2))).mean()
    q_logits = model.q_values(z[:-1], batch.action, task, dropout=noise.value_dropout)  # [E, H, B, bins]
    value_ce = two_hot_cross_entropy(q_logits, targets.expand(q_logits.shape[0], -1, -1, -1), dims.vmin, dims.vmax)
    value = (weight * value_ce.mean(dim=(0, 2, 3))).mean()

    # -- 4: the total, with what the objectives add -------------------------------------------------------------
    original = weights.consistency_coef * consistency + weights.reward_coef * reward + weights.value_coef * value
    total = original
    rollout = Rollout(z, reward_logits, q_logits, decay(weights.rho, horizon + 1, z))
    distillation = {}
    for objective in terms.objectives:
        if not objective.of_policy and objective.has_target(batch):
            distillation[objective.name] = objective.loss(model, batch, rollout)
            total = total + objective.coef * distillation[objective.name]
    return WorldModelLosses(consistency, reward, value, original, distillation, total, z.detach())
