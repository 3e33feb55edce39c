"""Fixtures that several packages' tests use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from model_fixtures import RELEASED, SHARED
from property_fixtures import register_profiles

register_profiles()


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """The folder of reference figures beside this checkout."""
    folder = SHARED / "golden"
    if not (folder / "world_model_mt30_1M.npz").is_file():
        pytest.skip("the shared reference figures (../shared/golden) are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def shared_checkpoints() -> Path:
    """The folder of the paper's released students beside this checkout."""
    folder = SHARED / "checkpoints"
    if not (folder / RELEASED).is_file():
        pytest.skip("the released students (../shared/checkpoints) are not beside this checkout")
    return folder


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device that figures must hold on, in full float32."""
    name = str(request.param)
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return name


@pytest.fixture(scope="session")
def reference_model_figures(shared_golden: Path) -> dict[str, np.ndarray]:
    with np.load(shared_golden / "world_model_mt30_1M.npz") as file:
        return {name: file[name] for name in file.files}
