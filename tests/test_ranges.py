"""Every number that a user can set has a range, and what the memory cannot hold is refused before any work."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_fixtures import make_store
from model_fixtures import SMALL_DIMS, single_task_model, small_tasks
from run_fixtures import DUO, tiny_run
from safetensors.torch import load_file

from tdmpc2 import memory
from tdmpc2.agent import Agent
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.envs import EnvPool
from tdmpc2.errors import UserError
from tdmpc2.evaluation.runner import EvaluationSettings
from tdmpc2.fileio import human_bytes
from tdmpc2.losses import LossWeights
from tdmpc2.memory import available_memory, check_memory
from tdmpc2.model import ModelDims, WorldModel, model_bytes, model_dims, update_bytes
from tdmpc2.planner import PlannerSettings
from tdmpc2.ranges import check_range, check_share, check_whole
from tdmpc2.rollout import RandomController, check_jobs
from tdmpc2.settings.schema import CollectKeys, LabelKeys
from tdmpc2.tasks import task_set
from tdmpc2.training import OptimiserSettings, TrainSettings
from tdmpc2.training.learner import Learner

NAN, INF = math.nan, math.inf
GROUPS: dict[type, dict[str, Any]] = {
    PlannerSettings: {},
    LossWeights: {},
    OptimiserSettings: {},
    EvaluationSettings: {"num_envs": 1, "num_workers": 1},
    CollectKeys: {"num_envs": 1, "num_workers": 1},
    LabelKeys: {},
    ModelDims: {f.name: getattr(SMALL_DIMS, f.name) for f in fields(SMALL_DIMS)},
    TrainSettings: {
        "run_dir": Path("run"),
        "task_set": DUO,
        "dims": SMALL_DIMS,
        "data_dir": Path("data"),
        "steps": 1,
        "save_freq": 1,
    },
}


def number_keys() -> list[tuple[type, str]]:
    found = []
    for group, base in GROUPS.items():
        settings = group(**base)
        for f in fields(group):
            value = getattr(settings, f.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.append((group, f.name))
    return found


@pytest.mark.parametrize(("group", "key"), number_keys())
@pytest.mark.parametrize("value", [NAN, INF, -INF, True, -1e39, 10**39, 1e39])
def test_no_number_key_takes_what_is_no_sane_number(group: type, key: str, value: float) -> None:
    if key == "grad_clip_norm" and not isinstance(value, bool) and value > 0:
        assert OptimiserSettings(grad_clip_norm=value).grad_clip_norm == value  # it does not clip
        return
    with pytest.raises(UserError, match=key) as caught:
        group(**{**GROUPS[group], key: value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_enough_keys_are_tried() -> None:
    assert len(number_keys()) >= 8 + 6 + 4 + 4 + 16 + 7 + 5 + 2


@pytest.mark.parametrize("value", [2.0, 2.5, "2", None])
def test_counts_are_whole_numbers(value: object) -> None:
    with pytest.raises(UserError, match="steps must be a whole number of 1 to 10, not"):
        check_whole("steps", value, 1, 10)
    check_whole("steps", np.int64(2), 1, 10)


def test_each_line_names_key_value_and_range() -> None:
    for check, message in (
        (lambda: check_whole("a", 0, 1, 4096), "a must be at least 1, not 0 (and at most 4,096)."),
        (lambda: check_whole("a", 5000, 1, 4096), "a must be at most 4,096, not 5000 (and at least 1)."),
        (lambda: check_range("a", NAN, 0, 1, above=True), "a must be above 0, not nan (and at most 1)."),
        (lambda: check_range("a", INF, 0, 9), "a must be at most 9, not inf (and 0 or more)."),
        (lambda: check_range("a", -3, -2, 9), "a must be at least -2, not -3 (and at most 9)."),
        (lambda: check_range("a", True, 0, 9), "a must be a number, not True."),
        (lambda: check_share("a", 0, zero=False), "a must lie in (0, 1], not 0."),
        (lambda: check_share("a", NAN, zero=True), "a must lie in [0, 1), not nan."),
    ):
        with pytest.raises(UserError) as caught:
            check()
        assert str(caught.value) == message
    check_range("a", INF, 0, 9, infinite=True)
    check_share("a", 1, zero=False)
    check_share("a", 0, zero=True)


def test_log_std_min_lies_below_log_std_max() -> None:
    for low in (5.0, 2.0):
        with pytest.raises(UserError, match=f"log_std_min must lie below log_std_max=2.0, not be {low}"):
            replace(SMALL_DIMS, log_std_min=low)


def test_seeds_of_runs_that_evaluate_are_those_of_evaluations() -> None:
    base = GROUPS[TrainSettings]
    assert TrainSettings(**base, seed=2**40).seed == 2**40
    with pytest.raises(UserError, match=r"seed must be at most 4,294,967,295"):
        TrainSettings(**base, seed=2**40, eval_freq=1)


def test_pools_and_controllers_check_theirs() -> None:
    for keys, message in (
        ({"num_envs": 0, "num_workers": 0}, "num_envs of 1 or more"),
        ({"num_envs": 10_001, "num_workers": 0}, "num_envs must be at most 10,000"),
        ({"num_envs": 1, "num_workers": -1}, "num_workers of 0 or more"),
        ({"num_envs": 1, "num_workers": 1025}, "num_workers must be at most 1,024"),
    ):
        with pytest.raises(UserError, match=message):
            EnvPool(DUO, **keys)
    for noise in (-0.1, NAN, INF):
        with pytest.raises(UserError, match="noise must be"):
            RandomController(DUO, 1, oscillate=True, noise=noise)


# -- clipping switched off -------------------------------------------------------------------------------------


def test_a_run_with_an_infinite_clip_norm_resumes(tmp_path: Path) -> None:
    keys = ("grad_clip_norm=inf", "log_freq=1", "state_freq=1")
    whole = tiny_run(tmp_path / "whole", "steps=4", *keys)
    tiny_run(tmp_path / "parts", "steps=2", *keys)
    parts = tiny_run(tmp_path / "parts", "steps=4", "resume=true", *keys)
    assert whole.checkpoint is not None and parts.checkpoint is not None
    tensors = [load_file(run.checkpoint) for run in (whole, parts)]
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["grad_clip_norm"] == "inf"
    assert all(math.isfinite(value) for value in parts.metrics.values())


def test_an_infinite_clip_norm_leaves_gradients_alone(tmp_path: Path) -> None:
    """As a norm that nothing reaches."""
    store = make_store(tmp_path / "s", DUO, [0, 1] * 4)
    batch = SliceSampler(store, DUO, 8, 3, seed=1).batch(0)
    results = []
    for norm in (INF, 1e30):
        dims = model_dims(1, DUO.obs_dim, DUO.action_dim, 2)
        model = WorldModel(replace(dims, enc_dim=16, mlp_dim=16, latent_dim=16), DUO.action_masks())
        model.init_weights(torch.Generator().manual_seed(0))
        learner = Learner(
            model, torch.tensor(DUO.discounts()), LossWeights(), OptimiserSettings(grad_clip_norm=norm), seed=0
        )
        learner.update(batch)
        results.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.isfinite(results[0]).all() and torch.equal(*results)


# -- memory ------------------------------------------------------------------------------------------------------


def test_model_bytes_are_those_of_the_model() -> None:
    for size in (1, 5):
        dims = model_dims(size, 24, 6, 30)
        model = WorldModel(dims, task_set("mt30").action_masks())
        numbers = sum(parameter.numel() for parameter in model.parameters())
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert model_bytes(dims) == 4 * numbers
        assert model_bytes(dims, training=True) == 4 * (numbers + 3 * trained)
    single = single_task_model()
    assert model_bytes(single.dims) == 4 * sum(parameter.numel() for parameter in single.parameters())


def test_what_cannot_fit_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    available = available_memory()
    assert available is not None and 1 << 26 < available < 1 << 50
    check_memory("a little", 1000, "no")
    with pytest.raises(UserError, match=r"^much needs at least [\d.]+ GB of memory, found [\d.]+ GB: ask for less\.$"):
        check_memory("much", 1 << 60, "ask for less")
    huge = ModelDims(24, 6, 30, 100_000, 100_000, 100_000, 2, 2, 96)
    with pytest.raises(UserError, match="needs at least"):
        check_memory("a model", model_bytes(huge, training=True), "choose less")

    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 20)  # a machine of a megabyte
    store = make_store(tmp_path / "s", DUO, [0, 1] * 4)
    with pytest.raises(UserError, match="batch_size=1000000 and horizon=3 needs at least"):
        SliceSampler(store, DUO, 1_000_000, 3, seed=1)
    with pytest.raises(UserError, match=r"num_samples=1000000, horizon=3 and iterations=6 needs at least [\d.]+ MB"):
        Agent(single_task_model(), task_set("cup-spin"), PlannerSettings(num_samples=1_000_000))
    with pytest.raises(UserError, match="num_envs=10000 needs at least"):
        EnvPool(DUO, num_envs=10_000, num_workers=0)
    with pytest.raises(UserError, match=r"a list of 1,000,000 episodes of 2 tasks needs .* choose fewer eval_episodes"):
        check_jobs(1_000_000, 2, "choose fewer eval_episodes")
    SliceSampler(store, DUO, 4, 3, seed=1).batch(0)


def test_an_update_takes_what_is_said_at_the_least() -> None:
    """The tensors that one value loss keeps for its gradient, counted by torch."""
    dims = replace(SMALL_DIMS, mlp_dim=64, dropout=0.0)
    model = WorldModel(dims, small_tasks().action_masks())
    model.init_weights(torch.Generator().manual_seed(0))
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    held: list[torch.Tensor] = []
    horizon, batch = 3, 256
    z = torch.rand(horizon, batch, dims.latent_dim)
    action, task = torch.rand(horizon, batch, dims.action_dim), torch.zeros(horizon, batch, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.q_values(z, action, task).sum()
    assert sum(kept.values()) >= update_bytes(dims, batch, horizon)


def test_limits_of_a_control_group_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files as the kernel lays them out, for both versions."""
    (tmp_path / "self").write_text("12:memory:/jobs/one\n0::/jobs/two\n")
    for place, limit, usage, cache in (
        ("memory/jobs/one", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ("jobs/two", "memory.max", "memory.current", "inactive_file"),
    ):
        folder = tmp_path / "groups" / place
        folder.mkdir(parents=True)
        (folder / limit).write_text("3000000\n")
        (folder / usage).write_text("2000000\n")
        (folder / "memory.stat").write_text(f"anon 1\n{cache} 500000\n")
        monkeypatch.setattr(memory, "_GROUP", tmp_path / "groups")
        monkeypatch.setattr(memory, "_OWN_GROUP", tmp_path / "self")
        assert available_memory() == 1_500_000
        (folder / limit).write_text("max\n")
    assert available_memory() is not None and available_memory() != 1_500_000


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (12_345_678, "12.3 MB"),
        (999_999_999, "1.0 GB"),
        (3e15, "3000000.0 GB"),
    ],
)
def test_bytes_in_units_that_say_something(count: float, text: str) -> None:
    assert human_bytes(count) == text
