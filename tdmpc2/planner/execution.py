"""What plans can run as on a device, and the functions that compiled plans run."""

from __future__ import annotations

import functools

import torch

from tdmpc2.execution import PRECISIONS, Execution, Purpose
from tdmpc2.execution.capabilities import compile_problem, half_product_problem
from tdmpc2.planner import kernels
from tdmpc2.planner.kernels import Kernels
from tdmpc2.planner.native import build_problem, native_kernels


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16 faster than it does in float32."""
    return half_product_problem(torch.bfloat16) is None


def _precision_problem(precision: str, device: torch.device) -> str | None:
    if precision == "float16" and device.type == "cpu":
        return "needs CUDA; on a CPU use bfloat16 or float32."
    return None


def _slow(precision: str, device: torch.device) -> str | None:
    if precision != "bfloat16" or device.type != "cpu" or cpu_has_bfloat16():
        return None
    return (
        "this CPU has no fast bfloat16 arithmetic, and numbers rounded to bfloat16 are multiplied in float32. "
        "precision=float32 is faster and more exact."
    )


def _compile_problem(device: torch.device) -> str | None:
    """A CPU's plans are compiled by the C compiler, others by torch's."""
    return build_problem() if device.type == "cpu" else compile_problem(device)


PLANS = Purpose(
    work="plans",
    asker="this agent",
    precisions=tuple(PRECISIONS),
    unknown=f"is unknown; choose one of {', '.join(PRECISIONS)}.",
    precision_problem=_precision_problem,
    slow=_slow,
    compile_problem=_compile_problem,
)


def kernels_for(execution: Execution, device: torch.device) -> Kernels:
    """The elementwise functions to plan with."""
    if not execution.compile:
        return Kernels()
    return native_kernels() if device.type == "cpu" else _compiled_kernels()


@functools.cache
def _compiled_kernels() -> Kernels:
    """Each compiled anew for the forms that it meets; all planners of the process use the same."""
    # One form each for a plan's rounds, its prior's trajectories and what is taken once, by number of environments.
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    return Kernels(
        norm_mish=torch.compile(kernels.norm_mish, dynamic=False),
        norm_simnorm=torch.compile(kernels.norm_simnorm, dynamic=False),
        expectation=torch.compile(kernels.expectation, dynamic=False),
        squashed=torch.compile(kernels.squashed, dynamic=False),
    )
