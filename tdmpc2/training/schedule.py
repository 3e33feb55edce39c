"""When a run logs, evaluates, saves and keeps its state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tdmpc2.training.settings import TrainSettings

Kind = Literal["log", "eval", "save", "state"]


@dataclass(frozen=True)
class Schedule:
    """What follows an update.

    Attributes:
        every: updates between two of a kind; 0 for never.
        steps: the last update, which all kinds follow that are done at all.
    """

    every: Mapping[Kind, int]
    steps: int

    @classmethod
    def of(cls, settings: TrainSettings) -> Schedule:
        """By the keys log_freq, eval_freq, save_freq and state_freq."""
        # Five checkpoints, as in the paper's figure 3, unless told otherwise.
        save = settings.save_freq or max(1, math.ceil(settings.updates / 5))
        every: dict[Kind, int] = {"log": settings.log_freq, "eval": settings.eval_freq, "save": save}
        return cls({**every, "state": settings.state_freq}, settings.updates)

    def due(self, step: int) -> set[Kind]:
        """What follows the update that ended at `step`."""
        return {kind for kind, count in self.every.items() if count and (step == self.steps or step % count == 0)}
