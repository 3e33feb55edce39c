"""The world model's losses, as plain functions of a model and a batch (TD-MPC2, section 3.1; method: update).

Axes: H horizon, B batch, E heads, Z latent, O observation, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tdmpc2.losses.noise import UpdateNoise
from tdmpc2.losses.rollout import decay, picked_heads
from tdmpc2.losses.weights import LossWeights
from tdmpc2.model import WorldModel, two_hot_cross_entropy


@dataclass(frozen=True)
class WorldModelLosses:
    """Scalars, and the rolled-out latents [H+1, B, Z] that the policy update starts from."""

    consistency: Tensor
    reward: Tensor
    value: Tensor
    original: Tensor
    distillation: Tensor
    total: Tensor
    latents: Tensor


@torch.no_grad()
def td_targets(
    model: WorldModel,
    next_z: Tensor,
    reward: Tensor,
    task: Tensor | None,
    discount: Tensor,
    noise: UpdateNoise,
) -> Tensor:
    """TD targets [H, B, 1]: reward + gamma * min over two target heads at the policy's action.

    Args:
        next_z: [H, B, Z] encoded next observations.
        reward: [H, B, 1].
        task: int64 [B] or None.
        discount: gamma of each slice, [B, 1].
    """
    _, _, action = model.policy(next_z, task, noise.target_action)
    assert action is not None
    logits = model.q_values(next_z, action, task, target=True, heads=picked_heads(model, noise.target_heads))
    return reward + discount * model.decode(logits).amin(0)


def world_model_losses(
    model: WorldModel,
    obs: Tensor,
    action: Tensor,
    reward: Tensor,
    task: Tensor | None,
    discount: Tensor,
    weights: LossWeights,
    noise: UpdateNoise,
    teacher_reward: Tensor | None,
) -> WorldModelLosses:
    """Steps 1 to 4 of the update, and the reward distillation (TD-MPC-Opt, section 3).

    Args:
        obs, action, reward, task: a batch, see the module.
        discount: gamma of each slice, [B, 1].
        teacher_reward: the frozen teacher's rewards [B, 1] for (obs_0, action_0); None without a teacher.
    """
    horizon = action.shape[0]
    with torch.no_grad():
        next_z = model.encode(obs[1:], task)
    targets = td_targets(model, next_z, reward, task, discount, noise)

    z = model.encode(obs[0], task)
    latents = [z]
    for t in range(horizon):
        z = model.next(z, action[t], task)
        latents.append(z)
    states = torch.stack(latents)  # [H+1, B, Z]

    weight = decay(weights.rho, horizon, states)  # [H]
    consistency = (weight * (states[1:] - next_z).square().mean(dim=(1, 2))).mean()

    dims = model.dims
    reward_logits = model.reward(states[:-1], action, task)
    reward_ce = two_hot_cross_entropy(reward_logits, reward, dims.vmin, dims.vmax)
    reward_loss = (weight * reward_ce.mean(dim=(1, 2))).mean()

    q_logits = model.q_values(states[:-1], action, task, dropout=noise.value_dropout)  # [E, H, B, bins]
    value_ce = two_hot_cross_entropy(q_logits, targets.expand(q_logits.shape[0], -1, -1, -1), dims.vmin, dims.vmax)
    value_loss = (weight * value_ce.mean(dim=(0, 2, 3))).mean()

    original = (
        weights.consistency_coef * consistency + weights.reward_coef * reward_loss + weights.value_coef * value_loss
    )
    if teacher_reward is None:
        distillation = torch.zeros_like(original)
    else:
        distillation = F.mse_loss(model.decode(reward_logits[0]), teacher_reward)
    total = original + weights.d_coef * distillation
    return WorldModelLosses(consistency, reward_loss, value_loss, original, distillation, total, states.detach())
