"""Quantisation of trained students for deployment."""

from tdmpc2.quantisation.schemes import SCHEMES, Quantised, quantise, to_half, without_target

__all__ = ["SCHEMES", "Quantised", "quantise", "to_half", "without_target"]
