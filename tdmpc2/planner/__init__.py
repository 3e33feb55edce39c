"""MPPI planning in the world model. Knows nothing of simulators or files.

Read `reference` first: the algorithm written plainly. `mppi` and `fused` compute the same decisions faster.
"""

from tdmpc2.planner.execution import PLANS
from tdmpc2.planner.mppi import Planner
from tdmpc2.planner.plan import Plan, PlanNoise
from tdmpc2.planner.reference import ReferencePlanner
from tdmpc2.planner.settings import PlannerSettings

__all__ = ["PLANS", "Plan", "PlanNoise", "Planner", "PlannerSettings", "ReferencePlanner"]
