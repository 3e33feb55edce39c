"""Discrete regression against the reference programs' figures and an independent implementation."""

from __future__ import annotations

from pathlib import Path

import make_golden
import numpy as np
import pytest
import torch
from model_fixtures import GOLDEN, assert_close, tensors

from tdmpc2.model import symexp, symlog, two_hot, two_hot_cross_entropy, two_hot_inverse


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def check(figures: dict[str, np.ndarray], device: str) -> None:
    g = tensors(figures, device)
    x = g["x"].unsqueeze(-1)
    assert_close(symlog(x), g["symlog"])
    assert_close(symexp(g["symlog"]), g["symexp"])  # the figures are those of a round trip
    assert_close(two_hot(x, -10, 10, 101), g["two_hot"])
    assert_close(two_hot_inverse(g["logits"], -10, 10), g["two_hot_inv"])
    assert_close(two_hot_cross_entropy(g["logits"], x, -10, 10), g["soft_ce"])


def test_stored_reference_figures(device: str) -> None:
    check(load(GOLDEN / "math_part.npz"), device)


def test_shared_reference_figures(device: str, shared_golden: Path) -> None:
    check(load(shared_golden / "math.npz"), device)


EDGES = [0.0, 1e-6, -1e-6, 0.3, -0.3, 1.0, 2.5, 77.7, -950.0, 22025.4, 1e9, -1e9]


@pytest.mark.parametrize("x", EDGES)
def test_two_hot_by_definition(x: float) -> None:
    row = two_hot(torch.tensor([[x]], dtype=torch.float64), -10, 10, 101)[0].numpy()
    np.testing.assert_allclose(row, make_golden.two_hot(x), atol=1e-9)
    assert row.sum() == pytest.approx(1)
    assert (row > 0).sum() <= 2


def test_cross_entropy_is_that_of_the_dense_encoding() -> None:
    x = torch.tensor(EDGES, dtype=torch.float64).unsqueeze(-1)
    logits = torch.randn(len(EDGES), 101, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = two_hot_cross_entropy(logits, x, -10, 10)
    for row, value, figure in zip(logits.numpy(), EDGES, found, strict=True):
        assert float(figure) == pytest.approx(make_golden.cross_entropy(row, value), rel=1e-9)


def test_decoding_inverts_encoding() -> None:
    x = torch.tensor([-3000.0, -1.5, 0.0, 0.02, 9.0, 20000.0], dtype=torch.float64).unsqueeze(-1)
    logits = two_hot(x, -10, 10, 101).log()
    torch.testing.assert_close(two_hot_inverse(logits, -10, 10), x, rtol=1e-9, atol=1e-9)


def test_targets_broadcast_over_heads_and_half_precision_decodes() -> None:
    logits = torch.randn(3, 2, 4, 101, generator=torch.Generator().manual_seed(0))
    target = torch.randn(2, 4, 1, generator=torch.Generator().manual_seed(1))
    one = two_hot_cross_entropy(logits, target, -10, 10)
    assert one.shape == (3, 2, 4, 1)
    torch.testing.assert_close(one[1], two_hot_cross_entropy(logits[1], target, -10, 10))
    assert two_hot_inverse(logits.half(), -10, 10).dtype == torch.float16
