"""The choices of how work runs, and which of them a device supports for a purpose."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch

from tdmpc2.errors import UserError
from tdmpc2.keys import THIS_PROJECT, key

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

    Updates keep float32 weights, sums, normalisation and losses (torch's autocast); plans keep hidden activations in
    the precision of their products too. Plans on a CPU are compiled from C, all else by torch.compile.
    """

    compile: bool = key(
        False,
        "whether the planner's functions between products are compiled, each to one pass: a second, on CUDA more",
        unit="true or false",
        source=THIS_PROJECT,
    )
    cudagraphs: bool = key(
        False,
        "whether, on CUDA, a whole plan is captured as one graph for each number of environments",
        unit="true or false",
        source=THIS_PROJECT,
    )
    precision: str = key(
        "float32",
        "arithmetic of a plan's matrix products and hidden activations: float32, bfloat16, or on CUDA float16",
        unit="name",
        source=THIS_PROJECT,
    )

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
