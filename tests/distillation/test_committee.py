"""Several teachers: each says of its tasks what it would say alone, and a run learns from all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_fixtures import golden, golden_batch
from run_fixtures import DUO, TASKS, files_in, store_path, tiny_model, tiny_run

from tdmpc2.checkpointing import CheckpointMetadata, save_checkpoint
from tdmpc2.data.batch import Batch
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.store import EpisodeStore
from tdmpc2.distillation import Committee, Lessons, Teacher, load_committee
from tdmpc2.errors import CheckpointError, UserError
from tdmpc2.model import ALL_PARTS
from tdmpc2.objectives import (
    Objective,
    PolicyDistillation,
    RewardAllDistillation,
    RewardDistillation,
    RewardLogitsDistillation,
    RewardOffDataDistillation,
    ValueDistillation,
)
from tdmpc2.tasks import TaskSet, task_set

OBJECTIVES: tuple[Objective, ...] = (
    RewardDistillation(1.0),
    RewardAllDistillation(1.0),
    RewardLogitsDistillation(1.0),
    RewardOffDataDistillation(1.0),
    ValueDistillation(1.0),
    PolicyDistillation(1.0),
)
TRIO = task_set("trio", (*TASKS[::-1], "cup-catch"))


def saved(path: Path, tasks: TaskSet, seed: int) -> Path:
    model = tiny_model(tasks, seed)
    save_checkpoint(path, model.state_dict(), CheckpointMetadata(tasks.name, tasks.tasks, model.dims, None, 0))
    return path


def duo_batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    batch = golden_batch(golden())
    shape = batch.obs.shape[:2]
    obs = torch.randn(*shape, DUO.obs_dim, generator=generator)
    obs[..., 3:] = 0
    action = torch.rand(shape[0] - 1, shape[1], DUO.action_dim, generator=generator) * 2 - 1
    return Batch(obs, action, batch.reward, torch.tensor([1, 0, 0, 1, 1]))


def lessons(source: Teacher | Committee, batch: Batch) -> Batch:
    size = len(batch.task)
    return Lessons(source, OBJECTIVES, 5, size, slice(0, size)).of(batch, 7)


def test_a_teacher_in_two_parts_says_the_same() -> None:
    model = tiny_model(DUO)
    parts = Committee([Teacher(model, DUO, DUO, asked=(task,)) for task in TASKS[::-1]], DUO)
    batch = duo_batch()
    found, expected = lessons(parts, batch).targets, lessons(Teacher(model, DUO, DUO), batch).targets
    assert found.keys() == expected.keys() and len(found) > len(OBJECTIVES)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-6, msg=name)


def test_each_task_is_its_teacher_s(tmp_path: Path) -> None:
    """A specialist, and a model of three tasks in another order, two of which are not asked for."""
    single = task_set(TASKS[0])
    files = [saved(tmp_path / "one", single, 1), saved(tmp_path / "three", TRIO, 2)]
    committee = load_committee(files, DUO, parts=ALL_PARTS)
    committee.check_frozen()
    assert [member.asked for member in committee.members] == [(TASKS[0],), (TASKS[1],)]
    batch = duo_batch()
    for task, member in enumerate(committee.members):
        chosen = (batch.task == task).nonzero().squeeze(1)
        of_one = lessons(member, Batch(batch.obs, batch.action, batch.reward, torch.full_like(batch.task, task)))
        for name, values in lessons(committee, batch).targets.items():
            expected = of_one.targets[name].index_select(-2, chosen)
            torch.testing.assert_close(values.index_select(-2, chosen), expected, rtol=1e-5, atol=1e-6, msg=name)
    with pytest.raises(UserError, match="one: knows cartpole-swingup, of which the student has none that an earlier"):
        load_committee(files[::-1], DUO)  # the first that knows a task has it: both are the second file's then


def test_a_batch_of_one_task_asks_one(tmp_path: Path) -> None:
    files = [saved(tmp_path / task, task_set(task), seed) for seed, task in enumerate(TASKS)]
    committee = load_committee(files, DUO)
    batch = duo_batch()
    alone = batch.slices((batch.task == 1).nonzero().squeeze(1))
    assert [member.asked for member, _ in committee.shares(alone)] == [(TASKS[1],)]


def test_a_run_learns_from_specialists(tmp_path: Path) -> None:
    files = ",".join(str(saved(tmp_path / task, task_set(task), seed)) for seed, task in enumerate(TASKS))
    keys = ("teacher=specialists", f"teacher.checkpoints=[{files}]", "d_coef=0.4", "d_value=0.1", "d_policy=1")
    assert tiny_run(tmp_path / "run", *keys, "steps=2").step == 2
    assert tiny_run(tmp_path / "run", *keys, "steps=3", "resume=true").step == 3
    saved(tmp_path / TASKS[0], task_set(TASKS[0]), 9)
    with pytest.raises(UserError, match=r"teacher weights was 'checksum .*' and is 'checksum"):
        tiny_run(tmp_path / "run", *keys, "steps=4", "resume=true")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (("teacher.checkpoints=[]",), "teacher.checkpoints is empty"),
        (("teacher.checkpoints=[FIRST]", "teacher.checkpoint=FIRST"), "leave teacher.checkpoint"),
        (("teacher.checkpoints=[FIRST]",), f"none of the teachers knows {TASKS[1]}"),
        (("teacher.checkpoints=[FIRST,FIRST]",), f"first: knows {TASKS[0]}, of which the student has none"),
        (("teacher.checkpoints=[FIRST,missing]",), "missing"),
        (("teacher.checkpoint=FIRST",), f"and not {TASKS[1]}"),
        ((), r"give teacher\.checkpoints=…"),
        (("teacher.checkpoints=[FIRST,SECOND]", "d_latent_linear=1"), "every one of several has latents of its own"),
    ],
)
def test_refusals(tmp_path: Path, keys: tuple[str, ...], named: str) -> None:
    places = {name: saved(tmp_path / name.lower(), task_set(TASKS[n]), n) for n, name in enumerate(("FIRST", "SECOND"))}
    for name, place in places.items():
        keys = tuple(key.replace(name, str(place)) for key in keys)
    held = files_in(tmp_path)
    with pytest.raises((UserError, CheckpointError), match=named):
        tiny_run(tmp_path / "run", "teacher=specialists", "d_coef=0.4", *keys)
    assert files_in(tmp_path) == held


def test_objectives_of_all_slices() -> None:
    """`_joined` relies on the batch being the last axis but one of every target."""
    batch = duo_batch()
    store_free = lessons(Teacher(tiny_model(DUO), DUO, DUO), batch)
    assert all(values.shape[-2] == len(batch.task) for values in store_free.targets.values())


def test_slices_of_a_batch() -> None:
    sampler = SliceSampler(EpisodeStore.open(store_path()), DUO, 6, 3, seed=1)
    batch = sampler.batch(0)
    some = batch.slices(torch.tensor([4, 1]))
    for name, values in some.tensors().items():
        assert torch.equal(values, batch.tensors()[name].index_select(0 if name == "task" else 1, torch.tensor([4, 1])))
