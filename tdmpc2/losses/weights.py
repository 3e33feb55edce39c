"""The coefficients of an update's losses."""

from __future__ import annotations

from dataclasses import dataclass

from tdmpc2.keys import TDMPC2, check_keys, key
from tdmpc2.ranges import MOST_SCALE, Share, Within

_COEFFICIENT = Within(0, MOST_SCALE)


@dataclass(frozen=True)
class LossWeights:
    """Coefficients, under the names of the released configuration; distillation objectives have their own."""

    consistency_coef: float = key(
        20.0, "weight of the latents' consistency", unit="factor", source=TDMPC2, check=_COEFFICIENT
    )
    reward_coef: float = key(
        0.1, "weight of the rewards' cross entropy", unit="factor", source=TDMPC2, check=_COEFFICIENT
    )
    value_coef: float = key(
        0.1, "weight of the values' cross entropy", unit="factor", source=TDMPC2, check=_COEFFICIENT
    )
    entropy_coef: float = key(
        1e-4, "weight of the scaled entropy in the policy's loss", unit="factor", source=TDMPC2, check=_COEFFICIENT
    )
    rho: float = key(
        0.5,
        "base of a step's weight: step t of a slice counts rho**t",
        unit="ratio",
        source=TDMPC2,
        check=Share(zero=False),
    )

    def __post_init__(self) -> None:
        check_keys(self)
