"""The choices of how work runs, and which of them a device supports for a purpose."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch

from tdmpc2.errors import UserError

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Purpose:
    """A kind of work, and how it finds out what a device can do for it: `training.UPDATES` and `planner.PLANS`.

    Attributes:
        work: the word for it in messages, "plans".
        asker: what computes it in messages, "this agent".
        precisions: names of those that it knows.
        unknown: what is said of any other: the end of a sentence that begins with "precision=int8".
        precision_problem: why a device cannot take products of a precision: the end of such a sentence, or None.
        slow: why it takes them slowly, and what to do: follows "precision=bfloat16 is slow here: "; or None.
        compile_problem: why nothing can be compiled for a device, in one line, or None.
    """

    work: str
    asker: str
    precisions: tuple[str, ...]
    unknown: str
    precision_problem: Callable[[str, torch.device], str | None]
    slow: Callable[[str, torch.device], str | None]
    compile_problem: Callable[[torch.device], str | None]

    def check_precision(self, precision: str) -> None:
        """Raises a `UserError` for a name that this work does not know; asks no device."""
        if precision not in self.precisions:
            raise UserError(f"precision={precision} {self.unknown}")


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The choices; the same update or plan in each, but for rounding.

    Attributes:
        compile: updates: torch.compile the losses and their gradients. Plans: the functions between products each in
            one pass, on a CPU built from C in under a second, on CUDA by torch.compile.
        cudagraphs: capture a whole update, or a whole plan for each number of environments, as one CUDA graph, which
            then starts with a single launch.
        precision: of matrix products: float32 or bfloat16, and for plans on CUDA float16. Updates keep float32
            weights, sums, normalisation and losses (torch's autocast); plans keep hidden activations in it too.
    """

    compile: bool = False
    cudagraphs: bool = False
    precision: str = "float32"

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    def arithmetic(self, device: torch.device) -> AbstractContextManager[object]:
        """Within it, an update's matrix products have the chosen precision."""
        return nullcontext() if self.precision == "float32" else torch.autocast(device.type, self.dtype)

    def check(self, device: torch.device, purpose: Purpose) -> None:
        """Refuses what a device cannot do and what must not be replaced.

        Raises:
            UserError: for CUDA graphs on another device, or a precision that is unknown or does not work there: other
                arithmetic gives other numbers, which must not go by its name.
        """
        purpose.check_precision(self.precision)
        problem = purpose.precision_problem(self.precision, device)
        if problem is not None:
            raise UserError(f"precision={self.precision} {problem}")
        if self.cudagraphs and device.type != "cuda":
            raise UserError(
                f"cudagraphs=true needs a CUDA device, and {purpose.asker} is on {device.type}: leave it out."
            )

    def supported_on(self, device: torch.device, purpose: Purpose) -> Execution:
        """These choices, checked, as far as the device's compiler allows; a line each says what is slow or left out.

        What no flag can tell is tried once (`capabilities`). Raises as `check`.
        """
        self.check(device, purpose)
        slow = purpose.slow(self.precision, device)
        if slow is not None:
            print(f"precision={self.precision} is slow here: {slow}", file=sys.stderr)
        if not self.compile:
            return self
        problem = purpose.compile_problem(device)
        if problem is None:
            return self
        print(f"compile=true is not possible here, {purpose.work} run eagerly: {problem}", file=sys.stderr)
        return replace(self, compile=False)
