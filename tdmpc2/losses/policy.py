"""The policy's loss on the rolled-out latents (TD-MPC2, section 3.1; method: update, step 6).

Axes: H horizon, B batch, Z latent, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tdmpc2.losses.noise import UpdateNoise
from tdmpc2.losses.rollout import decay, picked_heads
from tdmpc2.model import WorldModel


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
        heads=picked_heads(model, noise.policy_heads),
        dropout=noise.policy_dropout,
        frozen=True,
    )
    q = model.decode(logits).mean(0)  # [H+1, B, 1]
    weight = decay(rho, latents.shape[0], latents)
    return PolicyTerms(
        value=(weight * q.mean(dim=(1, 2))).mean(),
        scaled_entropy=(weight * sample.scaled_entropy.mean(dim=(1, 2))).mean(),
        entropy=-sample.log_prob.detach().mean(),
        first_q=q[0].detach(),
    )
