"""Which ways of computing work on this machine: each is tried once, on a small example, rather than asked for.

Flags of a processor, a build of torch or a version do not tell whether an operation works, is right and is worth its
time: torch may have no oneDNN, a private operation may be missing or changed, and instructions may be missing or
emulated. A function here returns None, or in one line why not to go that way; answers hold for the process.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tdmpc2.errors import first_line

_ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # of a product of about unit size
_SLOWER = 1.25
"""Products in half types are worth it up to so many times float32's time: real ones take half of it, emulated ones
three times as much and more."""


@functools.cache
def packed_product_problem(dtype: torch.dtype) -> str | None:
    """Why a CPU's product with a weight packed by oneDNN cannot be used for a float type."""
    if not torch.backends.mkldnn.is_available():
        return "this torch has no oneDNN"
    x, weight, bias = _example(dtype)
    try:
        found = packed_product(x, packed_weight(weight), bias)
    except Exception as error:  # private operations: whatever another version or processor makes of them
        return first_line(error)
    return _difference(found, x, weight, bias)


def packed_weight(weight: Tensor) -> Tensor:
    """A weight [out, in] in the layout that oneDNN multiplies; only where `packed_product_problem` is None."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return packed


def packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """[M, in] times a packed weight -> [M, out]."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


@functools.cache
def half_product_problem(dtype: torch.dtype) -> str | None:
    """Why a CPU should not multiply in float16 or bfloat16 itself: it cannot, or float32 products are faster.

    The same numbers, but for the order of sums, come from `widened` products: half numbers multiplied in float32.
    """
    x, weight, bias = _example(dtype)
    try:
        problem = _difference(F.linear(x, weight, bias), x, weight, bias)
    except Exception as error:  # a type that this build does not multiply
        return first_line(error)
    if problem is not None:
        return problem
    rows, square = torch.ones(256, 256), torch.ones(256, 256)
    half, full = _fastest(
        _product_with(rows.to(dtype), square.to(dtype)),
        _product_with(rows, square),
    )
    if half > _SLOWER * full:
        return f"its products take {half / full:.1f} times as long as float32's"
    return None


def widened(product: Callable[..., Tensor], *halves: Tensor | None) -> Tensor:
    """A product of half numbers taken in float32, and rounded to their type: what arithmetic in half types means."""
    first = halves[0]
    assert first is not None
    return product(*(None if half is None else half.float() for half in halves)).to(first.dtype)


@functools.cache
def integer_product_problem() -> str | None:
    """Why a CPU's product of int8 numbers cannot be used.

    Without instructions for them (AVX-512 VNNI or AVX-VNNI), oneDNN adds pairs in 16 bits, which overflow silently.
    """
    generator = torch.Generator().manual_seed(0)
    # All widths that a vector instruction can be filled with, at the largest numbers and at others.
    for width in (9, 64, 131):
        x = torch.randint(-127, 128, (37, width), generator=generator).to(torch.int8)
        weight = torch.randint(-127, 128, (21, width), generator=generator).to(torch.int8)
        x[0], x[1], weight[0], weight[1] = 127, -127, 127, -127
        try:
            found = torch._int_mm(x, weight.t())
        except Exception as error:  # private: whatever another version or processor makes of it
            return first_line(error)
        if not torch.equal(found, x.int() @ weight.int().t()):
            return "its sums overflow on this CPU"
    return None


@functools.cache
def autocast_problem(device: torch.device) -> str | None:
    """Why an update's products cannot be taken in bfloat16 by torch's autocast."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator).to(device) for shape in ((9, 13), (7, 13)))
    weight.requires_grad_()
    try:
        with torch.autocast(device.type, torch.bfloat16):
            found = F.linear(x, weight)
        gradient = torch.autograd.grad(found.float().sum(), weight)[0]
    except Exception as error:  # a device or a build without these products
        return first_line(error)
    off = ((found.float() - F.linear(x, weight)).detach(), gradient - x.sum(0))
    tolerance = _ROUNDING[torch.bfloat16] * float(x.abs().sum(0).max())
    right = all(float(part.abs().max()) <= tolerance for part in off)
    return None if right else "its results are wrong on this machine"


@functools.cache
def compile_problem(device: torch.device) -> str | None:
    """Why torch.compile cannot work on a device. Compiles a small function to know."""
    _separate_compiled_code()
    x = torch.ones(8, device=device, requires_grad=True)
    try:
        probe = torch.compile(lambda value: (value.exp() * 2).sum(), dynamic=False)
        torch.autograd.grad(probe(x), x)
    except Exception as error:  # whatever the compiler's tool chain raises: running eagerly is the answer to all
        return first_line(error)
    return None


@functools.cache
def _separate_compiled_code() -> None:
    """Gives torch's cache on the disk a folder for each kind of processor.

    Its keys leave out how wide the vectors are, by the processor or by ATEN_CPU_CAPABILITY: code kept from another
    width (a shared folder, a run with that variable) corrupts memory.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"
    default = Path(tempfile.gettempdir()) / f"torchinductor_{user}"
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default)
    kind = torch.backends.cpu.get_cpu_capability().replace(" ", "_")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder if folder.name == kind else folder / kind)


def _example(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x [5, 13], weight [7, 13] and bias [7]: odd widths, so that no vector is full."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((5, 13), (7, 13), (7,)))
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def _difference(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """Why a product is not what it should be."""
    expected = F.linear(x.float(), weight.float(), bias.float())
    tolerance = _ROUNDING[x.dtype] * float(expected.abs().max())
    right = found.dtype == x.dtype and found.shape == expected.shape
    if right and float((found.float() - expected).abs().max()) <= tolerance:
        return None
    return f"its {str(x.dtype).removeprefix('torch.')} products are wrong on this machine"


def _product_with(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """A product in the form that planning takes it: packed, where that works."""
    if packed_product_problem(weight.dtype) is None:
        packed = packed_weight(weight)
        return lambda: packed_product(x, packed, None)
    return lambda: F.linear(x, weight)


def _fastest(*functions: Callable[[], object], repeats: int = 7) -> list[float]:
    """Seconds of each, the best of several tries in turn, so that other work of the machine hits all or none."""
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for index, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[index] = min(best[index], time.perf_counter() - start)
    return best
