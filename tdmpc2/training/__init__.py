"""Training: the update, the run around it, and the state it resumes from."""

from tdmpc2.training.execution import UPDATES
from tdmpc2.training.learner import Learner, OptimiserSettings
from tdmpc2.training.peers import Peers, joined, local_device
from tdmpc2.training.settings import Resume, TrainSettings
from tdmpc2.training.trainer import TrainResult, finished_run, train

__all__ = [
    "UPDATES",
    "Learner",
    "OptimiserSettings",
    "Peers",
    "Resume",
    "TrainResult",
    "TrainSettings",
    "finished_run",
    "joined",
    "local_device",
    "train",
]
