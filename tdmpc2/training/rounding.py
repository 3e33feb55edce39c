"""Quantisation-aware training: a model whose weights are what a scheme stores of float ones.

The float weights are the optimisers' (`master`). All forward passes are of the model, so losses, targets, acting and
evaluations see what will be deployed; a gradient with respect to a rounded weight is taken for the float one's
(straight through: arXiv 1308.3432; no scheme with scales clips, so nothing is to be masked). The model is rounded where
weights change, outside of the losses: these stay the same functions, eager, compiled or captured.

Target Q is rounded too. Its float weights follow Q's float ones, and what a target is taken from is their rounding: a
late copy of the network that is trained, as without a scheme. Float targets would be the values of weights that no loss
has ever seen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch

from tdmpc2.model import WorldModel
from tdmpc2.quantisation import Scheme


class Rounding:
    """Rounds a model's weights by a scheme; the float ones live in a copy of it.

    Args:
        model: of float32 weights; from now on it holds the rounded ones.
        scheme: how the student will be stored.
    """

    def __init__(self, model: WorldModel, scheme: Scheme) -> None:
        self.master = copy.deepcopy(model)
        self._scheme = scheme
        self._model = model
        self.refresh()

    @torch.no_grad()
    def refresh(self, parts: Iterable[str] | None = None) -> None:
        """Rounds anew what has changed: the tensors of these parts of the model, or all. The host waits for nothing."""
        chosen = None if parts is None else frozenset(parts)
        rounded = self._model.state_dict()
        for name, tensor in self.master.state_dict().items():
            if chosen is None or name.partition(".")[0] in chosen:
                rounded[name].copy_(self._scheme.rounded(name, tensor))
