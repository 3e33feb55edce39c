"""The world model against reference figures, an independent implementation, and the published parameter counts."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import make_golden
import numpy as np
import pytest
import torch
from model_fixtures import (
    RELEASED,
    SMALL_DIMS,
    assert_close,
    golden,
    golden_batch,
    golden_update_noise,
    group,
    single_task_model,
    small_model,
    small_tasks,
    tensors,
)

from tdmpc2.checkpointing import load_model
from tdmpc2.errors import UserError
from tdmpc2.model import ACTING_PARTS, MODEL_SIZES, ModelDims, WorldModel, model_dims, published_size
from tdmpc2.model.layers import mish, simnorm
from tdmpc2.planner import Planner, PlannerSettings
from tdmpc2.tasks import task_set


def test_stored_golden_is_what_the_recipe_makes() -> None:
    stored = golden()
    weights, teacher = group(stored, "weights"), group(stored, "teacher")
    inputs = {k: v for k, v in stored.items() if k.split("/")[0] in ("batch", "update", "plan")}
    for name, figure in make_golden.reference_figures(weights, teacher, inputs).items():
        np.testing.assert_allclose(stored[name], figure, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_every_output_equals_the_independent_implementation(device: str, dtype: torch.dtype) -> None:
    figures = golden()
    model, batch, noise = small_model(device), golden_batch(figures, device), golden_update_noise(figures, device)
    model = model.to(dtype)
    g, task, action = tensors(group(figures, "model"), device), batch.task, batch.action[0].to(dtype)
    z = model.encode(batch.obs[0].to(dtype), task)
    assert_close(z, g["z"])
    assert_close(model.next(z, action, task), g["next_z"])
    logits = model.reward(z, action, task)
    assert_close(logits, g["reward_logits"])
    assert_close(model.decode(logits), g["reward"])
    # The figures have one row a slice, the model one a head.
    assert_close(model.q_values(z, action, task), g["q_logits"].transpose(0, 1))
    assert_close(model.q_values(z, action, task, target=True), g["target_q_logits"].transpose(0, 1))
    for prefix, eps in (("pi0", torch.zeros_like(action)), ("pi", noise.policy_action[0].to(dtype))):
        sample = model.sample_policy(z, task, eps)
        mean, log_std, drawn = model.policy(z, task, eps)
        assert drawn is not None
        for name, figure in sample._asdict().items():
            # 1 - a^2 of an action near its bound cancels in float32.
            tolerance = 1e-3 if name == "log_prob" and dtype == torch.float32 else 1e-4
            assert_close(figure, g[f"{prefix}_{name}"], tolerance, name)
        assert torch.equal(mean, sample.mean)
        assert torch.equal(log_std, sample.log_std)
        assert torch.equal(drawn, sample.action)


@torch.no_grad()
def test_released_student_equals_the_reference(
    device: str, shared_checkpoints: Path, reference_model_figures: dict[str, np.ndarray]
) -> None:
    g = tensors(reference_model_figures, device)
    model, tasks, _ = load_model(shared_checkpoints / RELEASED, "mt30", device)
    task, action = g["task"], g["action"]
    z = model.encode(g["obs"], task)
    assert_close(z, g["z"])
    assert_close(model.next(z, action, task), g["next_z"])
    logits, q = model.reward(z, action, task), model.q_values(z, action, task)
    assert_close(logits, g["reward_logits"])
    assert_close(model.decode(logits), g["reward"])
    assert_close(q, g["q_logits"])
    assert_close(model.decode(q).mean(0), g["q_avg"])
    assert_close(model.decode(q).amin(0), g["q_min"])
    assert_close(model.q_values(z, action, task, target=True), g["target_q_logits"])
    sample = model.sample_policy(z, task, torch.zeros_like(action))
    assert_close(sample.mean, g["pi_mean"])
    assert_close(sample.log_std, g["pi_log_std"])
    assert_close(sample.action, g["pi_action_eps0"])
    assert_close(-sample.log_prob, g["pi_entropy_eps0"])
    assert_close(sample.scaled_entropy, g["pi_scaled_entropy_eps0"])
    index = g["value_index"]
    planner = Planner(model, PlannerSettings(), torch.from_numpy(tasks.discounts()).to(device))
    value = planner.value(
        z[index].unsqueeze(1),
        task[index].unsqueeze(1),
        g["value_actions"],
        torch.zeros(6, 16, 6, device=device),
        torch.rand(6, 2, device=device),
    )
    assert_close(value, g["value"].squeeze(-1))


COUNTS = {1: 1_426_427, 5: 5_241_066, 19: 18_654_186, 48: 48_242_410, 317: 317_316_889}


def on_meta(dims: ModelDims) -> WorldModel:
    with torch.device("meta"):
        return WorldModel(dims, np.ones((dims.num_tasks, dims.action_dim), np.float32))


@pytest.mark.parametrize("size", MODEL_SIZES)
def test_published_parameter_counts(size: int) -> None:
    dims = model_dims(size, 24, 6, 30)
    model = on_meta(dims)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == COUNTS[size]
    assert published_size(dims) == size
    if size == 1:
        assert sum(p.numel() for p in model.parameters()) == 1_980_357


def test_released_19m_has_a_narrower_latent() -> None:
    dims = replace(model_dims(19, 24, 6, 30), latent_dim=512)
    assert sum(p.numel() for p in on_meta(dims).parameters() if p.requires_grad) == 16_031_210
    assert published_size(dims) == 19


def test_published_size_of_others() -> None:
    assert published_size(SMALL_DIMS) is None
    assert published_size(model_dims(5, 8, 2, 1)) == 5
    assert published_size(replace(model_dims(5, 39, 6, 80), task_dim=96)) == 5
    assert published_size(replace(model_dims(5, 24, 6, 30), task_dim=50)) is None
    with pytest.raises(UserError, match="model_size=7 is not a published size; choose one of 1, 5, 19, 48, 317"):
        model_dims(7, 24, 6, 30)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("obs_dim", 0, "obs_dim must be at least 1"),
        ("num_q", 1, "num_q must be at least 2"),
        ("num_enc_layers", 1, "num_enc_layers must be at least 2"),
        ("latent_dim", 20, "not a multiple of simnorm_dim"),
        ("task_dim", 0, "must both be 0"),
        ("num_bins", 1, "not a valid grid"),
    ],
)
def test_dimensions_check_themselves(field: str, value: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SMALL_DIMS, **{field: value})


def test_new_weights_follow_the_paper() -> None:
    model = WorldModel(model_dims(1, 24, 6, 30), task_set("mt30").action_masks())
    model.init_weights(torch.Generator().manual_seed(0))
    assert model.task_embedding is not None
    assert 0.019 < float(model.task_embedding.detach().abs().max()) <= 0.02
    state = model.state_dict()
    assert all(tensor.isfinite().all() for tensor in state.values())
    for name, tensor in state.items():
        if name.endswith(("norm_bias", ".bias")):
            assert not tensor.any(), name
        elif name.endswith("norm_weight"):
            assert (tensor == 1).all(), name
    for part in ("reward_head", "q_heads", "target_q_heads"):
        assert not state[f"{part}.layers.2.weight"].any()
    assert float(state["encoder.layers.0.weight"].std()) == pytest.approx(0.02, rel=0.05)
    for name, tensor in state.items():
        if name.startswith("q_heads."):
            assert torch.equal(tensor, state["target_" + name])
    again = WorldModel(model.dims, task_set("mt30").action_masks())
    again.init_weights(torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(state.values(), again.state_dict().values(), strict=True))


def test_embedding_norm_limit() -> None:
    model = small_model()
    assert model.task_embedding is not None
    with torch.no_grad():
        model.task_embedding[1] *= 3  # also too long, but not used
    before = model.task_embedding.detach().clone()
    embedded = model.embed_task(torch.tensor([0, 2]))
    assert embedded is not None
    assert float(embedded[0].detach().norm()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(model.task_embedding, before), "a forward pass leaves the weights alone"
    model.limit_task_embedding(torch.tensor([0, 2, 0]))
    assert float(model.task_embedding[0].detach().norm()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(model.task_embedding[0].detach(), embedded[0].detach())
    assert torch.equal(model.task_embedding[1:], before[1:])


def test_activations_are_exact_to_rounding(device: str) -> None:
    x = torch.linspace(-30, 90, 4001, device=device).view(-1, 1).expand(-1, 16).contiguous()
    exact = torch.nn.functional.mish(x.double())
    # Within two units in the last place of the input.
    assert float(((mish(x) - exact).abs() / x.abs().clamp(min=1)).max()) < 2.4e-7
    wide = torch.randn(64, 16, device=device) * 40
    expected = torch.softmax(wide.double().view(64, 2, 8), -1).view(64, 16)
    torch.testing.assert_close(simnorm(wide, 8).double(), expected, rtol=1e-5, atol=1e-7)
    assert mish(torch.tensor([torch.nan], device=device)).isnan()


def test_activations_have_gradients() -> None:
    x = torch.randn(4, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: simnorm(y, 8), x)
    assert torch.autograd.gradcheck(mish, x)


def test_leading_axes_are_free() -> None:
    model, batch = small_model(), golden_batch(golden())
    z = model.encode(batch.obs, batch.task)
    assert z.shape == (4, 5, 16)
    torch.testing.assert_close(z[2], model.encode(batch.obs[2], batch.task))
    q = model.q_values(z[:-1], batch.action, batch.task)
    assert q.shape == (3, 3, 5, 101)
    torch.testing.assert_close(q[:, 1], model.q_values(z[1], batch.action[1], batch.task))


def test_unused_actions_are_zero_and_no_noise_means_no_sample() -> None:
    model = small_model()
    z, task = torch.rand(3, 16), torch.arange(3)
    unused = model.action_masks == 0
    for out in model.policy(z, task, torch.randn(3, 6)):
        assert out is not None
        assert not out[unused].any()
    assert model.policy(z, task)[2] is None


def test_dropout_is_what_the_caller_gives() -> None:
    model = small_model(dropout=0.5).train()
    z, action, task = torch.rand(3, 16), torch.rand(3, 6), torch.arange(3)
    plain = model.q_values(z, action, task)
    assert torch.equal(plain, model.q_values(z, action, task)), "nothing is drawn within the model"
    ones = torch.ones(3, 3, model.dims.mlp_dim)
    assert torch.equal(plain, model.q_values(z, action, task, dropout=ones))
    ones[1, 2, 5] = 0.0
    dropped = model.q_values(z, action, task, dropout=ones)
    changed = (dropped != plain).any(-1)
    assert changed[1, 2] and int(changed.sum()) == 1


def test_some_heads_alone_and_frozen_weights() -> None:
    model = small_model()
    z, task = torch.rand(2, 3, 16), torch.arange(3)
    action = torch.rand(2, 3, 6, requires_grad=True)
    heads = torch.tensor([2, 0])
    some = model.q_values(z, action, task, heads=heads, frozen=True)
    torch.testing.assert_close(some, model.q_values(z, action, task)[heads])
    some.sum().backward()
    assert action.grad is not None and all(p.grad is None for p in model.parameters())


def test_inputs_in_pieces_broadcast() -> None:
    model = small_model()
    z, task, action = torch.rand(4, 1, 16), torch.tensor([[0], [1], [2], [1]]), torch.rand(4, 7, 6)
    for function in (model.next, model.reward, model.q_values):
        torch.testing.assert_close(function(z, action, task), function(z.expand(-1, 7, -1), action, task.expand(-1, 7)))


def test_single_task_model_has_no_embedding() -> None:
    model = single_task_model()
    assert model.task_embedding is None
    assert "task_embedding" not in model.state_dict()
    z = model.encode(torch.rand(4, 8), None)
    assert model.q_values(z, torch.rand(4, 2), None).shape == (3, 4, 101)
    sample = model.sample_policy(z, None, torch.zeros(4, 2))
    gaussian = -(sample.log_std + 0.5 * np.log(2 * np.pi)).sum(-1, keepdim=True)
    torch.testing.assert_close(sample.scaled_entropy, -2 * gaussian)
    model.limit_task_embedding(torch.zeros(4, dtype=torch.int64))


def test_missing_parts_and_tasks_are_named() -> None:
    model = WorldModel(SMALL_DIMS, small_tasks().action_masks(), ACTING_PARTS)
    z, action, task = torch.rand(1, 16), torch.rand(1, 6), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(UserError, match="no weights for 'target_q_heads': it was saved without them"):
        model.q_values(z, action, task, target=True)
    assert not model.has_target_q
    teacher = WorldModel(SMALL_DIMS, small_tasks().action_masks(), ("encoder", "reward_head"))
    with pytest.raises(UserError, match="no weights for 'dynamics'"):
        teacher.next(z, action, task)
    with pytest.raises(UserError, match="knows 3 tasks: give the task ids"):
        small_model().encode(torch.rand(1, 24), None)
    with pytest.raises(UserError, match=r"action masks of shape \(3, 6\), not \(2, 6\)"):
        WorldModel(SMALL_DIMS, np.ones((2, 6), np.float32))


def test_copies_are_independent() -> None:
    model = small_model()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.encoder.layers[0].get_parameter("weight").zero_()
    assert model.encoder.layers[0].get_parameter("weight").any()
