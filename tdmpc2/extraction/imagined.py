"""The imagined return: what the policy prior earns in the world model, which its gradient passes through.

PWM (arXiv 2407.02466), section 4, with this model's own Q at the end. Axes: H steps, S states, E heads, A action, Z
latent.
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
        reached: [S, Z], the latents after H steps; without gradient.
    """

    value: Tensor
    scaled_entropy: Tensor
    entropy: Tensor
    spread: Tensor
    first: PolicySample
    reached: Tensor


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
    samples = [model.sample_policy(z, task, noise[0])]
    value, discount = torch.zeros_like(gamma), torch.ones_like(gamma)
    for drawn in noise[1:]:
        action = samples[-1].action
        value = value + discount * model.decode(model.reward(z, action, task))
        discount = discount * gamma
        z = model.next(z, action, task)
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
        reached=z.detach(),
    )
