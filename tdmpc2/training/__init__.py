"""Training: preparing a run, the update, the loop, what a run writes, and the state it resumes from."""

from tdmpc2.training.ending import evaluate_end
from tdmpc2.training.execution import UPDATES
from tdmpc2.training.learner import Learner, OptimiserSettings
from tdmpc2.training.ranks import Ranks, joined, local_device
from tdmpc2.training.resuming import finished_run
from tdmpc2.training.settings import EndSettings, Resume, TrainSettings
from tdmpc2.training.trainer import TrainResult, train

__all__ = [
    "UPDATES",
    "EndSettings",
    "Learner",
    "OptimiserSettings",
    "Ranks",
    "Resume",
    "TrainResult",
    "TrainSettings",
    "evaluate_end",
    "finished_run",
    "joined",
    "local_device",
    "train",
]
