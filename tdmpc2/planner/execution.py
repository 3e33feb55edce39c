"""How a plan is computed: in which arithmetic, eagerly or compiled, and on CUDA captured as a graph."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, replace

import torch

from tdmpc2.errors import UserError
from tdmpc2.keys import THIS_PROJECT, check_keys, key
from tdmpc2.model.capabilities import compile_problem, half_product_problem
from tdmpc2.planner import kernels
from tdmpc2.planner.kernels import Kernels
from tdmpc2.planner.native import build_problem, native_kernels
from tdmpc2.ranges import OneOf

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class PlanExecution:
    """The choices; the same plan in each, but for rounding.

    On a CPU the compiled functions are built from C in under a second, on CUDA by torch.compile, which takes seconds at
    the first plan.
    """

    precision: str = key(
        "float32",
        "arithmetic of a plan's matrix products and hidden activations: float32, bfloat16, or on CUDA float16",
        unit="name",
        source=THIS_PROJECT,
        check=OneOf(tuple(PRECISIONS)),
    )
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

    def __post_init__(self) -> None:
        check_keys(self)

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    def check(self, device: torch.device) -> None:
        """Raises a `UserError` for float16 or CUDA graphs on a CPU."""
        if device.type == "cpu" and self.precision == "float16":
            raise UserError("precision=float16 needs CUDA; on a CPU use bfloat16 or float32.")
        if device.type == "cpu" and self.cudagraphs:
            raise UserError("cudagraphs=true needs a CUDA device, and this agent is on cpu: leave it out.")

    def possible(self, device: torch.device) -> PlanExecution:
        """These choices, checked, as far as the compiler allows; one line says what is slow or not possible."""
        self.check(device)
        if device.type == "cpu" and self.precision == "bfloat16" and not cpu_has_bfloat16():
            print(
                "precision=bfloat16 is slow here: this CPU has no fast bfloat16 arithmetic, and numbers rounded to "
                "bfloat16 are multiplied in float32. precision=float32 is faster and more exact.",
                file=sys.stderr,
            )
        if self.compile and (problem := _problem(device)) is not None:
            print(f"compile=true is not possible here, plans run eagerly: {problem}", file=sys.stderr)
            return replace(self, compile=False)
        return self

    def kernels(self, device: torch.device) -> Kernels:
        """The elementwise functions to plan with."""
        if not self.compile:
            return Kernels()
        return native_kernels() if device.type == "cpu" else _compiled_kernels()


def _problem(device: torch.device) -> str | None:
    """Why nothing can be compiled for a device, in one line."""
    return build_problem() if device.type == "cpu" else compile_problem(device)


@functools.cache
def _compiled_kernels() -> Kernels:
    """Each compiled anew for the forms that it meets; shared by all planners of the process."""
    # One form each for a plan's rounds, its prior's trajectories and the shares, for every number of environments.
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    return Kernels(
        norm_mish=torch.compile(kernels.norm_mish, dynamic=False),
        norm_simnorm=torch.compile(kernels.norm_simnorm, dynamic=False),
        expectation=torch.compile(kernels.expectation, dynamic=False),
        squashed=torch.compile(kernels.squashed, dynamic=False),
    )


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16 faster than it does in float32."""
    return half_product_problem(torch.bfloat16) is None
