"""MPPI against reference decisions, an independent implementation, and its promises about batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_fixtures import (
    RELEASED,
    SMALL_PLAN,
    STUDENT_PLAN,
    assert_close,
    gammas,
    golden,
    golden_plan,
    group,
    single_task_model,
    small_model,
    student_decisions,
    tensors,
    with_tied_elites,
)
from torch import Tensor

from tdmpc2.checkpointing import load_model
from tdmpc2.errors import UserError
from tdmpc2.execution import Execution
from tdmpc2.model import WorldModel
from tdmpc2.planner import Plan, Planner, PlannerSettings, PlanNoise


def rows(noise: PlanNoise, index: int) -> PlanNoise:
    """The noise of one environment, still as a batch."""
    part = slice(index, index + 1)
    rank = None if noise.elite_rank is None else noise.elite_rank[part]
    names = ("prior", "samples", "terminal", "heads", "elite", "action")
    return PlanNoise(**{name: getattr(noise, name)[part] for name in names}, elite_rank=rank)


def plan_small(device: str = "cpu", greedy: bool = False) -> Plan:
    obs, task, warm, noise = golden_plan(golden(), device)
    planner = Planner(small_model(device), SMALL_PLAN, gammas(device))
    return planner.plan(obs, task, warm, noise, greedy=greedy, trace=True)


def check(plan: Plan, figures: dict[str, Tensor]) -> None:
    assert plan.candidates is not None
    assert plan.values is not None
    assert_close(plan.candidates, figures["candidates"], name="candidates")
    assert_close(plan.values, figures["values"], name="values")
    assert_close(plan.mean, figures["mean"], name="mean")
    assert_close(plan.action, figures["action"], name="action")


def test_decisions_equal_the_independent_implementation(device: str) -> None:
    figures = tensors(group(golden(), "plan_out"), device)
    check(plan_small(device), figures)
    assert_close(plan_small(device, greedy=True).action, figures["greedy"])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("together", [True, False])
def test_released_student_decides_as_the_reference(
    device: str, together: bool, compiled: bool, shared_checkpoints: Path, shared_golden: Path
) -> None:
    g = tensors(student_decisions(shared_golden), device)
    model, tasks, _ = load_model(shared_checkpoints / RELEASED, "mt30", device)
    execution = Execution(compile=compiled)
    planner = Planner(model, STUDENT_PLAN, torch.from_numpy(tasks.discounts()).to(device), execution)
    if planner.execution != execution:
        pytest.skip("nothing can be compiled here")
    for names in ("abc",) if together else ("a", "b", "c"):
        warm = torch.zeros(len(names), 3, 6, device=device)
        for step in "01":

            def of(key: str, names: str = names, step: str = step) -> Tensor:
                return torch.stack([g[f"{name}{step}/{key}"] for name in names])

            count = len(names)
            noise = PlanNoise(
                prior=of("prior_noise"),
                samples=of("sample_noise"),
                terminal=of("terminal_noise"),
                heads=torch.rand(count, 4, 2, device=device),
                elite=torch.rand(count, device=device),
                action=of("action_noise"),
                elite_rank=of("elite_rank_drawn"),
            )
            plan = planner.plan(of("obs"), of("task"), warm, noise, trace=True)
            reached = {"candidates": "actions", "values": "value", "mean": "mean", "action": "action"}
            figures = {name: of(key) for name, key in reached.items()}
            figures["mean"] = with_tied_elites(plan.mean, figures, STUDENT_PLAN)
            check(plan, figures)
            warm = torch.cat([of("mean")[:, 1:], torch.zeros_like(plan.mean[:, :1])], dim=1)


def test_a_plan_does_not_depend_on_its_neighbours() -> None:
    obs, task, warm, noise = golden_plan(golden())
    planner = Planner(small_model(), SMALL_PLAN, gammas())
    together = planner.plan(obs, task, warm, noise)
    for n in range(3):
        alone = planner.plan(obs[n : n + 1], task[n : n + 1], warm[n : n + 1], rows(noise, n))
        torch.testing.assert_close(alone.action[0], together.action[n], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.mean[0], together.mean[n], rtol=1e-4, atol=1e-5)


def test_noise_of_one_generator_each_does_not_depend_on_neighbours() -> None:
    planner = Planner(small_model(), SMALL_PLAN, gammas())
    together = planner.draw_noise(3, [torch.Generator().manual_seed(s) for s in (5, 6, 7)])
    alone = planner.draw_noise(1, [torch.Generator().manual_seed(6)])
    for name in ("prior", "samples", "terminal", "heads", "elite", "action"):
        assert torch.equal(getattr(together, name)[1], getattr(alone, name)[0]), name
    repeated = planner.draw_noise(2, torch.Generator().manual_seed(1))
    assert torch.equal(repeated.samples, planner.draw_noise(2, torch.Generator().manual_seed(1)).samples)


def test_noise_is_normal_and_uniform() -> None:
    planner = Planner(small_model(), PlannerSettings(), gammas())
    noise = planner.draw_noise(4, torch.Generator().manual_seed(0))
    assert noise.samples.shape == (4, 6, 3, 488, 6)
    for normal in (noise.samples, noise.terminal):
        assert float(normal.mean()) == pytest.approx(0, abs=0.02)
        assert float(normal.std()) == pytest.approx(1, abs=0.02)
    for uniform in (noise.heads, noise.elite):
        assert (uniform >= 0).all()
        assert (uniform < 1).all()


@torch.no_grad()
def test_two_heads_are_picked_for_each_environment() -> None:
    model = small_model()
    planner = Planner(model, SMALL_PLAN, gammas())
    z, task = torch.rand(3, 1, 16), torch.arange(3).unsqueeze(1)
    actions, terminal = torch.rand(3, 3, 4, 6), torch.randn(3, 4, 6)
    heads = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.3, 0.9], [0.7, 0.1, 0.8]])
    found = planner.value(z, task, actions, terminal, heads)
    for n, picked in enumerate(([0, 1], [2, 1], [2, 0])):
        for parts in ([0, 1, 2], picked):
            two = model_with_heads(model, parts)
            uniform = torch.tensor([[0.5, 0.5]]) if len(parts) == 2 else heads[n : n + 1]
            value = Planner(two, SMALL_PLAN, gammas()).value(
                z[n : n + 1], task[n : n + 1], actions[n : n + 1], terminal[n : n + 1], uniform
            )
            torch.testing.assert_close(value[0], found[n], rtol=1e-4, atol=1e-5)


def model_with_heads(model: WorldModel, heads: list[int]) -> WorldModel:
    """The same model with only these Q heads."""
    other = WorldModel(replace(model.dims, num_q=len(heads)), model.action_masks)
    state = model.state_dict()
    other.load_state_dict({n: t[heads] if "q_heads" in n else t for n, t in state.items()})
    return other.eval()


@torch.no_grad()
def test_a_value_that_is_not_a_number_counts_as_zero() -> None:
    model = small_model()
    planner = Planner(model, SMALL_PLAN, gammas())
    actions = torch.rand(1, 3, 4, 6)
    actions[0, 1, 2, 0] = torch.nan
    value = planner.value(
        torch.rand(1, 1, 16), torch.zeros(1, 1, dtype=torch.int64), actions, torch.randn(1, 4, 6), torch.rand(1, 3)
    )
    assert value[0, 2] == 0
    assert (value[0, [0, 1, 3]] != 0).all()
    # A model whose values are all broken still acts, within bounds.
    model.q_heads.layers[2].get_parameter("bias").fill_(torch.nan)
    plan = plan_with(model, greedy=False)
    assert plan.action.isfinite().all()
    assert (plan.action.abs() <= 1).all()


def plan_with(model: WorldModel, greedy: bool, **changes: object) -> Plan:
    obs, task, warm, noise = golden_plan(golden())
    noise = replace(noise, **changes)  # type: ignore[arg-type]
    return Planner(model, SMALL_PLAN, gammas()).plan(obs, task, warm, noise, greedy=greedy, trace=True)


def test_actions_stay_in_bounds_and_masked() -> None:
    model = small_model()
    plan = plan_with(model, greedy=False, action=torch.full((3, 6), 50.0))
    assert model.action_masks is not None
    unused = model.action_masks == 0
    assert (plan.action[~unused] == 1).all()
    assert not plan.action[unused].any()
    assert not plan.mean.transpose(0, 1)[:, unused].any()
    assert plan.candidates is not None
    assert not plan.candidates.permute(1, 2, 3, 0, 4)[..., unused].any()
    assert (plan.candidates.abs() <= 1).all()


def test_greedy_leaves_the_noise_out() -> None:
    model = small_model()
    quiet, loud = (plan_with(model, True, action=torch.full((3, 6), x)) for x in (0.0, 5.0))
    assert torch.equal(quiet.action, loud.action)
    assert torch.equal(quiet.action, plan_with(model, False, action=torch.zeros(3, 6)).action)
    assert plan_with(model, False, action=torch.full((3, 6), 5.0)).action.ne(quiet.action).any()


def test_the_first_round_samples_around_the_warm_start() -> None:
    obs, task, _, noise = golden_plan(golden())
    planner = Planner(small_model(), SMALL_PLAN, gammas())
    warm = torch.full((3, 3, 6), 0.25)
    plan = planner.plan(obs, task, warm, replace(noise, samples=torch.zeros_like(noise.samples)), trace=True)
    assert plan.candidates is not None
    gaussian = plan.candidates[0, 0, :, SMALL_PLAN.num_pi_trajs :]
    assert (gaussian == 0.25).all()
    prior = plan.candidates[:, :, :, : SMALL_PLAN.num_pi_trajs]
    assert torch.equal(prior[:, 0], prior[:, -1]), "the prior's trajectories stay candidates"


def test_elites_are_drawn_by_weight() -> None:
    count = 20_000
    elites = torch.tensor([0.1, 0.2, 0.3]).view(1, 1, 3, 1).expand(count, 1, 3, 1)
    weight = torch.tensor([[0.6, 0.3, 0.1]]).expand(count, 3)
    zeros = torch.zeros(count, 1)
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0))
    noise = PlanNoise(zeros, zeros, zeros, zeros, uniform, zeros)
    action = Planner._draw_action(elites, weight, torch.zeros(count, 1, 1), None, noise, True)
    frequencies = [float((action == value).float().mean()) for value in (0.1, 0.2, 0.3)]
    assert frequencies == pytest.approx([0.6, 0.3, 0.1], abs=0.015)
    # Rounding may leave the cumulated weights below a draw just under 1: the last elite is taken.
    last = replace(noise, elite=torch.full((count,), 1.0))
    assert (Planner._draw_action(elites, weight, torch.zeros(count, 1, 1), None, last, True) == 0.3).all()


def test_single_task_model_plans() -> None:
    planner = Planner(single_task_model(), SMALL_PLAN, torch.tensor([0.97]))
    noise = planner.draw_noise(2, torch.Generator().manual_seed(0))
    obs = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    plan = planner.plan(obs, None, torch.zeros(2, 3, 2), noise)
    assert plan.action.shape == (2, 2)
    assert plan.action.ne(0).all()
    assert plan.candidates is None


def test_without_prior_trajectories() -> None:
    planner = Planner(small_model(), replace(SMALL_PLAN, num_pi_trajs=0), gammas())
    noise = planner.draw_noise(3, torch.Generator().manual_seed(0))
    plan = planner.plan(torch.rand(3, 24), torch.arange(3), torch.zeros(3, 3, 6), noise)
    assert plan.action.isfinite().all()


@torch.no_grad()
def test_planning_finds_better_sequences_than_chance() -> None:
    settings = PlannerSettings(num_samples=128, num_elites=16, num_pi_trajs=8)
    planner = Planner(small_model(), settings, gammas())
    noise = planner.draw_noise(3, torch.Generator().manual_seed(0))
    # The same two heads and a terminal action without noise throughout, so that values can be compared.
    noise = replace(noise, heads=torch.tensor([0.9, 0.8, 0.1]).expand(3, 6, 3), terminal=0 * noise.terminal)
    obs, task = golden_plan(golden())[:2]
    mean = planner.plan(obs, task, torch.zeros(3, 3, 6), noise).mean
    masks = planner.model.action_masks
    assert masks is not None
    random = torch.rand(3, 3, 200, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1
    actions = torch.cat([mean.unsqueeze(2), random * masks[:, None, None]], dim=2)
    z = planner.model.encode(obs, task).unsqueeze(1)
    value = planner.value(z, task.unsqueeze(1), actions, torch.zeros(3, 201, 6), noise.heads[:, 0])
    better = (value[:, :1] > value[:, 1:]).float().mean(1)
    assert (better > 0.95).all(), better


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, "planner.horizon must be at least 1, not 0"),
        ({"iterations": 0}, "planner.iterations must be at least 1"),
        ({"num_pi_trajs": 600}, "planner.num_pi_trajs=600 must lie between 0 and num_samples=512"),
        ({"num_pi_trajs": -1}, "planner.num_pi_trajs=-1"),
        ({"num_elites": 513}, "planner.num_elites=513 is more than planner.num_samples=512"),
        ({"min_std": 0.0}, "planner.min_std=0.0 must be above 0"),
        ({"min_std": 3.0}, "not above max_std=2.0"),
        ({"temperature": 0.0}, "planner.temperature must be above 0"),
    ],
)
def test_settings_check_themselves(changes: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as caught:
        PlannerSettings(**changes)  # type: ignore[arg-type]
    assert message in str(caught.value)


# -- numbers that overflow -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e3, 1e10, 1e20, 1e38])
@pytest.mark.parametrize("temperature", [0.5, 1e6])
def test_actions_are_finite_for_finite_weights_and_observations(scale: float, temperature: float) -> None:
    """Weights and observations so large that the model's numbers are infinite, or none at all."""
    settings = replace(SMALL_PLAN, temperature=temperature)
    for model, task in ((small_model(), torch.tensor([0, 1, 2, 0])), (single_task_model(), None)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale).clamp_(-3e38, 3e38)
        gamma = gammas() if task is not None else torch.tensor([0.99])
        planner = Planner(model, settings, gamma)
        obs = torch.randn(4, model.dims.obs_dim, generator=torch.Generator().manual_seed(0))
        for observation in (obs, (obs * scale).clamp(-3e38, 3e38)):
            for greedy in (False, True):
                noise = planner.draw_noise(4, torch.Generator().manual_seed(1))
                warm = torch.zeros(4, settings.horizon, model.dims.action_dim)
                plan = planner.plan(observation, task, warm, noise, greedy=greedy, trace=True)
                assert plan.candidates is not None and plan.values is not None
                for values in (plan.action, plan.mean, plan.candidates, plan.values):
                    assert torch.isfinite(values).all()
                assert plan.action.abs().max() <= 1
            assert torch.isfinite(planner.prior_action(observation, task, noise.action)).all()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_values_that_are_infinite_or_none_leave_a_finite_plan(value: float) -> None:
    """A bias that is infinite: every reward is inf or nan, and so is every value."""
    model = small_model()
    with torch.no_grad():
        last = model.reward_head.layers[-1]
        last.bias.fill_(value)
    planner = Planner(model, replace(SMALL_PLAN, temperature=1e6), gammas())
    obs, task = torch.randn(2, model.dims.obs_dim), torch.tensor([0, 1])
    noise = planner.draw_noise(2, torch.Generator().manual_seed(1))
    plan = planner.plan(obs, task, torch.zeros(2, SMALL_PLAN.horizon, model.dims.action_dim), noise)
    assert torch.isfinite(plan.action).all() and torch.isfinite(plan.mean).all()
