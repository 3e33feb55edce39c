"""The planner's functions in C against those of torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tdmpc2.planner import kernels, native

DTYPES = [torch.float32, torch.bfloat16]
# One rounding of what is written; the steps between are float32 in both.
TOLERANCE = {torch.float32: {"rtol": 2e-6, "atol": 2e-6}, torch.bfloat16: {"rtol": 2**-7, "atol": 1e-3}}


@pytest.fixture(autouse=True)
def compiler() -> None:
    if (problem := native.build_problem()) is not None:
        pytest.skip(problem)


def drawn(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def affine(*shape: int) -> tuple[Tensor, Tensor]:
    return kernels.norm_form(1 + drawn(*shape, seed=1, scale=0.3), drawn(*shape, seed=2, scale=0.3))


def equal(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype and found.shape == expected.shape
    torch.testing.assert_close(found.float(), expected.float(), **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(512, 384), (1, 384), (70, 13), (3, 5, 48), (2, 40, 384), (0, 16)])
def test_norm_mish(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """One layer's rows, and rows of several layers, each with another LayerNorm."""
    x = drawn(*shape).to(dtype)
    weight, bias = affine(shape[-1]) if len(shape) == 2 else affine(shape[0], shape[-1])
    expected = kernels.norm_mish(x.float(), weight, bias)
    equal(native.native_kernels().norm_mish(x, weight, bias), expected, dtype)


