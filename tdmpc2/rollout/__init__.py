"""Rollouts: controllers acting in many environments at once, for evaluation and for collecting data."""

from tdmpc2.rollout.controllers import AgentController, Controller, RandomController
from tdmpc2.rollout.episodes import Episode, Job, Trajectory, check_jobs, run_episodes

__all__ = [
    "AgentController",
    "Controller",
    "Episode",
    "Job",
    "RandomController",
    "Trajectory",
    "check_jobs",
    "run_episodes",
]
