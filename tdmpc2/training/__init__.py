"""Training: the update, the run around it, and the state it resumes from."""

from tdmpc2.training.execution import Execution
from tdmpc2.training.learner import Learner, OptimiserSettings
from tdmpc2.training.peers import Peers, joined, local_device
from tdmpc2.training.trainer import TrainResult, TrainSettings, train

__all__ = [
    "Execution",
    "Learner",
    "OptimiserSettings",
    "Peers",
    "TrainResult",
    "TrainSettings",
    "joined",
    "local_device",
    "train",
]
