"""The elementwise functions of a CPU's plans in C, built for the processor at hand and tried before they are used.

`native.c` has no dependencies and builds in a fraction of a second, so each process builds it anew: nothing is left on
the disk, and nothing can be stale. torch.compile's functions for the same formulas take twice as long
(docs/planning.md).
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc2.errors import first_line
from tdmpc2.planner import kernels
from tdmpc2.planner.kernels import Kernels

_SOURCE = Path(__file__).with_name("native.c")
_WIDEST_LATENT = 4096  # as in the source
_SUFFIX = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
# Sums may be reordered, but NaN keeps its meaning. Linking is a step apart: some compilers add code to a library
# linked with these options that changes the arithmetic of the whole process.
_OPTIMISE = ["-O3", "-funsafe-math-optimizations", "-fno-math-errno"]
# Tried in turn: not every compiler knows -march=native or has OpenMP, and not every machine runs what comes out.
_VARIANTS: list[list[str]] = [["-march=native", "-fopenmp"], ["-mcpu=native", "-fopenmp"], ["-march=native"], []]


# Run in another process, without torch: an instruction that this processor lacks ends that one alone. Zeros are
# sound numbers for each function, in rows enough for it to start its threads.
_TRIAL = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
rows, width = 70, 40
buffers = [(ctypes.c_float * (rows * width))() for _ in range(4)]
numbers = [ctypes.c_long(number) for number in (rows, width)]
for kind in ("float32", "bfloat16"):
    getattr(library, "norm_mish_" + kind)(*buffers[:3], ctypes.c_long(1), *numbers)
    getattr(library, "norm_simnorm_" + kind)(*buffers, *numbers, ctypes.c_long(8))
    getattr(library, "expectation_" + kind)(*buffers[:3], *numbers)
"""


class BuildError(Exception):
    """Why there are no native functions, in one line."""


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or shutil.which(compiler[0]) is None:
        return f"no C compiler '{' '.join(compiler)}' was found; install gcc or clang, or name one with CC=…"
    said = ""
    with tempfile.TemporaryDirectory(prefix="tdmpc2-") as folder:
        for number, variant in enumerate(_VARIANTS):
            try:
                return _built(compiler, variant, Path(folder) / f"native{number}")
            except BuildError as error:
                said = str(error)
    return said


def _built(compiler: list[str], variant: list[str], path: Path) -> ctypes.CDLL:
    """Builds the library with one variant of the options, and tries it; or raises a `BuildError`."""
    unit, library = str(path.with_suffix(".o")), str(path.with_suffix(".so"))
    for command in (
        [*compiler, *_OPTIMISE, *variant, "-std=c11", "-fPIC", "-c", str(_SOURCE), "-o", unit],
        [*compiler, "-shared", *(flag for flag in variant if flag == "-fopenmp"), unit, "-o", library, "-lm"],
    ):
        problem = _said_by(command, f"{compiler[0]} failed")
        if problem is not None:
            raise BuildError(problem)
    problem = _said_by([sys.executable, "-I", "-S", "-c", _TRIAL, library], "what the C compiler built does not run")
    if problem is not None:
        raise BuildError(problem)
    try:
        return ctypes.CDLL(library)
    except OSError as error:
        raise BuildError(first_line(error)) from error


def _said_by(command: list[str], failure: str) -> str | None:
    """Runs a command; None, or in one line how it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    except OSError as error:
        return f"{command[0]} cannot be started: {error.strerror}"
    if done.returncode < 0:
        return f"{failure}: ended by {_signal_name(-done.returncode)}"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
    # A compiler says first what is wrong, Python last.
    return f"{failure}: {lines[-1] if lines[0].startswith('Traceback') else lines[0]}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one that this system has no name for
        return f"signal {number}"


def build_problem() -> str | None:
    """Why `native_kernels` cannot work, in one line; None if it can: its functions were run, and are right."""
    library = _library()
    return library if isinstance(library, str) else _wrong(library)


@functools.cache
def _wrong(library: ctypes.CDLL) -> str | None:
    """Which function of the library differs from torch's formula, on a small example."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(66, 48, generator=generator)
    weight, bias = torch.randn(48, generator=generator), torch.randn(48, generator=generator)
    native = native_kernels()
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        rows = x.to(dtype)
        for name, arguments in (
            ("norm_mish", (weight, bias)),
            ("norm_simnorm", (weight, bias, 8)),
            ("expectation", (weight,)),
        ):
            expected = getattr(kernels, name)(rows.float(), *arguments)
            found = getattr(native, name)(rows.clone(), *arguments).float()
            if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
                return f"the C compiler's {name} is wrong on this machine"
    return None


def native_kernels() -> Kernels:
    """`kernels.norm_mish`, `norm_simnorm` and `expectation` by the native library; float32 or bfloat16 on a CPU.

    Only where `build_problem` is None.
    """
    return Kernels(norm_mish=_norm_mish, norm_simnorm=_norm_simnorm, expectation=_expectation)


@functools.cache
def _function(name: str, dtype: torch.dtype, pointers: int, numbers: int) -> Any:
    library = _library()
    if isinstance(library, str):
        raise BuildError(library)
    function = getattr(library, f"{name}_{_SUFFIX[dtype]}")
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
