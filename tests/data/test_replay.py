"""The replay: whole episodes come and go, slices stay within them, and batches are those of the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from run_fixtures import DUO

from tdmpc2.data.replay import Replay
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.store import EpisodeBlock, EpisodeStore
from tdmpc2.errors import DataError, UserError

T, B, H = 12, 32, 3


def episode(number: int) -> EpisodeBlock:
    """Tells where each of its values belongs: observation, action and reward name the episode and the step."""
    obs = np.zeros((T, DUO.obs_dim), np.float32)
    obs[:, 0], obs[:, 1] = number, np.arange(T)
    action = np.zeros((T, DUO.action_dim), np.float32)
    action[:, 0] = (number * T + np.arange(T)) / 1000
    reward = np.arange(T, dtype=np.float32) + 100 * number
    action[0], reward[0] = np.nan, np.nan
    return EpisodeBlock(obs[None], action[None], reward[None], np.full(1, number % 2))


def grown(episodes: int, capacity: int = 5 * T + 7, folder: Path | None = None) -> Replay:
    replay = Replay(DUO, capacity, T, B, H, seed=3, folder=folder)
    for number in range(episodes):
        replay.add(episode(number))
    return replay


def stored(path: Path, episodes: int, first: int = 0) -> EpisodeStore:
    store = EpisodeStore.create(path, DUO.tasks, DUO.obs_dim, DUO.action_dim, T)
    for number in range(first, first + episodes):
        e = episode(number)
        store.append(e.obs, e.action, e.reward, e.task)
    return store


@pytest.mark.parametrize("episodes", [1, 4, 5, 6, 13])
def test_slices_stay_within_the_last_episodes(episodes: int) -> None:
    replay = grown(episodes)
    assert len(replay) == min(episodes, 5) and replay.added == episodes
    seen, starts = set(), set()
    for step in range(60):
        batch = replay.batch(step)
        number = batch.obs[0, :, 0]
        assert (batch.obs[:, :, 0] == number).all(), "one episode each"
        assert (batch.obs[1:, :, 1] - batch.obs[:-1, :, 1] == 1).all(), "one step after the other"
        assert torch.equal(batch.task, number.long() % 2)
        at = batch.obs[1:, :, 1]
        assert torch.equal(batch.reward[:, :, 0], 100 * number + at), "the reward that led there"
        torch.testing.assert_close(batch.action[:, :, 0], (number * T + at) / 1000)
        seen |= set(number.int().tolist())
        starts |= set(batch.obs[0, :, 1].int().tolist())
    assert seen == set(range(max(0, episodes - 5), episodes))
    assert starts == set(range(T - H)), "every start that leaves room for a slice, and no other"


def test_batches_are_those_of_the_store_for_the_same_slices(tmp_path: Path) -> None:
    store, replay = stored(tmp_path, 4), grown(4)
    sampler = SliceSampler(store, DUO, B, H, seed=3)
    for step in range(5):
        batch = replay.batch(step)
        same = sampler.slices(batch.obs[0, :, 0].numpy().astype(np.int64), batch.obs[0, :, 1].numpy().astype(np.int64))
        assert batch.tensors().keys() == same.tensors().keys()
        for name, values in same.tensors().items():
            held = batch.tensors()[name]
            assert torch.equal(held, values) and held.dtype == values.dtype, name
            assert held.is_contiguous() and held.stride() == values.stride(), name


@pytest.mark.parametrize("episodes", [3, 5, 8, 10])
def test_a_replay_filled_again_draws_the_same(tmp_path: Path, episodes: int) -> None:
    before, after = grown(episodes), Replay(DUO, 5 * T + 7, T, B, H, seed=3)
    after.fill(stored(tmp_path, episodes))
    for number in range(episodes, episodes + 7):
        for step in (number, 1000 + number):
            assert torch.equal(before.batch(step).obs, after.batch(step).obs)
        assert before.drawn(number) == after.drawn(number)
        before.add(episode(number))
        after.add(episode(number))


@pytest.mark.parametrize("given", [2, 5, 7])
@pytest.mark.parametrize("own", [0, 4, 9])
def test_episodes_of_another_store_come_first(tmp_path: Path, given: int, own: int) -> None:
    """As if the run had added them itself before its own."""
    before, after = grown(given + own), Replay(DUO, 5 * T + 7, T, B, H, seed=3)
    after.fill(stored(tmp_path / "given", given), stored(tmp_path / "own", own, first=given))
    assert after.added == given + own
    for number in range(given + own, given + own + 6):
        assert torch.equal(before.batch(number).obs, after.batch(number).obs)
        before.add(episode(number))
        after.add(episode(number))


def test_a_store_of_other_tasks_is_refused(tmp_path: Path) -> None:
    other = EpisodeStore.create(tmp_path, DUO.tasks[::-1], DUO.obs_dim, DUO.action_dim, T)
    with pytest.raises(DataError, match=f"of {DUO.tasks[1]}, {DUO.tasks[0]}; expected .* in this order"):
        Replay(DUO, 5 * T, T, B, H, seed=3).fill(other)


def test_what_an_update_draws_depends_on_seed_and_step_alone() -> None:
    replay = grown(4)
    first = replay.batch(7)
    replay.batch(8)
    torch.manual_seed(0)
    assert torch.equal(replay.batch(7).obs, first.obs)
    assert not torch.equal(replay.batch(8).obs, first.obs)
    other = Replay(DUO, 5 * T, T, B, H, seed=4)
    for number in range(4):
        other.add(episode(number))
    assert not torch.equal(other.batch(7).obs, first.obs)


def test_rows_on_disk_are_those_in_memory(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "of an earlier run").write_text("x")
    disk, memory = grown(8, folder=tmp_path / "rows"), grown(8)
    assert torch.equal(disk.batch(1).obs, memory.batch(1).obs)
    assert not (tmp_path / "rows" / "of an earlier run").exists() and list((tmp_path / "rows").iterdir())


def test_drawn_episodes_are_told() -> None:
    replay = grown(2)
    replay.batch(4)
    assert replay.drawn(4) == "episodes 0, 1 of the run"
    assert replay.drawn(5) == "episodes of the replay"


@pytest.mark.parametrize(
    ("capacity", "horizon", "named"),
    [
        (T - 1, H, "buffer_size=11 holds no whole episode of 12"),
        (T, T, "horizon=12"),
        (10**13, H, "buffer_storage=disk"),
    ],
)
def test_numbers_that_make_no_replay(capacity: int, horizon: int, named: str) -> None:
    with pytest.raises(UserError, match=named):
        Replay(DUO, capacity, T, B, horizon, seed=1)


def test_a_store_is_cut_back_to_what_it_was(tmp_path: Path) -> None:
    store = stored(tmp_path, 3)
    then = store.fingerprint
    e = episode(3)
    store.append(e.obs, e.action, e.reward, e.task)
    assert not store.cut_back(3, "0" * 16) and len(EpisodeStore.open(tmp_path)) == 4
    assert store.cut_back(4, store.fingerprint) and len(store) == 4
    assert store.cut_back(3, then) and len(store) == 3 and store.fingerprint == then
    again = EpisodeStore.open(tmp_path)
    again.append(e.obs, e.action, e.reward + 1, e.task)
    assert len(again) == 4 and again.verify() and again.returns()[3] == np.nansum(e.reward + 1)
    assert again.cut_back(0, stored(tmp_path / "empty", 0).fingerprint) and len(EpisodeStore.open(tmp_path)) == 0
