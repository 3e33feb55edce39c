"""Labels by a student's own planner: what they are, whole after a kill, refused where they do not belong; imitation."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fixtures import make_store
from extraction_fixtures import batch, learner
from run_fixtures import DUO, DUO_KEYS, TINY_PLANNER, run_program, store_path, tiny_model, tiny_run

from tdmpc2.agent import Agent
from tdmpc2.data.batch import Batch
from tdmpc2.data.labels import LabelColumn, LabelWriter, PlannedColumn, read_labels, verify_labels
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import DataError, UserError
from tdmpc2.extraction import (
    ExtractionSettings,
    StateChoice,
    block_episodes,
    check_planned,
    imitation,
    plan_facts,
    plan_store,
)
from tdmpc2.model import WorldModel, world_checksum
from tdmpc2.planner import PlannerSettings
from tdmpc2.reporting.sinks import read_metrics
from tdmpc2.tasks import task_set

PLANNER = PlannerSettings(iterations=2, num_samples=8, num_elites=4, num_pi_trajs=2)
STEPS = 6


def agent(model: WorldModel | None = None, planner: PlannerSettings = PLANNER) -> Agent:
    return Agent(model or tiny_model(), DUO, planner)


def small_store(path: Path, episodes: int = 5) -> EpisodeStore:
    return make_store(path, DUO, [i % 2 for i in range(episodes)], steps=STEPS)


def planned(
    path: Path,
    store: EpisodeStore,
    by: Agent | None = None,
    share: float = 1,
    *,
    batch_size: int = 4,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    by, choice = by or agent(), StateChoice(share, seed=3)
    with LabelWriter(path, plan_facts(store, by, choice), block_episodes=2, commit_seconds=0) as writer:
        plan_store(store, by, choice, writer, batch_size=batch_size, stop=stop)
    return path


# -- what they are -------------------------------------------------------------------------------------------


def test_a_label_is_the_mean_of_a_plan_of_that_state_alone(tmp_path: Path) -> None:
    store, by, choice = small_store(tmp_path / "store"), agent(), StateChoice(1, 3)
    column = PlannedColumn.open(planned(tmp_path / "c", store), store, DUO.tasks)
    assert column.values.shape == (5, STEPS, DUO.action_dim) and np.isfinite(column.values).all()
    for episode, step in ((0, 0), (3, 4)):
        held = store.episode(episode)
        task = DUO.index(held["task"])
        obs = torch.zeros(1, DUO.obs_dim)
        obs[0, : held["obs"].shape[1]] = torch.from_numpy(held["obs"][step].copy())
        noise = by.planner.draw_noise(1, [torch.Generator().manual_seed(int(choice.seeds(episode, STEPS)[step]))])
        plan = by.planner.plan(obs, torch.tensor([task]), by.zero_plan(1), noise, greedy=True)
        np.testing.assert_allclose(column.values[episode, step], plan.mean[0, 0].numpy(), rtol=1e-4, atol=1e-5)


def test_plans_batched_otherwise_are_the_same_but_for_rounding(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    small = PlannedColumn.open(planned(tmp_path / "a", store, batch_size=1), store).values
    large = PlannedColumn.open(planned(tmp_path / "b", store, batch_size=100), store).values
    np.testing.assert_allclose(small, large, rtol=1e-4, atol=1e-5)


def test_a_share_draws_states_of_every_episode_and_leaves_the_others_nan(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    whole = PlannedColumn.open(planned(tmp_path / "whole", store), store).values
    some = PlannedColumn.open(planned(tmp_path / "some", store, share=0.5), store).values
    known = np.isfinite(some).all(-1)
    assert (known.sum(1) == 3).all() and (np.isnan(some).all(-1) == ~known).all()
    assert len({tuple(rows) for rows in known.tolist()}) > 1, "each episode's own"
    np.testing.assert_allclose(some[known], whole[known], rtol=1e-4, atol=1e-5)
    assert StateChoice(1e-6, 1).count(STEPS) == 1
    long = make_store(tmp_path / "long", DUO, [0] * 9, steps=501)
    assert block_episodes(long, StateChoice(1, 1)) == 4 and block_episodes(long, StateChoice(0.01, 1)) == 256


def test_batches_bring_the_labels_of_their_own_states(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    column = PlannedColumn.open(planned(tmp_path / "c", store), store, DUO.tasks)
    sampler = SliceSampler(store, DUO, 8, 3, 1, planned=column)
    batch = sampler.batch(0)
    episodes, starts = sampler.indices(0)
    assert batch.planned is not None and batch.planned.shape == (4, 8, DUO.action_dim)
    for step in range(4):
        np.testing.assert_array_equal(batch.planned[step].numpy(), column.values[episodes, starts + step])
    assert torch.equal(Batch.of(batch.tensors()).planned, batch.planned)


def test_a_model_of_one_task_and_a_store_of_two(tmp_path: Path) -> None:
    store, single = small_store(tmp_path / "store"), task_set(DUO.tasks[1])
    by = Agent(tiny_model(single), single, PLANNER)
    column = PlannedColumn.open(planned(tmp_path / "c", store, by), store, single.tasks)
    assert np.isnan(column.values[::2]).all() and np.isfinite(column.values[1::2]).all()
    with pytest.raises(DataError, match=rf"holds no labels of {DUO.tasks[0]}.*another folder \(labels=…\)"):
        PlannedColumn.open(tmp_path / "c", store, DUO.tasks)
    other = task_set("cup-spin")
    with pytest.raises(DataError, match="holds none of the tasks of 'cup-spin'"):
        plan_facts(store, Agent(tiny_model(other), other, PLANNER), StateChoice(1, 3))


# -- stopped, and refused ------------------------------------------------------------------------------------


def test_a_stopped_labelling_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    whole = planned(tmp_path / "whole", store)
    asked = iter([False] * 4 + [True])
    planned(tmp_path / "c", store, stop=lambda: next(asked))
    assert read_labels(tmp_path / "c", type(plan_facts(store, agent(), StateChoice(1, 3)))).done == 2
    with pytest.raises(DataError, match=r"2 of 5 episodes are labelled .*python scripts/label.py what=planner .*=2 "):
        PlannedColumn.open(tmp_path / "c", store)
    planned(tmp_path / "c", store)
    assert (tmp_path / "c" / "labels.f32").read_bytes() == (whole / "labels.f32").read_bytes()
    assert verify_labels(whole, store, type(plan_facts(store, agent(), StateChoice(1, 3)))).complete


def test_a_column_of_other_plans_is_refused(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    path = planned(tmp_path / "c", store)
    for by, share, message in (
        (agent(planner=replace(PLANNER, iterations=3)), 1.0, "made by another planner .*iterations=3"),
        (agent(tiny_model(seed=1)), 1.0, "made by another model"),
        (agent(), 0.5, "made of other states"),
    ):
        with pytest.raises(DataError, match=rf"{message}.*name another one with labels=…"):
            planned(path, store, by, share)
    planned(path, store, agent(planner=replace(PLANNER, warm_start=False)))  # no plan goes before in either
    with pytest.raises(DataError, match=r"is not the header of a column of a teacher's rewards; check teacher\.labels"):
        LabelColumn.open(path, store)
    with pytest.raises(DataError, match=r"scripts/label.py what=planner, or check imitate_labels"):
        PlannedColumn.open(tmp_path / "none", store)


def test_labels_are_of_the_world_model_whatever_its_prior(tmp_path: Path) -> None:
    store, model = small_store(tmp_path / "store"), tiny_model()
    column = PlannedColumn.open(planned(tmp_path / "c", store, agent(model)), store, DUO.tasks)
    with torch.no_grad():
        next(model.policy_head.parameters()).add_(1)
    check_planned(column, model, DUO)
    assert world_checksum(model.half(), DUO.tasks) == world_checksum(model.float(), DUO.tasks), "of rounded weights"
    with pytest.raises(DataError, match="planned in another world model"):
        check_planned(column, model, DUO)


# -- imitation -----------------------------------------------------------------------------------------------


def test_the_loss_counts_labelled_states_and_the_task_s_own_actions() -> None:
    wide = task_set("wide", ("walker-walk", "pendulum-spin"))  # six actions and one
    model, task = tiny_model(wide), torch.tensor([0, 1])
    mean = torch.zeros(2, 2, 6, requires_grad=True)
    target = torch.zeros(2, 2, 6)
    target[0, 0] = 0.6  # the walker's: all six
    target[0, 1, 0], target[0, 1, 1:] = 1.0, 0.9  # the pendulum's: only the first is its own
    target[1] = torch.nan
    given = Batch(torch.zeros(2, 2, wide.obs_dim), torch.zeros(1, 2, 6), torch.zeros(1, 2, 1), task, planned=target)
    latents = torch.rand(2, 2, model.dims.latent_dim)
    found = imitation(model, given, latents, mean, where_better=False)
    assert found.loss.item() == pytest.approx((0.36 + 1.0) / 2) and float(found.labelled) == 0.5
    found.loss.backward()
    assert mean.grad is not None
    assert mean.grad[0, 0].tolist() == pytest.approx([-0.1] * 6) and mean.grad[0, 1].tolist() == [-1, 0, 0, 0, 0, 0]
    assert not mean.grad[1].any(), "no gradient, and no nan, from what is not labelled"
    none = imitation(
        model, replace(given, planned=torch.full_like(target, torch.nan)), latents, mean, where_better=False
    )
    assert none.loss.item() == 0 and float(none.labelled) == 0


def test_it_may_count_where_q_prefers_the_planner_alone() -> None:
    model, generator = tiny_model(), torch.Generator().manual_seed(2)
    task, target = torch.arange(16) % 2, torch.rand(2, 16, DUO.action_dim, generator=generator)
    target[1, ::2] = torch.nan
    mean = torch.rand(target.shape, generator=generator).requires_grad_()
    latents = model.encode(torch.randn(2, 16, DUO.obs_dim, generator=generator), task).detach()
    given = Batch(torch.zeros(2, 16, DUO.obs_dim), torch.zeros(1, 16, 1), torch.zeros(1, 16, 1), task, planned=target)
    found = imitation(model, given, latents, mean, where_better=True)
    places = [(step, i) for step in (0, 1) for i in range(16) if step == 0 or i % 2]
    total, better = 0.0, 0
    for step, i in places:  # each task has one action
        z, ids = latents[step, i], task[i]
        q = [model.decode(model.q_values(z, a[step, i].detach(), ids)).mean().item() for a in (target, mean)]
        if q[0] > q[1]:
            better += 1
            total += float((target[step, i] - mean[step, i].detach()).square())
    assert 0 < better < len(places)
    assert found.loss.item() == pytest.approx(total / len(places), rel=1e-4)
    assert found.better is not None and float(found.better) == pytest.approx(better / len(places))
    assert float(found.labelled) == 24 / 32


def test_an_update_brings_together_what_is_asked_of_it() -> None:
    actions = 2 * torch.rand(4, 8, DUO.action_dim, generator=torch.Generator().manual_seed(1)) - 1
    held = {}
    for where in ("all", "better"):
        settings = ExtractionSettings(e_imagine=0.5, e_imitate=2, imitate_where=where, imagine_horizon=2)
        metrics = learner(settings).update(replace(batch(), planned=actions))
        alone = learner(ExtractionSettings(imagine_horizon=2)).update(batch())
        expected = 0.5 * float(alone["pi_loss"]) + 2 * float(metrics["imitation_loss"])
        assert float(metrics["pi_loss"]) == pytest.approx(expected, rel=1e-5)
        held[where] = metrics
    assert "planner_better" not in held["all"] and 0 < float(held["better"]["planner_better"]) < 1
    assert float(held["better"]["imitation_loss"]) < float(held["all"]["imitation_loss"])


def student_in(folder: Path) -> Path:
    tiny_run(folder / "student", "steps=2")
    return folder / "student" / "checkpoints" / "final.safetensors"


def test_the_program_labels_and_a_run_imitates(tmp_path: Path) -> None:
    student, labels = student_in(tmp_path), tmp_path / "planned"
    line = (*DUO_KEYS, "what=planner", f"data_dir={store_path()}", f"checkpoint={student}", "device=cpu")
    done = run_program("scripts/label.py", *line, *TINY_PLANNER, "share=0.2", f"labels={labels}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"train from them with: mode=extract e_imitate=1 imitate_labels={labels}" in done.stdout
    assert "share 0.2, seed 1" in done.stdout
    keys = ("mode=extract", f"checkpoint={student}", "log_freq=1", "lr=1e-2", "e_imagine=0", "e_imitate=1")
    tiny_run(tmp_path / "run", *keys, "steps=40", "batch_size=32", f"imitate_labels={labels}", "state_freq=10")
    rows = [row for row in read_metrics(tmp_path / "run") if row["category"] == "train"]
    assert 0.1 < rows[0]["labelled"] < 0.3, "a fifth"
    first, last = (sum(row["imitation_loss"] for row in part) for part in (rows[:5], rows[-5:]))
    assert last < 0.9 * first, "beside what the noise of eight samples leaves"

    store = EpisodeStore.open(store_path())
    refusals = (
        (("e_imitate=0",), "imitate_labels=.* is for mode=extract with e_imitate above 0"),
        (("imitate_labels=null",), r"labels/planner/labels\.json: found no such file"),
    )
    for changes, message in refusals:
        given = [key for key in (*keys, f"imitate_labels={labels}") if key.split("=")[0] not in str(changes)]
        with pytest.raises(UserError, match=message):
            tiny_run(tmp_path / "none", *given, "steps=2", *changes)
    other = planned(tmp_path / "other", store, share=0.01)
    with pytest.raises(UserError, match="planned in another world model"):
        tiny_run(tmp_path / "none", *keys, "steps=2", f"imitate_labels={other}")
    grown = make_store(tmp_path / "grown", DUO, [0, 1], steps=501)
    with pytest.raises(UserError, match="made of another store"):
        tiny_run(tmp_path / "none", *keys, "steps=2", f"imitate_labels={labels}", f"data_dir={grown.path}")


def test_keys_of_the_other_kind_of_labels_are_refused(tmp_path: Path) -> None:
    for keys, message in (
        (("what=planner",), "what=planner needs a model to plan with: give checkpoint=…"),
        (("what=planner", "teacher=1M"), "a teacher is for what=rewards"),
        (("checkpoint=a.pt",), "checkpoint is for what=planner"),
        (("labels=a",), r"labels is for what=planner, .*teacher\.labels"),
        (("share=0.5",), "share is for what=planner"),
        (("precision=bfloat16",), r"a teacher's is teacher\.precision"),
    ):
        done = run_program("scripts/label.py", *DUO_KEYS, f"data_dir={store_path()}", *keys, cwd=tmp_path)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("error: ")
        assert re.search(message, done.stderr), done.stderr
