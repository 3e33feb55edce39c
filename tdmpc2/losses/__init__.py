"""The losses of an update, and what they need from outside. Knows models and objectives, nothing of files or runs."""

from tdmpc2.losses.noise import UpdateNoise, dropout_factors
from tdmpc2.losses.policy import PolicyTerms, policy_terms
from tdmpc2.losses.running_scale import RunningScale
from tdmpc2.losses.weights import LossWeights
from tdmpc2.losses.world_model import LossTerms, WorldModelLosses, td_targets, world_model_losses

__all__ = [
    "LossTerms",
    "LossWeights",
    "PolicyTerms",
    "RunningScale",
    "UpdateNoise",
    "WorldModelLosses",
    "dropout_factors",
    "policy_terms",
    "td_targets",
    "world_model_losses",
]
