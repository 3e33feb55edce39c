"""The elementwise functions of a CPU's plans in C, built for the processor at hand.

`native.c` has no dependencies and builds in a fraction of a second, so each process builds its own: nothing is left on
the disk, and nothing can be stale. torch.compile's functions for the same formulas take twice as long
(docs/planning.md).
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc2.planner.kernels import Kernels

_SOURCE = Path(__file__).with_name("native.c")
_WIDEST_LATENT = 4096  # as in the source
_SUFFIX = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
# Sums may be reordered, but NaN keeps its meaning. Linking is a step of its own: some compilers add code to a library
# linked with these options that changes the arithmetic of the whole process.
_OPTIMISE = ["-O3", "-funsafe-math-optimizations", "-fno-math-errno"]
# Tried in turn: not every compiler knows -march=native or has OpenMP.
_VARIANTS: list[list[str]] = [["-march=native", "-fopenmp"], ["-mcpu=native", "-fopenmp"], ["-march=native"], []]


class BuildError(Exception):
    """Why there are no native functions, in one line."""


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or shutil.which(compiler[0]) is None:
        raise BuildError(f"no C compiler '{' '.join(compiler)}' was found; install gcc or clang, or name one with CC=…")
    with tempfile.TemporaryDirectory(prefix="tdmpc2-") as folder:
        unit, library = str(Path(folder) / "native.o"), str(Path(folder) / "native.so")
        for variant in _VARIANTS:
            commands = (
                [*compiler, *_OPTIMISE, *variant, "-std=c11", "-fPIC", "-c", str(_SOURCE), "-o", unit],
                [*compiler, "-shared", *(flag for flag in variant if flag == "-fopenmp"), unit, "-o", library, "-lm"],
            )
            said = ""
            for command in commands:
                try:
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                except OSError as error:
                    raise BuildError(f"{compiler[0]} cannot be started: {error.strerror}") from error
                if done.returncode:
                    said = done.stderr.strip() or f"exit status {done.returncode}"
                    break
            if not said:
                try:
                    return ctypes.CDLL(library)
                except OSError as error:  # a folder from which nothing may be run, a library that is missing
                    raise BuildError(str(error)) from error
    raise BuildError(f"{compiler[0]} failed: {said.splitlines()[0]}")


def build_problem() -> str | None:
    """Why `native_kernels` cannot work, in one line; None if it can."""
    try:
        _library()
    except BuildError as error:
        return str(error)
    return None


def native_kernels() -> Kernels:
    """`kernels.norm_mish`, `norm_simnorm` and `expectation` by the native library; float32 or bfloat16 on a CPU."""
    return Kernels(norm_mish=_norm_mish, norm_simnorm=_norm_simnorm, expectation=_expectation)


@functools.cache
def _function(name: str, dtype: torch.dtype, pointers: int, numbers: int) -> Any:
    function = getattr(_library(), f"{name}_{_SUFFIX[dtype]}")
    function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_long] * numbers
    function.restype = None
    return function


def _norm_mish(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """In place: half the memory to go through, which is then still in the cache for the next product."""
    x = x.contiguous()
    width = x.shape[-1]
    _function("norm_mish", x.dtype, 3, 3)(
        x.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        weight.numel() // width,
        x.numel() // weight.numel(),
        width,
    )
    return x


def _norm_simnorm(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    assert width <= _WIDEST_LATENT
    _function("norm_simnorm", x.dtype, 4, 3)(
        x.data_ptr(), out.data_ptr(), weight.data_ptr(), bias.data_ptr(), x.numel() // width, width, group
    )
    return out


def _expectation(logits: Tensor, bins: Tensor) -> Tensor:
    logits = logits.contiguous()
    out = torch.empty(logits.shape[:-1])
    _function("expectation", logits.dtype, 3, 2)(
        logits.data_ptr(), out.data_ptr(), bins.data_ptr(), out.numel(), logits.shape[-1]
    )
    return out
