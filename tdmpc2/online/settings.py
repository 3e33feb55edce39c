"""What an online run is told about acting and its replay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tdmpc2.errors import UserError
from tdmpc2.keys import TDMPC2, THIS_PROJECT, check_keys, key
from tdmpc2.ranges import MOST_ENVS, MOST_EPISODES, MOST_SCALE, MOST_STEPS, OneOf, Whole, Within
from tdmpc2.tasks import TaskSet

NEWT = "newt (arXiv 2511.19584)"


@dataclass(frozen=True)
class OnlineSettings:
    """How a model acts while it learns (TD-MPC2, section 3 and appendix; method: learning online).

    `save_replay` is the folder of the store that keeps every episode; None is one in the run's folder. `replay_from` is
    that of a store whose episodes the replay holds from the start; None is an empty replay.
    """

    utd: float | None = key(
        None,
        "of an online run: updates for each decision; null: 1 for one task, 0.15 for several",
        unit="updates per decision",
        source=f"{TDMPC2}; {NEWT}",
        check=Within(0, 1000, above=True),
    )
    seed_episodes: int = key(
        5,
        "of an online run: episodes of each task before the first update; the updates that they call for follow at "
        "once, but not for a model of a checkpoint, which so little data would spoil",
        unit="episodes",
        source=TDMPC2,
        check=Whole(1, MOST_EPISODES),
    )
    seed_behaviour: str | None = key(
        None,
        "what acts in these: uniform (random actions), oscillate (a sine in each action) or agent (the model itself, "
        "by act_with); null: uniform for new weights, agent for those of a checkpoint",
        unit="name",
        source=TDMPC2,
        check=OneOf(("uniform", "oscillate", "agent")),
    )
    buffer_size: int = key(
        1_000_000,
        "of an online run: transitions that the replay holds; the oldest episodes are dropped",
        unit="transitions",
        source=TDMPC2,
        check=Whole(1, MOST_STEPS),
    )
    buffer_storage: str = key(
        "memory",
        "where the replay lies: memory, or disk (files of the run's folder, mapped)",
        unit="name",
        source=THIS_PROJECT,
        check=OneOf(("memory", "disk")),
        names_run=False,
    )
    act_with: str = key(
        "planner",
        "what acts in an online run: planner (with exploration), prior (the policy prior's samples, at a hundredth of "
        "the cost) or mixed (each in whole episodes)",
        unit="name",
        source=TDMPC2,
        check=OneOf(("planner", "prior", "mixed")),
    )
    prior_share: float = key(
        0.5,
        "of act_with=mixed: share of the episodes that the prior acts in",
        unit="ratio",
        source=THIS_PROJECT,
        check=Within(0, 1),
    )
    prior_noise: float = key(
        0.2,
        "std of Gaussian noise added to the prior's actions in an online run, in which nothing else explores once its "
        "own std is small",
        unit="action units",
        source=THIS_PROJECT,
        check=Within(0, MOST_SCALE),
    )
    train_envs: int | None = key(
        None,
        "environments that an online run acts in at once; null: one for each task",
        unit="environments",
        source=f"{TDMPC2}; {NEWT}",
        check=Whole(1, MOST_ENVS),
    )
    save_replay: Path | None = None
    replay_from: Path | None = None

    def __post_init__(self) -> None:
        check_keys(self)

    def updates_per_decision(self, tasks: TaskSet) -> float:
        if self.utd is not None:
            return self.utd
        return 0.15 if tasks.multitask else 1.0

    def envs(self, tasks: TaskSet) -> int:
        return self.train_envs or len(tasks)

    def seed_decisions(self, tasks: TaskSet) -> int:
        """Decisions of all episodes before the first update."""
        return self.seed_episodes * sum(tasks.episode_steps)

    def check_steps(self, decisions: int, tasks: TaskSet) -> None:
        """Raises a `UserError` for a run that ends before its first update."""
        first = self.seed_decisions(tasks)
        if decisions < first:
            raise UserError(
                f"steps={decisions:,} decisions end before the first update: seed_episodes={self.seed_episodes} of "
                f"{len(tasks)} task{'s' if len(tasks) > 1 else ''} take {first:,}; raise steps, or lower seed_episodes."
            )

    def updates(self, decisions: int, tasks: TaskSet, *, trained: bool) -> int:
        """How many so many decisions call for; `trained`: the run starts from a checkpoint. None in the seed phase."""
        first = self.seed_decisions(tasks)
        if decisions < first:
            return 0
        return math.floor(self.updates_per_decision(tasks) * (decisions - (first if trained else 0)))
