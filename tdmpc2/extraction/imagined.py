"""The imagined return: what the policy prior earns in the world model, which its gradient passes through.

PWM (arXiv 2407.02466), section 4, with this model's own Q at the end, or a critic's (`critic.py`).

Axes: H steps, S states, E heads, A action, Z latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdmpc2.extraction.settings import ExtractionSettings
from tdmpc2.model import PolicySample, WorldModel


@dataclass(frozen=True)
class Imagined:
    """What came of S states.

    Attributes:
        value: [S, 1], the discounted rewards of H steps and Q after them, in gradient of the policy.
        scaled_entropy: scalar, the mean over steps and states.
        entropy: scalar, likewise, for the log; without gradient.
        spread: scalar, the mean standard deviation of Q over its heads; without gradient.
        first: the policy's sample in the states themselves.
        latents: [H+1, S, Z], the states and those that followed; without gradient.
        actions: [H+1, S, A], the policy's in each; likewise.
        rewards: [H, S, 1]; likewise.
    """

    value: Tensor
    scaled_entropy: Tensor
    entropy: Tensor
    spread: Tensor
    first: PolicySample
    latents: Tensor
    actions: Tensor
    rewards: Tensor


def imagined(
    model: WorldModel,
    z: Tensor,
    task: Tensor | None,
    gamma: Tensor,
    noise: Tensor,
    settings: ExtractionSettings,
) -> Imagined:
    """Follows the policy prior from latents.

    Args:
        model: frozen but for the policy head.
        z: [S, Z], detached.
        task: int64 [S] or None.
        gamma: [S, 1], of each state's task.
        noise: standard normal [H+1, S, A].
        settings: horizon, and what the terminal Q is.
    """
    samples, latents, rewards = [model.sample_policy(z, task, noise[0])], [z], []
    value, discount = torch.zeros_like(gamma), torch.ones_like(gamma)
    for drawn in noise[1:]:
        action = samples[-1].action
        rewards.append(model.decode(model.reward(z, action, task)))
        value = value + discount * rewards[-1]
        discount = discount * gamma
        z = model.next(z, action, task)
        latents.append(z)
        samples.append(model.sample_policy(z, task, drawn))
    heads = model.decode(model.q_values(z, samples[-1].action, task))  # [E, S, 1]
    spread = heads.std(dim=0)
    terminal = heads.mean(0) if settings.imagine_q == "mean" else heads.amin(0)
    return Imagined(
        value=value + discount * (terminal - settings.imagine_spread * spread),
        scaled_entropy=torch.stack([sample.scaled_entropy.mean() for sample in samples]).mean(),
        entropy=-torch.stack([sample.log_prob.detach().mean() for sample in samples]).mean(),
        spread=spread.detach().mean(),
        first=samples[0],
        latents=torch.stack([latent.detach() for latent in latents]),
        actions=torch.stack([sample.action.detach() for sample in samples]),
        rewards=torch.stack([reward.detach() for reward in rewards]),
    )
