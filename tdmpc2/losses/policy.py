"""The policy's loss on the rolled-out latents (TD-MPC2, section 3.1; method: update, step 6).

Axes: H horizon, B batch, Z latent, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.losses.noise import UpdateNoise
from tdmpc2.losses.rollout import decay, picked_heads
from tdmpc2.model import WorldModel
from tdmpc2.objectives import Objective, PolicyRollout


@dataclass(frozen=True)
class PolicyTerms:
    """What the policy's loss is made of, before the running scale is known.

    Attributes:
        value: [B], Q of each slice weighted rho^t over the H+1 latents.
        scaled_entropy: scalar, weighted likewise.
        entropy: scalar, the mean entropy, for the log.
        first_q: [B, 1] of the first step, which moves the running scale.
        distillation: loss of each objective of the policy that the batch has a target for, by name, not weighted.
        added: these, weighted by their coefficients; None without any.
    """

    value: Tensor
    scaled_entropy: Tensor
    entropy: Tensor
    first_q: Tensor
    distillation: dict[str, Tensor]
    added: Tensor | None

    def loss(self, scale: Tensor, entropy_coef: float) -> Tensor:
        """Minus Q over the running scale [1] or [B], minus the weighted entropy (TD-MPC2, section 3.1), and the
        objectives."""
        own = -((self.value / scale).mean() + entropy_coef * self.scaled_entropy)
        return own if self.added is None else own + self.added


def policy_terms(
    model: WorldModel,
    latents: Tensor,
    task: Tensor | None,
    rho: float,
    noise: UpdateNoise,
    objectives: tuple[Objective, ...] = (),
    batch: Batch | None = None,
) -> PolicyTerms:
    """Step 6 on the detached rollout `latents` [H+1, B, Z]. Gradients reach the policy head alone.

    `objectives` are those of distillation, of which the policy's are taken, with the targets in `batch`.
    """
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
    distillation: dict[str, Tensor] = {}
    added = None
    for objective in objectives:
        if objective.of_policy and batch is not None and objective.has_target(batch):
            rollout = PolicyRollout(latents, sample.mean, sample.log_std, weight)
            distillation[objective.name] = objective.policy_loss(model, batch, rollout)
            term = objective.coef * distillation[objective.name]
            added = term if added is None else added + term
    return PolicyTerms(
        value=(weight[:, None] * q.squeeze(-1)).mean(0),
        scaled_entropy=(weight * sample.scaled_entropy.mean(dim=(1, 2))).mean(),
        entropy=-sample.log_prob.detach().mean(),
        first_q=q[0].detach(),
        distillation=distillation,
        added=added,
    )
