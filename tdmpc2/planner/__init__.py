"""MPPI planning in the world model. Knows nothing of simulators or files."""

from tdmpc2.planner.execution import PRECISIONS, PlanExecution
from tdmpc2.planner.mppi import Plan, Planner, PlanNoise
from tdmpc2.planner.settings import PlannerSettings

__all__ = ["PRECISIONS", "Plan", "PlanExecution", "PlanNoise", "Planner", "PlannerSettings"]
