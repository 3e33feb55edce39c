"""Every preset of config/planner decides alike in every way of running: plainly, eagerly, compiled, without torch."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from model_fixtures import assert_close, gammas, small_model, small_tasks
from run_fixtures import composed

from tdmpc2.checkpointing import CheckpointMetadata, save_checkpoint
from tdmpc2.execution import Execution
from tdmpc2.export.files import export_agent
from tdmpc2.export.numpy_agent import Noise, OnnxAgent
from tdmpc2.planner import Plan, Planner, PlannerSettings, PlanNoise, ReferencePlanner, native
from tdmpc2.settings.convert import planner_settings
from tdmpc2.settings.entry import CONFIG_DIR
from tdmpc2.tasks import TaskSet

PRESETS = sorted(path.stem for path in (CONFIG_DIR / "planner").glob("*.yaml"))


def preset(name: str) -> tuple[PlannerSettings, bool]:
    config = composed("evaluate", "checkpoint=none", f"planner={name}")
    return planner_settings(config), config.greedy


def asked(planner: Planner) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PlanNoise]:
    generator, dims = torch.Generator().manual_seed(4), planner.model.dims
    obs = torch.randn(2, dims.obs_dim, generator=generator)
    warm = torch.rand(2, planner.settings.horizon, dims.action_dim, generator=generator) - 0.5
    return obs, torch.tensor([2, 0]), warm, planner.draw_noise(2, generator)


def held_equal(found: Plan, expected: Plan) -> None:
    for name in ("mean", "action"):
        assert_close(getattr(found, name), getattr(expected, name), name=name)


@pytest.mark.parametrize("name", PRESETS)
def test_the_planners_of_this_package(name: str) -> None:
    settings, greedy = preset(name)
    model = small_model()
    eager = Planner(model, settings, gammas())
    given = asked(eager)
    expected = ReferencePlanner(model, settings, gammas()).plan(*given, greedy=greedy)
    held_equal(eager.plan(*given, greedy=greedy), expected)
    if native.build_problem() is None:
        held_equal(Planner(model, settings, gammas(), Execution(compile=True)).plan(*given, greedy=greedy), expected)
    half = Planner(model, settings, gammas(), Execution(precision="bfloat16")).plan(*given, greedy=greedy)
    assert half.action.isfinite().all() and half.action.abs().max() <= 1


@pytest.mark.parametrize("name", ["refine"])
def test_the_planner_without_torch(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskSet, "discounts", lambda self: gammas().numpy())  # the golden ones differ by task
    settings, greedy = preset(name)
    model, tasks = small_model(), small_tasks()
    file = tmp_path / "small.safetensors"
    save_checkpoint(file, model.state_dict(), CheckpointMetadata(tasks.name, tasks.tasks, model.dims, None, 0))
    export_agent(file, tmp_path / "out", planner=settings)
    planner = Planner(model, settings, gammas())
    obs, task, warm, noise = asked(planner)
    expected = planner.plan(obs, task, warm, noise, greedy=greedy)
    drawn = {f.name: getattr(noise, f.name) for f in fields(noise)}
    as_numpy = Noise(**{name: None if value is None else value.numpy() for name, value in drawn.items()})
    found = OnnxAgent(tmp_path / "out").plan(obs.numpy(), task.numpy(), warm.numpy(), as_numpy, greedy=greedy)
    for name in ("mean", "action"):
        assert_close(torch.from_numpy(getattr(found, name)), getattr(expected, name), name=name)
    again = OnnxAgent(tmp_path / "out", seed=1)
    assert np.isfinite(again.act(obs.numpy(), task.tolist(), greedy=greedy)).all()


def test_refine_is_one_round_of_mostly_the_prior_s_trajectories() -> None:
    settings, greedy = preset("refine")
    assert settings.iterations == 1 and greedy
    assert settings.num_samples / 2 < settings.num_pi_trajs < settings.num_samples
