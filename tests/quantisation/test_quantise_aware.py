"""Training for a scheme: passes see what it stores, float weights learn, and quantising afterwards changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_fixtures import (
    checkpoint_error,
    gammas,
    golden,
    golden_batch,
    golden_update_noise,
    randomise,
    small_model,
    with_rewards,
)
from run_fixtures import tiny_run, tiny_settings
from torch import Tensor

from tdmpc2.checkpointing import CheckpointMetadata, read_checkpoint, save_checkpoint
from tdmpc2.data.batch import Batch
from tdmpc2.errors import UserError
from tdmpc2.losses import LossWeights
from tdmpc2.model import WorldModel
from tdmpc2.objectives import RewardDistillation
from tdmpc2.quantisation import SCHEMES, quantise
from tdmpc2.training import Learner, OptimiserSettings
from tdmpc2.training.student import new_student

WHOLE = [name for name, scheme in SCHEMES.items() if not scheme.is_float]


def learner_of(model: WorldModel, scheme: str | None) -> Learner:
    chosen = None if scheme is None else SCHEMES[scheme]
    objectives = (RewardDistillation(0.4),)
    return Learner(model, gammas(), LossWeights(), OptimiserSettings(), 3, objectives=objectives, scheme=chosen)


def batch() -> Batch:
    return with_rewards(golden_batch(golden()), torch.linspace(-1, 2, 5).unsqueeze(1))


def stored(model: WorldModel, scheme: str) -> dict[str, Tensor]:
    """A model's weights through the scheme's stored form."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return SCHEMES[scheme].decode(quantise(model.state_dict(), scheme).tensors, shapes)


def copied(model: WorldModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("scheme", WHOLE)
def test_what_training_sees_is_what_quantising_stores(scheme: str) -> None:
    learner = learner_of(small_model(), scheme)
    for _ in range(3):
        for name, tensor in stored(learner.master, scheme).items():
            assert torch.equal(learner.model.state_dict()[name], tensor), name
        learner.update(batch())
    assert not torch.equal(learner.master.encoder.layers[0].weight, learner.model.encoder.layers[0].weight)
    assert not any(p.requires_grad for p in learner.master.target_q_heads.parameters())


def test_gradients_of_the_rounded_weights_move_the_float_ones() -> None:
    """As an update of a plain learner at the rounded weights: same losses and norms, and the same steps from others."""
    start = small_model()
    with torch.no_grad():  # well below norm 1, where an update limits the stored rows
        start.task_embedding.mul_(0.3)
    plain = learner_of(small_model(), None)
    plain.model.load_state_dict(stored(start, "int4"))
    aware = learner_of(start, "int4")
    noise = golden_update_noise(golden())
    seen, before = copied(plain.model), copied(aware.master)
    metrics, expected = aware.update(batch(), noise), plain.update(batch(), noise)
    for name in ("consistency_loss", "reward_loss", "value_loss", "distillation_loss", "grad_norm"):
        assert torch.equal(metrics[name], expected[name]), name
    for name, tensor in plain.model.state_dict().items():
        if name.startswith(("policy_head", "target_q_heads")):
            continue  # these follow Q as it is after its step, rounded here and not there
        step = aware.master.state_dict()[name] - before[name]
        torch.testing.assert_close(step, tensor - seen[name], rtol=1e-3, atol=1e-6)
        assert bool(step.any()), name
    assert all(bool((p != before[f"policy_head.{n}"]).any()) for n, p in aware.master.policy_head.named_parameters())


def test_target_q_follows_in_float_and_is_seen_rounded() -> None:
    learner = learner_of(small_model(), "int4")
    before = learner.master.target_q_heads.layers[0].weight.clone()
    learner.update(batch())
    after, q = learner.master.target_q_heads.layers[0].weight, learner.master.q_heads.layers[0].weight
    torch.testing.assert_close(after, before + 0.01 * (q - before))
    seen = learner.model.target_q_heads.layers[0].weight
    assert torch.equal(seen, SCHEMES["int4"].rounded("target_q_heads.layers.0.weight", after))


def test_without_a_scheme_the_model_is_its_own_master() -> None:
    model = small_model()
    learner = learner_of(model, None)
    assert learner.master is learner.model is model


def test_a_run_keeps_float_weights_and_resumes_exactly(tmp_path: Path) -> None:
    keys = ("quantise_aware=int4", "log_freq=3", "state_freq=4", "save_freq=100", "teacher=dataset")
    tiny_run(tmp_path / "whole", "steps=7", *keys)
    tiny_run(tmp_path / "parts", "steps=3", *keys)
    tiny_run(tmp_path / "parts", "steps=7", "resume=true", *keys)
    whole, parts = (read_checkpoint(tmp_path / n / "checkpoints" / "final.safetensors") for n in ("whole", "parts"))
    assert whole.is_float and all(torch.equal(parts.tensors[name], tensor) for name, tensor in whole.tensors.items())
    rounded = {name: SCHEMES["int4"].rounded(name, tensor) for name, tensor in whole.tensors.items()}
    assert not any(torch.equal(rounded[n], t) for n, t in whole.tensors.items() if n.endswith("weight") and t.any())
    for changed in (("quantise_aware=int8",), ()):
        with pytest.raises(UserError, match="cannot resume with other settings: quantise_aware was 'int4' and is"):
            tiny_run(tmp_path / "parts", "steps=9", "resume=true", *changed, *keys[1:])


def test_a_run_starts_from_a_student_of_its_own_scheme_alone(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "run", "quantise_aware=int8")
    model = WorldModel(settings.dims, settings.task_set.action_masks())
    randomise(model, 0)
    tensors, tasks, path = (
        quantise(model.state_dict(), "int8").tensors,
        settings.task_set,
        tmp_path / "int8.safetensors",
    )
    save_checkpoint(path, tensors, CheckpointMetadata(tasks.name, tasks.tasks, settings.dims, 1, 0, scheme="int8"))
    found = new_student(replace(settings, checkpoint=path)).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in stored(model, "int8").items())
    for other in ("int4", None):
        with checkpoint_error(path, "is quantised (stored as int8, ", "training needs float weights"):
            new_student(replace(settings, checkpoint=path, quantise_aware=other))


def test_a_run_without_it_is_what_it_was(tmp_path: Path) -> None:
    assert "quantise_aware" not in tiny_settings(tmp_path).identity()
    assert tiny_settings(tmp_path, "quantise_aware=int4").identity()["quantise_aware"] == "int4"


@pytest.mark.parametrize("scheme", ["fp16", "bf16"])
def test_floats_need_no_training_for_them(tmp_path: Path, scheme: str) -> None:
    with pytest.raises(UserError, match=f"quantise_aware={scheme} stores floats.*choose one of int8, int8-dynamic"):
        tiny_settings(tmp_path, f"quantise_aware={scheme}")
    with pytest.raises(UserError, match="quantise_aware=int3 is unknown; choose one of"):
        tiny_settings(tmp_path, "quantise_aware=int3")
