"""All randomness of an update, drawn outside of its losses.

Dropout's too: so an update is a plain function that gives the same numbers run eagerly, compiled, captured as a graph,
or shared out over several processes. Axes: H horizon, B batch, E heads, A action, M hidden width of Q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tdmpc2.model import ModelDims


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

    def of_slices(self, part: slice) -> UpdateNoise:
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
