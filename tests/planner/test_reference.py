"""The reference planner against the golden decisions, and the fused planner against the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_fixtures import (
    RELEASED,
    SMALL_DIMS,
    SMALL_PLAN,
    STUDENT_PLAN,
    assert_close,
    gammas,
    golden,
    golden_plan,
    group,
    randomise,
    single_task_model,
    small_model,
    student_decisions,
    tensors,
    with_tied_elites,
)

from tdmpc2.checkpointing import load_model
from tdmpc2.errors import UserError
from tdmpc2.model import WorldModel
from tdmpc2.planner import Plan, Planner, PlannerSettings, PlanNoise, ReferencePlanner

TRACE = ("candidates", "values", "mean", "action")


def held_equal(found: Plan, expected: Plan, tolerance: float = 1e-4) -> None:
    for name in TRACE:
        assert_close(getattr(found, name), getattr(expected, name), tolerance, name)


def both(model: WorldModel, settings: PlannerSettings, discounts: torch.Tensor, task: torch.Tensor | None) -> None:
    """Plans of both planners from the same random observations, warm starts and noise."""
    generator = torch.Generator().manual_seed(4)
    fused = Planner(model, settings, discounts)
    obs = torch.randn(3, model.dims.obs_dim, generator=generator)
    warm = torch.rand(3, settings.horizon, model.dims.action_dim, generator=generator) - 0.5
    noise = fused.draw_noise(3, generator)
    for greedy in (False, True):
        expected = ReferencePlanner(model, settings, discounts).plan(obs, task, warm, noise, greedy=greedy)
        held_equal(fused.plan(obs, task, warm, noise, greedy=greedy, trace=True), expected)


@pytest.mark.parametrize("greedy", [False, True])
def test_the_reference_equals_the_golden_decisions(device: str, greedy: bool) -> None:
    obs, task, warm, noise = golden_plan(golden(), device)
    reference = ReferencePlanner(small_model(device), SMALL_PLAN, gammas(device))
    plan = reference.plan(obs, task, warm, noise, greedy=greedy)
    figures = tensors(group(golden(), "plan_out"), device)
    for name in TRACE:
        assert_close(getattr(plan, name), figures["greedy" if greedy and name == "action" else name], name=name)


def test_the_fused_planner_equals_the_reference() -> None:
    both(small_model(), SMALL_PLAN, gammas(), torch.tensor([2, 0, 1]))


def test_they_are_equal_for_one_task_and_for_two_heads() -> None:
    both(single_task_model(), SMALL_PLAN, torch.tensor([0.97]), None)
    model = WorldModel(replace(SMALL_DIMS, num_q=2), small_model().action_masks)
    randomise(model, 2)
    both(model.eval(), SMALL_PLAN, gammas(), torch.tensor([0, 0, 1]))


@pytest.mark.parametrize(
    "change",
    [
        {"num_pi_trajs": 0},
        {"num_pi_trajs": SMALL_PLAN.num_samples},
        {"horizon": 1},
        {"iterations": 1, "num_elites": 1, "temperature": 5.0},
    ],
)
def test_they_are_equal_for_other_settings(change: dict[str, float]) -> None:
    settings = replace(SMALL_PLAN, **change)  # type: ignore[arg-type]
    both(small_model(), settings, gammas(), torch.tensor([0, 1, 2]))


def test_the_reference_decides_as_the_released_student(shared_checkpoints: Path, shared_golden: Path) -> None:
    g = tensors(student_decisions(shared_golden))
    model, tasks, _ = load_model(shared_checkpoints / RELEASED, "mt30", "cpu")
    reference = ReferencePlanner(model, STUDENT_PLAN, torch.from_numpy(tasks.discounts()))

    def of(key: str) -> torch.Tensor:
        return torch.stack([g[f"{name}0/{key}"] for name in "abc"])

    noise = PlanNoise(
        prior=of("prior_noise"),
        samples=of("sample_noise"),
        terminal=of("terminal_noise"),
        heads=torch.rand(3, 4, 2),
        elite=torch.rand(3),
        action=of("action_noise"),
        elite_rank=of("elite_rank_drawn"),
    )
    plan = reference.plan(of("obs"), of("task"), torch.zeros(3, 3, 6), noise)
    figures = {name: of(key) for name, key in zip(TRACE, ("actions", "value", "mean", "action"), strict=True)}
    figures["mean"] = with_tied_elites(plan.mean, figures, STUDENT_PLAN)
    for name in TRACE:
        assert_close(getattr(plan, name), figures[name], name=name)


def test_half_weights_are_computed_in_float32_and_int8_ones_refused() -> None:
    obs, task, warm, noise = golden_plan(golden())
    model = small_model().half()
    half = ReferencePlanner(model, SMALL_PLAN, gammas()).plan(obs, task, warm, noise)
    expected = ReferencePlanner(small_model().half().float(), SMALL_PLAN, gammas()).plan(obs, task, warm, noise)
    held_equal(half, expected, 5e-3)  # the embedding's norm limit is taken in half
    model.use_int8_products()
    with pytest.raises(UserError, match="this model has int8 weights: use Planner"):
        ReferencePlanner(model, SMALL_PLAN, gammas())
