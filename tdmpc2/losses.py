"""The losses of an update, as plain functions of a model and a batch (TD-MPC2, section 3.1; method: update).

Axes: H horizon, B batch, E heads, Z latent, O observation, A action. A batch holds obs [H+1, B, O],
action [H, B, A], reward [H, B, 1] and task [B]. All randomness, dropout's too, is given from outside, as
`UpdateNoise`: an update is a plain function that gives the same numbers run eagerly, compiled, captured as a
graph, or shared out over several processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tdmpc2.model import ModelDims, WorldModel, two_hot_cross_entropy
from tdmpc2.ranges import MOST_SCALE, check_range, check_share


@dataclass(frozen=True)
class LossWeights:
    """Coefficients, under the names of the released configuration: 0 to 10**6, and rho in (0, 1]."""

    consistency_coef: float = 20.0
    reward_coef: float = 0.1
    value_coef: float = 0.1
    d_coef: float = 0.0
    entropy_coef: float = 1e-4
    rho: float = 0.5

    def __post_init__(self) -> None:
        for name in ("consistency_coef", "reward_coef", "value_coef", "d_coef", "entropy_coef"):
            check_range(name, getattr(self, name), 0, MOST_SCALE)
        check_share("rho", self.rho, zero=False)


@dataclass(frozen=True)
class UpdateNoise:
    """Randomness of one update.

    Attributes:
        target_action: normal [H, B, A], of the actions that TD targets are taken at.
        target_heads: int64 [2], the target Q heads whose minimum is taken.
        policy_action: normal [H+1, B, A], of the policy update's actions.
        policy_heads: int64 [2], the Q heads whose mean the policy maximises.
        value_dropout: factors [E, H, B, M] on Q's first hidden layer in the value loss; None without dropout.
        policy_dropout: factors [2, H+1, B, M] on that of the policy's two heads; None without dropout.
    """

    target_action: Tensor
    target_heads: Tensor
    policy_action: Tensor
    policy_heads: Tensor
    value_dropout: Tensor | None = None
    policy_dropout: Tensor | None = None

    @staticmethod
    def draw(dims: ModelDims, horizon: int, batch_size: int, generator: torch.Generator) -> UpdateNoise:
        """Drawn on the generator's device, without the host waiting for it."""
        device = generator.device

        def normal(steps: int) -> Tensor:
            return torch.randn(steps, batch_size, dims.action_dim, generator=generator, device=device)

        def heads() -> Tensor:
            return torch.rand(dims.num_q, generator=generator, device=device).topk(2).indices

        def factors(stack: int, steps: int) -> Tensor | None:
            return dropout_factors((stack, steps, batch_size, dims.mlp_dim), dims.dropout, generator)

        return UpdateNoise(
            normal(horizon),
            heads(),
            normal(horizon + 1),
            heads(),
            factors(dims.num_q, horizon),
            factors(2, horizon + 1),
        )

    def share(self, part: slice) -> UpdateNoise:
        """That of some slices of the batch, for a process that updates on those alone."""

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[..., part, :].contiguous()

        target, policy = self.target_action[:, part].contiguous(), self.policy_action[:, part].contiguous()
        dropped = cut(self.value_dropout), cut(self.policy_dropout)
        return UpdateNoise(target, self.target_heads, policy, self.policy_heads, *dropped)


def dropout_factors(shape: tuple[int, ...], rate: float, generator: torch.Generator) -> Tensor | None:
    """Factors of inverted dropout, each 0 with probability `rate` and else 1 / (1 - rate); None for a rate of 0.

    Only what is dropped is drawn: the gaps between dropped units are geometric. At a rate of 1% that takes
    a hundredth of the random numbers.
    """
    if rate == 0:
        return None
    count = math.prod(shape)
    # Eight standard deviations beyond the expected number: the gaps end early once in 10^15 updates.
    draws = int(count * rate + 8 * math.sqrt(count * rate)) + 32
    uniform = torch.rand(draws, dtype=torch.float64, generator=generator, device=generator.device)
    gaps = torch.log1p(-uniform).div_(math.log1p(-rate)).floor_().add_(1)
    dropped = gaps.cumsum(0).sub_(1).clamp_(max=count).long()
    factors = torch.full((count + 1,), 1 / (1 - rate), device=generator.device)  # the last one takes the overhang
    return factors.index_fill_(0, dropped, 0.0)[:count].view(shape)


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
    logits = model.q_values(next_z, action, task, target=True, heads=_some(model, noise.target_heads))
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

    q_logits = model.q_values(states[:-1], action, task, dropout=noise.value_dropout)  # [E, H, B, bins]
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
class PolicyTerms:
    """What the policy's loss is made of, before the running scale is known.

    Attributes:
        value: scalar, Q weighted rho^t over the H+1 latents.
        scaled_entropy: scalar, weighted likewise.
        entropy: scalar, the mean entropy, for the log.
        first_q: [B, 1] of the first step, which moves the running scale.
    """

    value: Tensor
    scaled_entropy: Tensor
    entropy: Tensor
    first_q: Tensor

    def loss(self, scale: Tensor, entropy_coef: float) -> Tensor:
        """Minus Q over the running scale, minus the weighted entropy (TD-MPC2, section 3.1)."""
        return -(self.value / scale.squeeze() + entropy_coef * self.scaled_entropy)


def policy_terms(
    model: WorldModel, latents: Tensor, task: Tensor | None, rho: float, noise: UpdateNoise
) -> PolicyTerms:
    """Step 6 on the detached rollout `latents` [H+1, B, Z]. Gradients reach the policy head alone."""
    sample = model.sample_policy(latents, task, noise.policy_action)
    logits = model.q_values(
        latents,
        sample.action,
        task,
        heads=_some(model, noise.policy_heads),
        dropout=noise.policy_dropout,
        frozen=True,
    )
    q = model.decode(logits).mean(0)  # [H+1, B, 1]
    decay = _decay(rho, latents.shape[0], latents)
    return PolicyTerms(
        value=(decay * q.mean(dim=(1, 2))).mean(),
        scaled_entropy=(decay * sample.scaled_entropy.mean(dim=(1, 2))).mean(),
        entropy=-sample.log_prob.detach().mean(),
        first_q=q[0].detach(),
    )


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


def _some(model: WorldModel, heads: Tensor) -> Tensor | None:
    """Two heads of two are all of them, and their order does not matter: no weights need to be picked."""
    return heads if model.dims.num_q > 2 else None


def _decay(rho: float, steps: int, like: Tensor) -> Tensor:
    return rho ** torch.arange(steps, device=like.device, dtype=like.dtype)
