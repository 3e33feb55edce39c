"""The planner's numbers, under the names of the released configuration."""

from __future__ import annotations

from dataclasses import dataclass

from tdmpc2.errors import UserError
from tdmpc2.memory import check_memory
from tdmpc2.ranges import MOST_ROUNDS, MOST_SCALE, MOST_SLICES, check_range, check_whole


@dataclass(frozen=True)
class PlannerSettings:
    """MPPI (TD-MPC2, appendix; method: planning).

    Attributes:
        horizon: H, steps a plan looks ahead; 1000 at most.
        iterations: rounds of sampling, 1000 at most; the papers take 8 where A >= 20, which no task here reaches.
        num_samples: S, trajectories valued in each round, the prior's included; 2**20 at most.
        num_elites: best trajectories that the next mean and std are made from.
        num_pi_trajs: P, trajectories drawn from the policy prior; they stay candidates in every round.
        min_std, max_std: bounds of the sampling std, in action units; max_std, 10**6 at most, is also the first
            round's.
        temperature: weight of an elite is softmax(temperature * value); 10**6 at most.
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
        for name, most in (
            ("horizon", MOST_ROUNDS),
            ("iterations", MOST_ROUNDS),
            ("num_samples", MOST_SLICES),
            ("num_elites", MOST_SLICES),
        ):
            check_whole(f"planner.{name}", getattr(self, name), 1, most)
        if not 0 <= self.num_pi_trajs <= self.num_samples:
            raise UserError(
                f"planner.num_pi_trajs={self.num_pi_trajs} must lie between 0 and num_samples={self.num_samples}."
            )
        check_whole("planner.num_pi_trajs", self.num_pi_trajs, 0, MOST_SLICES)
        if self.num_elites > self.num_samples:
            raise UserError(
                f"planner.num_elites={self.num_elites} is more than planner.num_samples={self.num_samples}."
            )
        if not 0 < self.min_std <= self.max_std:
            raise UserError(f"planner.min_std={self.min_std} must be above 0 and not above max_std={self.max_std}.")
        for name in ("min_std", "max_std", "temperature"):
            check_range(f"planner.{name}", getattr(self, name), 0, MOST_SCALE, above=True)

    def check_memory(self, action_dim: int, hidden: int, num_envs: int = 1) -> None:
        """Raises a `UserError` when the machine's memory cannot hold the plans of so many environments.

        Args:
            action_dim: A.
            hidden: numbers, of two bytes at the least, that a layer of the value ensemble holds for one trajectory.
            num_envs: environments whose noise is drawn before the first of them is planned.
        """
        gaussian = self.num_samples - self.num_pi_trajs
        drawn = self.iterations * (self.horizon * gaussian + self.num_samples) + self.horizon * self.num_pi_trajs
        held = self.horizon * self.num_samples
        keys = f"num_samples={self.num_samples}, horizon={self.horizon} and iterations={self.iterations}"
        check_memory(
            f"a plan of {keys}" if num_envs == 1 else f"plans of {keys} for num_envs={num_envs}",
            4 * (num_envs * drawn + held) * action_dim + 2 * self.num_samples * hidden,
            "choose fewer of them",
        )
