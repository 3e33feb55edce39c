"""Extraction of a policy from a frozen world model: what its prior is trained to do, and a planner's labels for it."""

from tdmpc2.extraction.critic import critic_loss, lambda_returns
from tdmpc2.extraction.imagined import Imagined, imagined
from tdmpc2.extraction.imitated import Imitation, imitation
from tdmpc2.extraction.planned import StateChoice, block_episodes, check_planned, plan_facts, plan_store
from tdmpc2.extraction.settings import PLANNED, ExtractionSettings

__all__ = [
    "PLANNED",
    "ExtractionSettings",
    "Imagined",
    "Imitation",
    "StateChoice",
    "block_episodes",
    "check_planned",
    "critic_loss",
    "imagined",
    "imitation",
    "lambda_returns",
    "plan_facts",
    "plan_store",
]
