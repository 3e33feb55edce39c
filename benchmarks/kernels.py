"""Microseconds of the planner's functions between products, beside the product itself, on a CPU.

python benchmarks/kernels.py                       # plain torch calls, eager, through torch.compile, in C
python benchmarks/kernels.py --rows 64 --repeats 500

Shapes are those of the 1M model and one environment's 512 trajectories. "plain" is torch's layer_norm, mish and
softmax in the model's layout; "compiled" for LayerNorm and Mish is the formula of the C function. Medians; the ways
take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tdmpc2.errors import run_program
from tdmpc2.evaluation.results import this_machine
from tdmpc2.execution.capabilities import compile_problem
from tdmpc2.planner import kernels
from tdmpc2.planner.kernels import Dense, Kernels
from tdmpc2.planner.native import build_problem, native_kernels
from tdmpc2.reporting.tables import format_table

HIDDEN, LATENT, GROUP, BINS = 384, 128, 8, 101
Ways = dict[str, Callable[[], Tensor]]


def one_pass_norm_mish(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = x.float()
    mean = y.mean(-1, keepdim=True)
    variance = (y * y).mean(-1, keepdim=True) - mean * mean
    y = -((y - mean) * torch.rsqrt(variance.clamp(min=0) + 1e-5) * weight + bias)
    e = torch.exp(y.clamp(max=30.0))
    n = e * (e + 2)
    return (y * n / (n + 2)).to(x.dtype)


def functions(rows: int, dtype: torch.dtype, left_out: set[str]) -> dict[str, Ways]:
    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))

    x, z, logits = (drawn(rows, width).to(dtype) for width in (HIDDEN, LATENT, BINS))
    weight, bias = kernels.norm_form(torch.ones(HIDDEN), torch.zeros(HIDDEN))
    latent_weight, latent_bias, bins = torch.ones(LATENT), torch.zeros(LATENT), torch.linspace(-10, 10, BINS)
    dense = Dense(drawn(HIDDEN, HIDDEN), torch.zeros(HIDDEN), dtype)
    eager, native = Kernels(), native_kernels()

    def plain_simnorm() -> Tensor:
        y = F.layer_norm(z, (LATENT,), latent_weight.to(dtype), latent_bias.to(dtype))
        return torch.softmax(y.unflatten(-1, (-1, GROUP)), -1).flatten(-2)

    def plain_expectation() -> Tensor:
        expected = torch.softmax(logits.float(), -1) @ bins
        return torch.sign(expected) * torch.expm1(expected.abs())

    found: dict[str, Ways] = {
        f"product {HIDDEN} x {HIDDEN}": {"eager": lambda: dense(x)},
        f"LayerNorm, Mish {HIDDEN}": {
            "plain": lambda: F.mish(F.layer_norm(x, (HIDDEN,), -weight.to(dtype), -bias.to(dtype))),
            "eager": lambda: eager.norm_mish(x, weight, bias),
            "C": lambda: native.norm_mish(x.clone(), weight, bias),  # it writes into its input
        },
        f"LayerNorm, SimNorm {LATENT}": {
            "plain": plain_simnorm,
            "eager": lambda: eager.norm_simnorm(z, latent_weight, latent_bias, GROUP),
            "C": lambda: native.norm_simnorm(z, latent_weight, latent_bias, GROUP),
        },
        f"expectation {BINS}": {
            "plain": plain_expectation,
            "eager": lambda: eager.expectation(logits, bins),
            "C": lambda: native.expectation(logits, bins),
        },
    }
    if "compiled" not in left_out:
        norm_mish, norm_simnorm, expectation = (
            torch.compile(function, dynamic=False)
            for function in (one_pass_norm_mish, kernels.norm_simnorm, kernels.expectation)
        )
        names = list(found)
        found[names[1]]["compiled"] = lambda: norm_mish(x, weight, bias)
        found[names[2]]["compiled"] = lambda: norm_simnorm(z, latent_weight, latent_bias, GROUP)
        found[names[3]]["compiled"] = lambda: expectation(logits, bins)
    return {name: {way: f for way, f in ways.items() if way not in left_out} for name, ways in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512, help="trajectories")
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--no-torch-compile", action="store_true", help="leave torch.compile out: it takes seconds")
    a = parser.parse_args()
    print(f"{this_machine('cpu').cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}, {a.rows} rows")
    problems = {"C": build_problem()}
    problems["compiled"] = "" if a.no_torch_compile else compile_problem(torch.device("cpu"))
    left_out = {way for way, problem in problems.items() if problem is not None}
    for way in sorted(left_out):
        if problems[way]:
            print(f"{way} is not possible here: {problems[way]}", file=sys.stderr)
    columns = [way for way in ("plain", "eager", "compiled", "C") if way not in left_out]
    table = []
    for dtype in (torch.float32, torch.bfloat16):
        for name, ways in functions(a.rows, dtype, left_out).items():
            times: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(a.repeats + 5):
                for way, function in ways.items():
                    start = time.perf_counter()
                    function()
                    if turn >= 5:
                        times[way].append(time.perf_counter() - start)
            shown = [f"{statistics.median(times[way]) * 1e6:.0f}" if way in times else "-" for way in columns]
            table.append([name, str(dtype).removeprefix("torch."), *shown])
    print(format_table(["function", "type", *columns], table, align="ll" + "r" * len(columns), style="markdown"))


if __name__ == "__main__":
    with torch.no_grad():
        run_program(main)
