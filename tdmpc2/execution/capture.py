"""Work captured as CUDA graphs: one launch starts a whole update or a whole plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Named = dict[str, Tensor]


class CapturedFunction:
    """A function of tensors, run as one CUDA graph for inputs of the forms that it is captured with.

    A capture needs runs before it, on the stream that it takes place on: libraries set themselves up and kernels
    compile in them. A repeatable function is run on the first call's inputs again and again, and captured in that call;
    otherwise the first calls are those runs. Inputs of other forms than the captured ones are computed without it.

    Args:
        function: named tensors to named tensors. It must not wait for the device; all that it reads or changes
            besides its inputs must stay at its place in memory for as long as this object lives, and is kept alive by
            what `function` refers to.
        device: where it runs.
        generators: random numbers that it draws, besides those of torch's default generator.
        repeatable: it changes nothing, and draws nothing: running it once more does no harm.
        copy_outputs: return copies, valid for good, rather than the graph's buffers, which the next call overwrites.
    """

    _WARM_UP = 3

    def __init__(
        self,
        function: Callable[..., Named],
        device: torch.device,
        *,
        generators: Sequence[torch.Generator] = (),
        repeatable: bool,
        copy_outputs: bool,
    ) -> None:
        self._function = function
        self._generators = list(generators)
        self._repeatable = repeatable
        self._copy_outputs = copy_outputs
        self._stream = torch.cuda.Stream(device)
        self._runs = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Named = {}
        self._outputs: Named = {}

    def __call__(self, inputs: Mapping[str, Tensor]) -> Named:
        """What `function(**inputs)` returns."""
        if self._graph is None and (self._repeatable or self._runs == self._WARM_UP):
            self._capture(inputs)
        if self._graph is None or _forms(inputs) != _forms(self._inputs):
            self._runs += 1
            return self._run_on_stream(inputs)
        for name, buffer in self._inputs.items():
            buffer.copy_(inputs[name], non_blocking=True)
        self._graph.replay()
        return {name: out.clone() for name, out in self._outputs.items()} if self._copy_outputs else self._outputs

    def _run_on_stream(self, inputs: Mapping[str, Tensor]) -> Named:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = self._function(**inputs)
        current.wait_stream(self._stream)
        return outputs

    def _capture(self, inputs: Mapping[str, Tensor]) -> None:
        self._inputs = {name: given.clone() for name, given in inputs.items()}
        if self._repeatable:
            for _ in range(self._WARM_UP):
                self._run_on_stream(self._inputs)
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, stream=self._stream):
            self._outputs = self._function(**self._inputs)
        self._graph = graph


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (values.shape, values.dtype) for name, values in tensors.items()}
