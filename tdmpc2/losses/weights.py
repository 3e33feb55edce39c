"""The coefficients of an update's losses."""

from __future__ import annotations

from dataclasses import dataclass

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
