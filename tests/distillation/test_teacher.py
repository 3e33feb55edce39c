"""The teacher: what it loads, which tasks it matches, and that it stays frozen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_fixtures import (
    RELEASED,
    SMALL_DIMS,
    assert_close,
    checkpoint_error,
    gammas,
    golden,
    golden_batch,
    group,
    randomise,
    single_task_model,
    small_model,
    small_tasks,
    tensors,
    with_rewards,
)

from tdmpc2.checkpointing import CheckpointMetadata, load_model, save_checkpoint
from tdmpc2.distillation import REWARD_PARTS, Teacher, load_teacher, random_teacher
from tdmpc2.errors import UserError
from tdmpc2.losses import LossWeights
from tdmpc2.model import WorldModel, model_dims
from tdmpc2.objectives import RewardDistillation
from tdmpc2.tasks import TaskSet, task_set
from tdmpc2.training.learner import Learner, OptimiserSettings

SINGLE = task_set("cup-catch")


def golden_teacher(student: TaskSet) -> Teacher:
    """The reference's teacher: only its three parts have weights, in a wider latent than the student's."""
    model = WorldModel(replace(SMALL_DIMS, latent_dim=24), small_tasks().action_masks(), REWARD_PARTS)
    model.load_state_dict(tensors(group(golden(), "teacher")))
    return Teacher(model, small_tasks(), student)


def save_teacher(path: Path, model: WorldModel, tasks: TaskSet) -> None:
    save_checkpoint(path, model.state_dict(), CheckpointMetadata(tasks.name, tasks.tasks, model.dims, None, 0))


def test_the_parts_of_the_317m_teacher() -> None:
    tasks = task_set("mt30")
    dims = model_dims(317, tasks.obs_dim, tasks.action_dim, len(tasks))
    with torch.device("meta"):
        model = WorldModel(dims, tasks.action_masks(), REWARD_PARTS)
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"task_embedding", "encoder", "reward_head"}
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(79.8e6, abs=5e4)


def test_rewards_equal_the_independent_implementation() -> None:
    batch, teacher = golden_batch(golden()), golden_teacher(small_tasks())
    rewards = teacher.rewards(batch.obs[0], batch.action[0], batch.task)
    assert rewards.shape == (5, 1)
    assert not rewards.requires_grad
    assert_close(rewards, golden()["losses/teacher_reward"])


def test_tasks_are_matched_by_name_across_sets_and_widths() -> None:
    """A student of fewer tasks, in another order and with narrower observations and actions."""
    student = task_set("narrow", ("pendulum-spin", "cup-catch"))
    assert (student.obs_dim, student.action_dim) == (8, 2)
    batch = golden_batch(golden())
    rows = [1, 2, 4]  # cup-catch, pendulum-spin, cup-catch
    obs, action = batch.obs[0, rows].clone(), batch.action[0, rows].clone()
    obs[:, 8:] = 0
    obs[1, 3:] = 0
    wide = golden_teacher(small_tasks()).rewards(obs, action, batch.task[rows])
    narrow = golden_teacher(student).rewards(obs[:, :8], action[:, :2], torch.tensor([1, 0, 1]))
    assert torch.equal(wide, narrow)
    assert wide.unique().numel() == 3
    # The other way round, a teacher of narrower widths cuts padding only.
    model = WorldModel(replace(SMALL_DIMS, obs_dim=8, action_dim=2, num_tasks=2), student.action_masks())
    randomise(model, 0)
    teacher = Teacher(model, student, small_tasks_without_walker())
    torch.testing.assert_close(
        teacher.rewards(obs, action, torch.tensor([1, 2, 1]) - 1),
        Teacher(model, student, student).rewards(obs[:, :8], action[:, :2], torch.tensor([1, 0, 1])),
    )


def small_tasks_without_walker() -> TaskSet:
    return task_set("two", ("cup-catch", "pendulum-spin"))


def test_single_task_teacher_and_student() -> None:
    teacher = Teacher(single_task_model(), SINGLE, SINGLE)
    task = torch.zeros(3, dtype=torch.int64)
    assert teacher.rewards(torch.rand(3, 8), torch.rand(3, 2), task).shape == (3, 1)
    assert golden_teacher(SINGLE).rewards(torch.rand(3, 8), torch.rand(3, 2), task).shape == (3, 1)


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(UserError, match="knows task set 'small' and not fish-swim, hopper-hop"):
        golden_teacher(task_set("more", ("walker-walk", "fish-swim", "hopper-hop")))


def test_frozen() -> None:
    teacher = golden_teacher(small_tasks())
    teacher.check_frozen()
    batch, before = golden_batch(golden()), {n: t.clone() for n, t in teacher.model.state_dict().items()}
    taught = teacher.rewards(batch.obs[0], batch.action[0], batch.task)
    student = small_model()
    objectives = (RewardDistillation(0.4),)
    learner = Learner(student, gammas(), LossWeights(), OptimiserSettings(), 0, objectives=objectives)
    for _ in range(2):
        metrics = learner.update(with_rewards(batch, taught))
    assert float(metrics["total_loss"]) == pytest.approx(
        float(metrics["original_loss"]) + 0.4 * float(metrics["distillation_loss"]), rel=1e-5
    )
    assert all(p.grad is None for p in teacher.model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.model.state_dict().items())
    teacher.check_frozen()
    teacher.model.train()
    with pytest.raises(UserError, match="the teacher is not frozen"):
        teacher.check_frozen()
    teacher.model.eval()
    next(teacher.model.parameters()).requires_grad_(True)
    with pytest.raises(UserError, match="the teacher is not frozen"):
        teacher.check_frozen()


def test_loading_from_this_project_s_file(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_teacher(path, small_model(), small_tasks())
    teacher = load_teacher(path, small_tasks())
    assert teacher.model.parts == set(REWARD_PARTS)
    assert {n.split(".")[0] for n in teacher.model.state_dict()} == {"task_embedding", "encoder", "reward_head"}
    assert teacher.num_parameters == sum(p.numel() for p in teacher.model.parameters())
    teacher.check_frozen()
    batch, model = golden_batch(golden()), small_model()
    z = model.encode(batch.obs[0], batch.task)
    expected = model.decode(model.reward(z, batch.action[0], batch.task)).detach()
    torch.testing.assert_close(teacher.rewards(batch.obs[0], batch.action[0], batch.task), expected)
    with checkpoint_error(path, "a custom-size model", "expected model_size=317"):
        load_teacher(path, small_tasks(), model_size=317)
    with pytest.raises(UserError, match="not hopper-hop"):
        load_teacher(path, task_set("more", ("cup-catch", "hopper-hop")))


def test_loading_from_a_released_file(shared_checkpoints: Path) -> None:
    path = shared_checkpoints / RELEASED
    student = task_set("four", ("cartpole-swingup", "reacher-easy", "cup-spin", "pendulum-spin"))
    teacher = load_teacher(path, student, task="mt30", model_size=1)
    teacher.check_frozen()
    model, tasks, _ = load_model(path, "mt30")
    obs, action = torch.zeros(4, student.obs_dim), torch.zeros(4, student.action_dim)
    obs[:, 0] = torch.rand(4)
    ids = torch.tensor([tasks.index(name) for name in student.tasks])
    wide = torch.nn.functional.pad(obs, (0, 24 - student.obs_dim))
    z = model.encode(wide, ids)
    expected = model.decode(model.reward(z, torch.zeros(4, 6), ids)).detach()
    torch.testing.assert_close(teacher.rewards(obs, action, torch.arange(4)), expected)
    with checkpoint_error(path, "holds a 1M model", "expected model_size=317"):
        load_teacher(path, student, task="mt30", model_size=317)
    with checkpoint_error(path, "does not name its tasks; set teacher.task to"):
        load_teacher(path, student)
    with checkpoint_error(path, "expected a model of 'four': 4 tasks", "teacher.task=mt30"):
        load_teacher(path, student, task=student)


def test_random_teacher_differs_between_inputs() -> None:
    teacher = random_teacher(SMALL_DIMS, small_tasks(), small_tasks(), seed=1)
    teacher.check_frozen()
    batch = golden_batch(golden())
    rewards = teacher.rewards(batch.obs[0], batch.action[0], batch.task)
    assert rewards.unique().numel() == 5
    again = random_teacher(SMALL_DIMS, small_tasks(), small_tasks(), seed=1)
    assert torch.equal(rewards, again.rewards(batch.obs[0], batch.action[0], batch.task))
