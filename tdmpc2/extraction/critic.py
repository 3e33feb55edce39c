"""A critic of the policy's own, trained in imagination by TD(lambda) (PWM, arXiv 2407.02466, section 4).

It has the form of the model's Q and starts as a copy of it, where PWM learns a value of states from nothing. It knows
what the policy that is trained earns in this model; the model's own Q knows what its training data's policies earned.

Axes: H steps, S states, E heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tdmpc2.extraction.imagined import Imagined
from tdmpc2.extraction.settings import ExtractionSettings
from tdmpc2.model import WorldModel, two_hot_cross_entropy


@torch.no_grad()
def lambda_returns(
    model: WorldModel, found: Imagined, task: Tensor | None, gamma: Tensor, settings: ExtractionSettings
) -> Tensor:
    """What Q should be at each imagined step, [H, S, 1]: r + gamma ((1 - lambda) Q' + lambda times the next of these).

    Args:
        model: its target Q is the critic's target.
        found: imagined from S states.
        task: int64 [S] or None.
        gamma: [S, 1].
        settings: `critic_lambda`; `imagine_q` says what Q' is of all heads.
    """
    heads = model.decode(model.q_values(found.latents[1:], found.actions[1:], task, target=True))  # [E, H, S, 1]
    q = heads.mean(0) if settings.imagine_q == "mean" else heads.amin(0)
    after, returns = q[-1], []
    for reward, next_q in zip(found.rewards.flip(0), q.flip(0), strict=True):
        after = reward + gamma * ((1 - settings.critic_lambda) * next_q + settings.critic_lambda * after)
        returns.append(after)
    return torch.stack(returns[::-1])


def critic_loss(
    model: WorldModel, found: Imagined, task: Tensor | None, gamma: Tensor, settings: ExtractionSettings
) -> Tensor:
    """The mean cross entropy of the critic's Q, all heads, along what was imagined. Its gradient is the critic's alone.

    Arguments as `lambda_returns`; the model's Q is the critic.
    """
    targets = lambda_returns(model, found, task, gamma, settings)
    logits = model.q_values(found.latents[:-1], found.actions[:-1], task)  # [E, H, S, bins]
    targets = targets.expand(logits.shape[0], -1, -1, -1)
    return two_hot_cross_entropy(logits, targets, model.dims.vmin, model.dims.vmax).mean()
