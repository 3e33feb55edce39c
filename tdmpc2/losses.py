"""The losses of an update, as plain functions of a model and a batch (TD-MPC2, section 3.1; method: update).

Axes: H horizon, B batch, E heads, Z latent, O observation, A action. A batch holds obs [H+1, B, O],
action [H, B, A], reward [H, B, 1] and task [B]. All randomness but dropout's is given from outside, as
`UpdateNoise`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tdmpc2.errors import UserError
from tdmpc2.model import ModelDims, WorldModel, two_hot_cross_entropy


@dataclass(frozen=True)
class LossWeights:
    """Coefficients, under the names of the released configuration."""

    consistency_coef: float = 20.0
    reward_coef: float = 0.1
    value_coef: float = 0.1
    d_coef: float = 0.0
    entropy_coef: float = 1e-4
    rho: float = 0.5

    def __post_init__(self) -> None:
        for name in ("consistency_coef", "reward_coef", "value_coef", "d_coef", "entropy_coef"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must be 0 or more, not {getattr(self, name)}.")
        if not 0 < self.rho <= 1:
            raise UserError(f"rho must lie in (0, 1], not {self.rho}.")


@dataclass(frozen=True)
class UpdateNoise:
    """Randomness of one update.

    Attributes:
        target_action: normal [H, B, A], of the actions that TD targets are taken at.
        target_heads: int64 [2], the target Q heads whose minimum is taken.
        policy_action: normal [H+1, B, A], of the policy update's actions.
        policy_heads: int64 [2], the Q heads whose mean the policy maximises.
    """

    target_action: Tensor
    target_heads: Tensor
    policy_action: Tensor
    policy_heads: Tensor

    @staticmethod
    def draw(dims: ModelDims, horizon: int, batch_size: int, generator: torch.Generator) -> UpdateNoise:
        """Drawn on the generator's device, without the host waiting for it."""
        device = generator.device

        def normal(steps: int) -> Tensor:
            return torch.randn(steps, batch_size, dims.action_dim, generator=generator, device=device)

        def heads() -> Tensor:
            return torch.rand(dims.num_q, generator=generator, device=device).topk(2).indices

        return UpdateNoise(normal(horizon), heads(), normal(horizon + 1), heads())


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
    logits = model.q_values(next_z, action, task, target=True)[noise.target_heads]
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

    decay = _decay(weights.rho, horizon, states)  # [H]
    consistency = (decay * (states[1:] - next_z).square().mean(dim=(1, 2))).mean()

    dims = model.dims
    reward_logits = model.reward(states[:-1], action, task)
    reward_ce = two_hot_cross_entropy(reward_logits, reward, dims.vmin, dims.vmax)
    reward_loss = (decay * reward_ce.mean(dim=(1, 2))).mean()

    q_logits = model.q_values(states[:-1], action, task)  # [E, H, B, bins]
    value_ce = two_hot_cross_entropy(q_logits, targets.expand(q_logits.shape[0], -1, -1, -1), dims.vmin, dims.vmax)
    value_loss = (decay * value_ce.mean(dim=(0, 2, 3))).mean()

    original = (
        weights.consistency_coef * consistency + weights.reward_coef * reward_loss + weights.value_coef * value_loss
    )
    if teacher_reward is None:
        distillation = torch.zeros_like(original)
    else:
        distillation = F.mse_loss(model.decode(reward_logits[0]), teacher_reward)
    total = original + weights.d_coef * distillation
    return WorldModelLosses(consistency, reward_loss, value_loss, original, distillation, total, states.detach())


@dataclass(frozen=True)
class PolicyLosses:
    """Scalars: the policy's loss, its mean entropy, and the running scale [1] that divided Q."""

    loss: Tensor
    entropy: Tensor
    scale: Tensor


def policy_loss(
    model: WorldModel,
    latents: Tensor,
    task: Tensor | None,
    scale: RunningScale,
    weights: LossWeights,
    noise: UpdateNoise,
) -> PolicyLosses:
    """Step 6: minus Q over the running scale, minus the scaled entropy, weighted rho^t over the H+1 latents.

    The running scale takes in the first step's Q before it divides. The caller takes gradients with respect to
    the policy's parameters alone, so none is left on Q or on the task embedding.
    """
    sample = model.sample_policy(latents, task, noise.policy_action)
    logits = model.q_values(latents, sample.action, task)[noise.policy_heads]
    q = model.decode(logits).mean(0)  # [H+1, B, 1]
    scale.update(q[0].detach())
    objective = q / scale.value + weights.entropy_coef * sample.scaled_entropy
    decay = _decay(weights.rho, latents.shape[0], latents)
    loss = -(decay * objective.mean(dim=(1, 2))).mean()
    return PolicyLosses(loss, -sample.log_prob.detach().mean(), scale.value.detach().clone())


class RunningScale:
    """The 5th to 95th percentile range of Q, at least 1, moved by `tau` at each update (TD-MPC2, appendix).

    `value` is a tensor [1] changed in place, so that it can live in a captured graph.
    """

    def __init__(self, tau: float, device: torch.device | str = "cpu") -> None:
        self.tau = tau
        self.value = torch.ones(1, device=device)

    @torch.no_grad()
    def update(self, q: Tensor) -> None:
        """Takes in one batch of values, any shape."""
        ordered = q.flatten().float().sort().values
        low, high = (_percentile(ordered, share) for share in (0.05, 0.95))
        self.value.lerp_((high - low).clamp(min=1.0), self.tau)


def _percentile(ordered: Tensor, share: float) -> Tensor:
    """Linear interpolation between the two nearest ranks of sorted values [n]."""
    position = share * (ordered.numel() - 1)
    below = int(position)
    above = min(below + 1, ordered.numel() - 1)
    return torch.lerp(ordered[below], ordered[above], position - below)


def _decay(rho: float, steps: int, like: Tensor) -> Tensor:
    return rho ** torch.arange(steps, device=like.device, dtype=like.dtype)
