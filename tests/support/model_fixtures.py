"""What the tests of model, planner and losses have in common: a tiny model with golden figures, relative errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from make_golden import DIMS, FILE, GAMMA, PLAN, TASKS, Arrays
from make_golden import group as group  # read by the tests from here
from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.errors import CheckpointError
from tdmpc2.losses import UpdateNoise
from tdmpc2.model import ALL_PARTS, ModelDims, WorldModel
from tdmpc2.planner import PlannerSettings, PlanNoise
from tdmpc2.tasks import TaskSet, task_set

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
SHARED = ROOT.parent / "shared"
RELEASED = "mt30_1M_steps_045dist_fp16.pt"
SMALL_DIMS = ModelDims(**DIMS)  # type: ignore[arg-type]
SMALL_PLAN = PlannerSettings(**PLAN)
STUDENT_PLAN = PlannerSettings(iterations=4, num_samples=48, num_elites=8, num_pi_trajs=6)


def small_tasks() -> TaskSet:
    return task_set("small", TASKS)


def arrays(path: Path) -> Arrays:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def golden() -> Arrays:
    return arrays(FILE)


def tensors(figures: Arrays, device: str = "cpu") -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(value)).to(device) for name, value in figures.items()}


def small_model(device: str = "cpu", dropout: float = 0.0, dims: ModelDims = SMALL_DIMS) -> WorldModel:
    """The tiny model with the golden weights, in eval mode."""
    model = WorldModel(replace(dims, dropout=dropout), small_tasks().action_masks())
    model.load_state_dict(tensors(group(golden(), "weights")))
    return model.to(device).eval()


def single_task_model(seed: int = 0) -> WorldModel:
    """A tiny model of one task: no embedding, no mask."""
    model = WorldModel(replace(SMALL_DIMS, obs_dim=8, action_dim=2, num_tasks=0, task_dim=0))
    randomise(model, seed)
    return model.eval()


@torch.no_grad()
def randomise(model: WorldModel, seed: int) -> None:
    """Weights large enough for every output to differ."""
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    for part in ALL_PARTS:
        if part in model.parts:
            for parameter in getattr(model, part).parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def gammas(device: str = "cpu") -> Tensor:
    return torch.tensor(GAMMA, device=device)


def golden_batch(figures: Arrays, device: str = "cpu") -> Batch:
    return Batch(**tensors(group(figures, "batch"), device))


def with_rewards(batch: Batch, rewards: Tensor | None) -> Batch:
    """The batch as a teacher of these rewards [B, 1] leaves it; None for no teacher."""
    return replace(batch, targets={} if rewards is None else {"distillation.reward": rewards})


def golden_update_noise(figures: Arrays, device: str = "cpu") -> UpdateNoise:
    return UpdateNoise(**tensors(group(figures, "update"), device))


def student_decisions(shared_golden: Path) -> Arrays:
    """The reference decisions of the released student under `STUDENT_PLAN`: arrays "a0/obs", ..., "c1/action"."""
    return arrays(shared_golden / "planner_mt30_1M.npz")


def golden_plan(figures: Arrays, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, PlanNoise]:
    """(obs, task, warm start, noise) of the three golden decisions."""
    t = tensors(group(figures, "plan"), device)
    names = ("prior", "samples", "terminal", "heads", "elite", "action")
    return t["obs"], t["task"], t["warm"], PlanNoise(**{name: t[name] for name in names})


def relative(found: Tensor, expected: object) -> float:
    """Norm of the difference over the norm; infinities must agree and are then left out."""
    a = found.detach().double().cpu()
    b = torch.as_tensor(expected).double().cpu()
    assert a.numel() == b.numel(), f"{tuple(a.shape)} against {tuple(b.shape)}"
    a, b = a.flatten(), b.flatten()
    finite = b.isfinite()
    assert torch.equal(a[~finite], b[~finite])
    return float((a[finite] - b[finite]).norm() / b[finite].norm().clamp(min=1e-12))


def assert_close(found: Tensor, expected: object, tolerance: float = 1e-4, name: str = "") -> None:
    assert relative(found, expected) < tolerance, f"{name}: {relative(found, expected):.2e}"


@contextmanager
def checkpoint_error(path: Path, *phrases: str) -> Iterator[None]:
    """Exactly one clear error: a CheckpointError that names the file and says the phrases."""
    with pytest.raises(CheckpointError) as caught:
        yield
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message.strip()
    for phrase in phrases:
        assert phrase in message, message


def with_tied_elites(found: Tensor, figures: dict[str, Tensor], settings: PlannerSettings) -> Tensor:
    """The reference's means, or where its last elite and the next candidate tie within float32, the nearer of both.

    In decision b0 they differ by 7 units in the last place of float32, so that any other order of summation may
    rank them the other way round.
    """
    means = figures["mean"].clone()
    count = settings.num_elites
    values, order = figures["values"][:, -1, :, 0].sort(dim=1, descending=True)
    for n in range(len(means)):
        if float(values[n, count - 1] - values[n, count]) > 1e-6 * float(values[n, count].abs()):
            continue
        elites = torch.cat([order[n, : count - 1], order[n, count : count + 1]])
        weight = torch.softmax(settings.temperature * figures["values"][n, -1, elites, 0], 0)
        other = (weight[:, None] * figures["candidates"][n, -1][:, elites]).sum(1)
        if relative(found[n], other) < relative(found[n], means[n]):
            means[n] = other
    return means
