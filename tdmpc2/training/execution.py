"""What the updates of a training run can run as on a device."""

from __future__ import annotations

import torch

from tdmpc2.execution import Purpose
from tdmpc2.execution.capabilities import autocast_problem, compile_problem, half_product_problem

_PRECISIONS = ("float32", "bfloat16")


def _precision_problem(precision: str, device: torch.device) -> str | None:
    """Updates take products in bfloat16 by torch's autocast."""
    if precision == "float32" or (problem := autocast_problem(device)) is None:
        return None
    return f"does not work here: {problem}; choose precision=float32."


def _slow(precision: str, device: torch.device) -> str | None:
    if precision == "float32" or device.type != "cpu" or (problem := half_product_problem(torch.bfloat16)) is None:
        return None
    return f"{problem}; precision=float32 is faster."


UPDATES = Purpose(
    work="updates",
    asker="this run",
    precisions=_PRECISIONS,
    unknown=f"is unknown for training; choose {' or '.join(_PRECISIONS)}.",
    precision_problem=_precision_problem,
    slow=_slow,
    compile_problem=compile_problem,
)
