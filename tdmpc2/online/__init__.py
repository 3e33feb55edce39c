"""Learning while acting: episodes of the model in training, taken into a replay that its updates draw from."""

from tdmpc2.online.settings import OnlineSettings
from tdmpc2.online.source import OnlineSource

__all__ = ["OnlineSettings", "OnlineSource"]
