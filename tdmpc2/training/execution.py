"""How an update runs: eagerly, compiled, or captured as a CUDA graph, and in which arithmetic."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.errors import UserError
from tdmpc2.keys import THIS_PROJECT, check_keys, key
from tdmpc2.model.capabilities import autocast_problem, compile_problem, half_product_problem
from tdmpc2.ranges import OneOf

PRECISIONS = ("float32", "bfloat16")
Step = Callable[[Batch], dict[str, Tensor]]


@dataclass(frozen=True)
class Execution:
    """The choices; the same update in each, but for rounding.

    bfloat16 products have float32 weights, sums, normalisation and losses (torch's autocast).
    """

    compile: bool = key(
        False,
        "whether torch.compile compiles the update's losses and gradients: a minute at the start, then faster; "
        "evaluations of the run plan eagerly",
        unit="true or false",
        source=THIS_PROJECT,
    )
    cudagraphs: bool = key(
        False,
        "whether the whole update is captured as one CUDA graph; evaluations of the run plan without",
        unit="true or false",
        source=THIS_PROJECT,
    )
    precision: str = key(
        "float32",
        "arithmetic of the update's matrix products, float32 or bfloat16; evaluations of the run plan in float32",
        unit="name",
        source=THIS_PROJECT,
        check=OneOf(PRECISIONS, message="{name}={value} is unknown for training; choose float32 or bfloat16."),
    )

    def __post_init__(self) -> None:
        check_keys(self)

    def arithmetic(self, device: torch.device) -> AbstractContextManager[object]:
        """Within it, matrix products have the chosen precision."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)

    def possible(self, device: torch.device) -> Execution:
        """These choices as far as the device and its compiler allow; one line says what is not possible.

        Raises:
            UserError: for CUDA graphs on another device, or bfloat16 products where they do not work: other
                arithmetic gives other numbers, which must not go by its name.
        """
        if self.cudagraphs and device.type != "cuda":
            raise UserError(f"cudagraphs=true needs a CUDA device, and this run is on {device.type}: leave it out.")
        if self.precision == "bfloat16":
            problem = autocast_problem(device)
            if problem is not None:
                raise UserError(f"precision=bfloat16 does not work here: {problem}; choose precision=float32.")
            if device.type == "cpu" and (slow := half_product_problem(torch.bfloat16)) is not None:
                print(f"precision=bfloat16 is slow here: {slow}; precision=float32 is faster.", file=sys.stderr)
        if not self.compile:
            return self
        problem = compile_problem(device)
        if problem is None:
            return self
        print(f"compile=true is not possible here, updates run eagerly: {problem}", file=sys.stderr)
        return Execution(False, self.cudagraphs, self.precision)


class CapturedStep:
    """An update captured as one CUDA graph: a batch is copied into its own buffers, then a single launch runs it.

    The first updates run normally on a stream of their own, as a capture needs; so does any batch of another form.
    Returned tensors are the graph's own, valid until the next update.

    Args:
        step: the update; all it reads and changes besides the batch must stay at its place in memory.
        generator: the random numbers that it draws.
    """

    _WARM_UP = 3

    def __init__(self, step: Step, generator: torch.Generator) -> None:
        self._step = step
        self._generator = generator
        self._stream = torch.cuda.Stream(generator.device)
        self._runs = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        if self._graph is None and self._runs == self._WARM_UP:
            self._capture(batch)
        if self._graph is None or _form(batch) != _form(self._batch):
            self._runs += 1
            return self._on_own_stream(batch)
        for own, given in zip(self._batch.tensors(), batch.tensors(), strict=True):
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._metrics

    def _on_own_stream(self, batch: Batch) -> dict[str, Tensor]:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            metrics = self._step(batch)
        current.wait_stream(self._stream)
        return metrics

    def _capture(self, batch: Batch) -> None:
        self._batch = batch.clone()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        with torch.cuda.graph(graph, stream=self._stream):
            self._metrics = self._step(self._batch)
        self._graph = graph


def _form(batch: Batch) -> list[tuple[torch.Size, torch.dtype]]:
    return [(values.shape, values.dtype) for values in batch.tensors()]