def test_norm_mish_far_from_zero() -> None:
    x = drawn(4, 64)
    for size in (1e-3, 30.0, 300.0):
        weight, bias = kernels.norm_form(torch.full((64,), size), torch.zeros(64))
        true = F.mish(F.layer_norm(x.double(), (64,), torch.full((64,), size, dtype=torch.float64)))
        found = native.native_kernels().norm_mish(x.clone(), weight, bias)
        torch.testing.assert_close(found, true.float(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width", "group"), [(512, 128, 8), (3, 16, 4), (65, 1376, 8), (9, 24, 8)])
def test_norm_simnorm(rows: int, width: int, group: int, dtype: torch.dtype) -> None:
    x = drawn(rows, width).to(dtype)
    weight, bias = (-part for part in affine(width))
    expected = kernels.norm_simnorm(x.float(), weight, bias, group)
    torch.testing.assert_close(expected.unflatten(-1, (group, -1)).sum(-2), torch.ones(rows, width // group))
    equal(native.native_kernels().norm_simnorm(x, weight, bias, group), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(512, 101), (2, 33, 101), (7, 5)])
def test_expectation(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits, bins = drawn(*shape).to(dtype), torch.linspace(-10, 10, shape[-1])
    found, expected = (one.expectation(logits, bins) for one in (native.native_kernels(), kernels.Kernels()))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # Bins that are only there to make a product's width even count for nothing.
    wide = F.pad(logits, (0, 3), value=-torch.inf)
    again = native.native_kernels().expectation(wide, F.pad(bins, (0, 3)))
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(dtype: torch.dtype, broken: float) -> None:
    """The planner counts such a value as 0: it must not come out as some number."""
    built = native.native_kernels()
    x = drawn(70, 32).to(dtype)
    x[66, 7] = broken
    sound = [row for row in range(70) if row != 66]
    weight, bias = affine(32)
    for found in (built.norm_mish(x.clone(), weight, bias), built.norm_simnorm(x, weight, bias, 8)):
        assert found[66].isnan().all() and found[sound].isfinite().all()
    expected, found = (one.expectation(x, torch.linspace(-10, 10, 32)) for one in (kernels.Kernels(), built))
    assert bool(found[66].isnan()) == bool(expected[66].isnan()) and found[sound].isfinite().all()


def test_rows_need_not_lie_together() -> None:
    x = drawn(384, 70).T
    weight, bias = affine(384)
    expected = kernels.norm_mish(x, weight, bias)
    torch.testing.assert_close(native.native_kernels().norm_mish(x, weight, bias), expected, **TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    ("compiler_name", "said"),
    [
        ("no-such-compiler", "no C compiler 'no-such-compiler' was found; install gcc or clang"),
        ("false", "false failed: exit status 1"),
        ("", "no C compiler ''"),
    ],
)
def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch, compiler_name: str, said: str) -> None:
    monkeypatch.setenv("CC", compiler_name)
    native._library.cache_clear()
    try:
        problem = native.build_problem()
    finally:
        native._library.cache_clear()
    assert problem is not None and said in problem and "\n" not in problem


# -- compilers whose work does not run as it should, real ones behind a script -----------------------------------------


def build_with(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> str | None:
    """What is said when the compiler is the real one behind a shell script, to which "$@" are its arguments."""
    wrapper = folder / "compiler"
    wrapper.write_text(f"#!/bin/sh\n{script}\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("CC", str(wrapper))
    native._library.cache_clear()
    native._function.cache_clear()
    try:
        problem = native.build_problem()
        if problem is None:
            x = drawn(70, 32)
            expected = kernels.norm_mish(x, *affine(32))
            found = native.native_kernels().norm_mish(x.clone(), *affine(32))
            torch.testing.assert_close(found, expected, **TOLERANCE[torch.float32])
    finally:
        native._library.cache_clear()
        native._function.cache_clear()
    return problem


REAL = shutil.which(os.environ.get("CC", "cc")) or "cc"


def test_an_instruction_that_the_processor_lacks_is_found_before_it_is_met(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "trap.h").write_text("__attribute__((constructor)) static void trap(void) { __builtin_trap(); }\n")
    always = f'exec {REAL} -include {tmp_path}/trap.h "$@"'
    problem = build_with(monkeypatch, tmp_path, always)
    assert problem is not None and problem.startswith("what the C compiler built does not run: ended by SIG")
    assert "\n" not in problem
    # Where only code for the native processor does not run, other code does.
    native_alone = f'case "$*" in *=native*) {always} ;; *) exec {REAL} "$@" ;; esac'
    assert build_with(monkeypatch, tmp_path, native_alone) is None


@pytest.mark.skipif(sys.platform != "linux", reason="how libraries are found differs by system")
def test_a_library_that_is_missing_where_it_runs_is_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """libgomp, as far as the program is concerned."""
    (tmp_path / "gone.c").write_text("int gone(void) { return 1; }\n")
    (tmp_path / "uses.c").write_text("int gone(void);\nint uses(void) { return gone(); }\n")
    gone = tmp_path / "libgone.so"
    subprocess.run([REAL, "-shared", "-fPIC", str(tmp_path / "gone.c"), "-o", str(gone)], check=True)
    subprocess.run([REAL, "-c", "-fPIC", str(tmp_path / "uses.c"), "-o", str(tmp_path / "uses.o")], check=True)
    kept = gone.rename(tmp_path / "kept.so")
    linked = f'{REAL} "$@" {tmp_path}/uses.o -L{tmp_path} -lgone'
    script = f"""case "$*" in
  *-shared*-fopenmp*) cp {kept} {gone}; {linked}; status=$?; rm {gone}; exit $status ;;
  *) exec {REAL} "$@" ;;
esac"""
    assert build_with(monkeypatch, tmp_path, script) is None
    script = script.replace("*-shared*-fopenmp*", "*-shared*")
    problem = build_with(monkeypatch, tmp_path, script)
    assert problem is not None and "does not run" in problem and "libgone.so" in problem and "\n" not in problem


def test_wrong_numbers_are_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wrong.h").write_text("#include <math.h>\n#define rintf(x) (rintf(x) + 3.0f)\n")
    problem = build_with(monkeypatch, tmp_path, f'exec {REAL} -include {tmp_path}/wrong.h "$@"')
    assert problem is not None and problem.startswith("the C compiler's norm_mish is wrong on this machine")
