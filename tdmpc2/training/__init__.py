"""Training: the update, the run around it, and the state it resumes from."""

from tdmpc2.training.learner import Learner, OptimiserSettings
from tdmpc2.training.trainer import TrainResult, TrainSettings, train

__all__ = ["Learner", "OptimiserSettings", "TrainResult", "TrainSettings", "train"]
