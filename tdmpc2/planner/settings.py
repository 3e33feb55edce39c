"""The planner's numbers, under the names of the released configuration."""

from __future__ import annotations

from dataclasses import dataclass

from tdmpc2.errors import UserError


@dataclass(frozen=True)
class PlannerSettings:
    """MPPI (TD-MPC2, appendix; method: planning).

    Attributes:
        horizon: H, steps a plan looks ahead.
        iterations: rounds of sampling; the papers take 8 where A >= 20, which no task here reaches.
        num_samples: S, trajectories valued in each round, the prior's included.
        num_elites: best trajectories that the next mean and std are made from.
        num_pi_trajs: P, trajectories drawn from the policy prior; they stay candidates in every round.
        min_std, max_std: bounds of the sampling std, in action units; max_std is also the first round's.
        temperature: weight of an elite is softmax(temperature * value).
        warm_start: a plan's first mean is the last plan's, shifted by a step; without, always 0.
    """

    horizon: int = 3
    iterations: int = 6
    num_samples: int = 512
    num_elites: int = 64
    num_pi_trajs: int = 24
    min_std: float = 0.05
    max_std: float = 2.0
    temperature: float = 0.5
    warm_start: bool = True

    def __post_init__(self) -> None:
        for name in ("horizon", "iterations", "num_samples", "num_elites"):
            if getattr(self, name) < 1:
                raise UserError(f"planner.{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 <= self.num_pi_trajs <= self.num_samples:
            raise UserError(
                f"planner.num_pi_trajs={self.num_pi_trajs} must lie between 0 and num_samples={self.num_samples}."
            )
        if self.num_elites > self.num_samples:
            raise UserError(
                f"planner.num_elites={self.num_elites} is more than planner.num_samples={self.num_samples}."
            )
        if not 0 < self.min_std <= self.max_std:
            raise UserError(f"planner.min_std={self.min_std} must be above 0 and not above max_std={self.max_std}.")
        if self.temperature <= 0:
            raise UserError(f"planner.temperature must be above 0, not {self.temperature}.")
