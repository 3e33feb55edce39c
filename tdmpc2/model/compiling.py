"""Whether torch.compile works on a device."""

from __future__ import annotations

import functools

import torch


@functools.cache
def compile_problem(device: torch.device) -> str | None:
    """Why torch.compile cannot work on a device, in one line; None if it can. Compiles a small function to know."""
    x = torch.ones(8, device=device, requires_grad=True)
    try:
        probe = torch.compile(lambda value: (value.exp() * 2).sum(), dynamic=False)
        torch.autograd.grad(probe(x), x)
    except Exception as error:  # whatever the compiler's tool chain raises: running eagerly is the answer to all
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return None
