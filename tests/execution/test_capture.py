"""Functions captured as CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tdmpc2.execution import CapturedFunction

pytestmark = pytest.mark.cuda


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


def test_a_repeatable_function_is_captured_at_once_and_returns_copies(cuda: torch.device) -> None:
    calls = 0

    def product(x: Tensor, weight: Tensor) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        return {"product": x @ weight}

    captured = CapturedFunction(product, cuda, repeatable=True, copy_outputs=True)
    inputs = [{"x": torch.rand(3, 4, device=cuda), "weight": torch.rand(4, 2, device=cuda)} for _ in range(4)]
    found = [captured(given)["product"] for given in inputs[:1]]
    after_first = calls
    found += [captured(given)["product"] for given in inputs[1:]]
    assert calls == after_first, "later calls replay"
    for given, one in zip(inputs, found, strict=True):
        torch.testing.assert_close(one, given["x"] @ given["weight"])
    other = {"x": torch.rand(7, 4, device=cuda), "weight": inputs[0]["weight"]}
    torch.testing.assert_close(captured(other)["product"], other["x"] @ other["weight"])
    assert calls == after_first + 1, "another form is computed without the graph"


def test_a_function_that_changes_things_runs_once_for_each_call(cuda: torch.device) -> None:
    """The runs before the capture are calls; random numbers go on from one call to the next as without a graph."""

    def collected(capture: bool) -> tuple[list[Tensor], Tensor]:
        total = torch.zeros(5, device=cuda)
        generator = torch.Generator(cuda).manual_seed(3)

        def step(x: Tensor) -> dict[str, Tensor]:
            noise = torch.randn(5, generator=generator, device=cuda)
            total.add_(x * noise)
            return {"total": total.clone()}

        function = CapturedFunction(step, cuda, generators=[generator], repeatable=False, copy_outputs=False)
        seen = []
        for n in range(7):
            x = torch.full((5,), float(n), device=cuda)
            seen.append((function({"x": x}) if capture else step(x))["total"].clone())
        return seen, total

    captured, eager = collected(True), collected(False)
    for one, other in zip(captured[0], eager[0], strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(captured[1], eager[1])
