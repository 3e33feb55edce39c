"""Extraction in rounds: what the policy collects between them joins the starts, whatever interrupts the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fixtures import make_store
from run_fixtures import DUO, TASKS, tiny_run
from safetensors.torch import load_file
from torch import Tensor

from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import UserError
from tdmpc2.reporting.sinks import read_metrics
from tdmpc2.rollout import Rollout
from tdmpc2.training.policy_learner import PolicyLearner
from tdmpc2.training.rounds import StartStates


class Known:
    """Labels that say where they are of."""

    def at(self, episodes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        first = (100 * episodes + rows).astype(np.float32)
        return np.stack([first] * DUO.action_dim, axis=-1)


def test_half_of_each_batch_is_of_what_was_collected(tmp_path: Path) -> None:
    given = make_store(tmp_path / "given", DUO, [0, 1], steps=6)
    collected = make_store(tmp_path / "collected", DUO, [0, 1, 1], steps=6)
    starts = StartStates(given, DUO, 9, 3, 1, Known())
    before = starts.batch(5)
    assert before.obs.shape[1] == 9 and before.planned is not None and before.planned.isfinite().all()
    starts.take(collected)
    batch = starts.batch(5)
    assert batch.planned is not None
    assert (batch.obs.shape[1], batch.action.shape[1], batch.task.shape) == (9, 9, (9,))
    assert batch.planned[:, :5].isfinite().all() and batch.planned[:, 5:].isnan().all()
    known = torch.from_numpy(np.concatenate([collected.episode(e)["obs"][:, :2] for e in range(3)]).copy())
    for row in batch.obs[:, 5:, :2].reshape(-1, 2):
        assert (known == row).all(1).any()
    assert "collected" in starts.drawn(5) and "given" in starts.drawn(5)
    with pytest.raises(UserError, match="batch_size=1 cannot be halved"):
        StartStates(given, DUO, 1, 3, 1, None)


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / "final.safetensors")


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("student")
    tiny_run(folder, "steps=2")
    student = folder / "checkpoints" / "final.safetensors"
    return (
        *("mode=extract", f"checkpoint={student}", "steps=9", "rounds=3", "collect_episodes=1"),
        *("weight_average=0.9", "imagine_restarts=1", "state_freq=2", "log_freq=1", "lr=1e-2"),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, keys: tuple[str, ...]) -> Path:
    run = tmp_path_factory.mktemp("whole")
    assert tiny_run(run, *keys).step == 9
    return run


def test_the_policy_acts_between_rounds(whole: Path) -> None:
    store = EpisodeStore.open(whole / "collected")
    assert len(store) == 4 and [s.details["updates"] for s in store.segments] == [3, 6]
    assert len({s.details["weights"] for s in store.segments}) == 2, "by the policy as it then was"
    rows = read_metrics(whole)
    played = [row for row in rows if row["category"] == "episode"]
    returns = store.returns()
    assert len(played) == 2
    for k, row in enumerate(played):
        for t, task in enumerate(TASKS):
            found = row[f"prior_return/{task}"]
            assert found == pytest.approx(float(returns[2 * k + t]), rel=1e-4, abs=1e-4)
    told = [row["collected_episodes"] for row in rows if row["category"] == "train"]
    assert told == [0] * 3 + [2] * 3 + [4] * 3


def test_a_run_that_dies_ends_as_if_it_had_not(
    whole: Path, tmp_path: Path, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    update, done = PolicyLearner.update, [0]

    def dying(learner: PolicyLearner, *given: object) -> dict[str, Tensor]:
        done[0] += 1
        if done[0] == 4:  # after the first collection, of which no state knows
            raise KeyboardInterrupt
        return update(learner, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(PolicyLearner, "update", dying)
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path, *keys)
    assert len(EpisodeStore.open(tmp_path / "collected")) == 2
    assert tiny_run(tmp_path, *keys, "resume=true").step == 9
    assert same(tmp_path, whole)
    a, b = (EpisodeStore.open(run / "collected").fingerprint for run in (tmp_path, whole))
    assert a == b
    with pytest.raises(UserError, match="collect_episodes was 1 and is 3"):
        tiny_run(tmp_path, *[k for k in keys if "collect" not in k], "collect_episodes=3", "resume=true")


@pytest.mark.skipif(not hasattr(os, "kill"), reason="no signals")
def test_a_signal_stops_it_while_it_acts(
    whole: Path, tmp_path: Path, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    turn: Callable[[Rollout], object] = Rollout.turn
    turns = [0]

    def counted(rollout: Rollout) -> object:
        turns[0] += 1
        if turns[0] == 50:
            os.kill(os.getpid(), 15)
        return turn(rollout)

    monkeypatch.setattr(Rollout, "turn", counted)
    result = tiny_run(tmp_path, *keys)
    assert result.interrupted and result.step == 3
    assert len(EpisodeStore.open(tmp_path / "collected")) == 0
    assert tiny_run(tmp_path, *keys, "resume=true").step == 9
    assert same(tmp_path, whole)


def test_what_does_not_fit_is_refused(tmp_path: Path, keys: tuple[str, ...]) -> None:
    given = [key for key in keys if not key.startswith(("steps", "rounds"))]
    with pytest.raises(UserError, match="rounds=3 are more than steps=2"):
        tiny_run(tmp_path, *given, "steps=2", "rounds=3")
    with pytest.raises(UserError, match="batch_size=1 cannot be halved"):
        tiny_run(tmp_path, *given, "steps=4", "rounds=2", "batch_size=1")
