"""The planner's numbers, under the names of the released configuration."""

from __future__ import annotations

from dataclasses import dataclass

from tdmpc2.errors import UserError
from tdmpc2.keys import TDMPC2, check_keys, key
from tdmpc2.memory import check_memory
from tdmpc2.ranges import MOST_ROUNDS, MOST_SCALE, MOST_SLICES, Whole, Within

_SCALE = Within(0, MOST_SCALE, above=True)


@dataclass(frozen=True)
class PlannerSettings:
    """MPPI (TD-MPC2, appendix; method: planning)."""

    horizon: int = key(
        3,
        "H: steps that a plan looks ahead, and steps of a training slice",
        unit="decisions",
        source=TDMPC2,
        check=Whole(1, MOST_ROUNDS),
    )
    iterations: int = key(
        6,
        "I: rounds of sampling; the papers take 8 where A >= 20, which no task here reaches",
        unit="rounds",
        source=TDMPC2,
        check=Whole(1, MOST_ROUNDS),
    )
    num_samples: int = key(
        512,
        "S: trajectories valued in each round, the prior's included",
        unit="trajectories",
        source=TDMPC2,
        check=Whole(1, MOST_SLICES),
    )
    num_elites: int = key(
        64,
        "best trajectories that the next mean and std are made from, num_samples at most",
        unit="trajectories",
        source=TDMPC2,
        check=Whole(1, MOST_SLICES),
    )
    num_pi_trajs: int = key(
        24,
        "P: trajectories drawn from the policy prior, which stay candidates in every round; num_samples at most",
        unit="trajectories",
        source=TDMPC2,
        check=Whole(0, MOST_SLICES),
    )
    min_std: float = key(
        0.05, "least std of the sampling, max_std at most", unit="action units", source=TDMPC2, check=_SCALE
    )
    max_std: float = key(
        2.0,
        "largest std of the sampling, and that of the first round",
        unit="action units",
        source=TDMPC2,
        check=_SCALE,
    )
    temperature: float = key(
        0.5,
        "factor of values in an elite's weight: softmax(temperature * value)",
        unit="1 / value",
        source=TDMPC2,
        check=_SCALE,
    )
    warm_start: bool = key(
        True,
        "whether a plan's first mean is the last plan's, shifted by a step; without, it is always 0",
        unit="true or false",
        source=TDMPC2,
    )

    def __post_init__(self) -> None:
        check_keys(self, "planner.", but=("num_pi_trajs", "min_std", "max_std"))  # their lines name both of a pair
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
        check_keys(self, "planner.")

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
