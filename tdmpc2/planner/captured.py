"""Plans captured as CUDA graphs: one launch starts a whole plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]


class CapturedFunction:
    """A function of tensors, captured as one CUDA graph for inputs of these forms.

    Inputs are copied into the graph's own buffers, and outputs come as copies, valid for good. Random numbers are
    inputs: a captured plan draws none of its own.

    Args:
        function: must not wait for the device; all it reads besides its inputs must stay at its place in memory
            for as long as this object lives, and is kept alive by what `function` refers to.
        inputs: examples, of the forms that every call will have.
    """

    _WARM_UP = 2

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self._function = function
        self._inputs = [given.clone() for given in inputs]
        device = self._inputs[0].device
        current = torch.cuda.current_stream(device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(self._WARM_UP):  # libraries set themselves up, kernels compile: neither can be captured
                function(*self._inputs)
        current.wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._outputs = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)
