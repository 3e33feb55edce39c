"""Extraction of a policy from a frozen world model: what its prior is trained to do."""

from tdmpc2.extraction.imagined import Imagined, imagined
from tdmpc2.extraction.settings import ExtractionSettings

__all__ = ["ExtractionSettings", "Imagined", "imagined"]
