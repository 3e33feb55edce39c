"""Rollouts: controllers acting in many environments at once, for evaluation and for collecting data."""

from tdmpc2.rollout.controllers import AgentController, Controller, RandomController
from tdmpc2.rollout.episodes import Episode, Job, Rollout, Trajectory, UnderWay, check_jobs

__all__ = [
    "AgentController",
    "Controller",
    "Episode",
    "Job",
    "RandomController",
    "Rollout",
    "Trajectory",
    "UnderWay",
    "check_jobs",
]
