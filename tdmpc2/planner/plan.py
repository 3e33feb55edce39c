"""What a decision is drawn from, and what it comes to.

Axes: N environments, S samples, P prior trajectories, H horizon, I iterations, E heads, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PlanNoise:
    """All randomness of one decision for N environments; normal unless said otherwise.

    Attributes:
        prior: [N, H, P, A] of the policy prior's trajectories.
        samples: [N, I, H, S - P, A] of the Gaussian ones.
        terminal: [N, I, S, A] of the terminal action.
        heads: uniform [N, I, E]; the two largest name the two Q heads.
        elite: uniform [N] in [0, 1); where it falls in the cumulated elite weights names the elite.
        action: [N, A] exploration noise.
        elite_rank: optional int64 [N], the elite to take (0 the best), instead of `elite`.
    """

    prior: Tensor
    samples: Tensor
    terminal: Tensor
    heads: Tensor
    elite: Tensor
    action: Tensor
    elite_rank: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """What a decision came to.

    Attributes:
        action: [N, A] to take, in [-1, 1].
        mean: [N, H, A], the warm start of the next decision.
        candidates: [N, I, H, S, A] and values [N, I, S], only when a trace was asked.
    """

    action: Tensor
    mean: Tensor
    candidates: Tensor | None = None
    values: Tensor | None = None
