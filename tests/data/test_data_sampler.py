"""The sampler: what it draws is a pure function of seed and step, uniform, and exactly the stored slices."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fixtures import make_episodes, make_store, padded

from tdmpc2.data.batch import Batch
from tdmpc2.data.sampler import Prefetcher, SliceSampler
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import DataError
from tdmpc2.tasks import task_set

MT30 = task_set("mt30")
FOUR = task_set("four", ("cartpole-swingup", "reacher-easy", "cup-spin", "pendulum-spin"))
ALL = list(range(30)) * 2


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("obs", "action", "reward", "task"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """60 episodes of MT30 in three segments."""
    return make_store(tmp_path_factory.mktemp("store") / "s", MT30, ALL, segments=3)


def test_golden_indices(store: EpisodeStore) -> None:
    """Must never change: a resumed run would draw other slices than it did before."""
    sampler = SliceSampler(store, MT30, batch_size=6, horizon=3, seed=1)
    drawn = {step: tuple(x.tolist() for x in sampler.indices(step)) for step in (0, 1, 199_999)}
    assert drawn == {
        0: ([18, 50, 9, 1, 54, 3], [13, 4, 7, 3, 4, 14]),
        1: ([21, 18, 49, 16, 33, 10], [7, 10, 6, 15, 8, 4]),
        199_999: ([55, 12, 19, 17, 8, 55], [15, 0, 3, 11, 11, 16]),
    }


def test_batches_are_the_stored_slices(store: EpisodeStore) -> None:
    sampler = SliceSampler(store, MT30, batch_size=256, horizon=3, seed=0)
    batch = sampler.batch(5)
    assert batch.obs.shape == (4, 256, 24) and batch.obs.dtype == torch.float32
    assert batch.action.shape == (3, 256, 6) and batch.reward.shape == (3, 256, 1)
    assert batch.task.shape == (256,) and batch.task.dtype == torch.int64
    episodes, starts = sampler.indices(5)
    assert starts.min() == 0 and starts.max() == 17
    for column, (index, start) in enumerate(zip(episodes, starts, strict=True)):
        episode = {**store.episode(int(index)), **padded(store.episode(int(index)), 24, 6)}
        np.testing.assert_array_equal(batch.obs[:, column], episode["obs"][start : start + 4])
        np.testing.assert_array_equal(batch.action[:, column], episode["action"][start + 1 : start + 4])
        np.testing.assert_array_equal(batch.reward[:, column, 0], episode["reward"][start + 1 : start + 4])
        assert MT30.tasks[int(batch.task[column])] == episode["task"]
    for values in (batch.obs, batch.action, batch.reward):
        assert values.isfinite().all() and values.is_contiguous()


@pytest.mark.parametrize("horizon", [1, 20])
def test_shortest_and_longest_slices(store: EpisodeStore, horizon: int) -> None:
    batch = SliceSampler(store, MT30, batch_size=32, horizon=horizon, seed=0).batch(0)
    assert batch.obs.shape == (horizon + 1, 32, 24) and batch.action.shape == (horizon, 32, 6)
    assert batch.reward.isfinite().all()


@pytest.mark.parametrize("ids", [[0, 7], [7, 29]])
def test_the_last_slices_of_a_narrow_task(tmp_path: Path, ids: list[int]) -> None:
    """A slice is copied with more than its own values, which must not reach beyond the store's end."""
    tasks = task_set("names", [MT30.tasks[k] for k in ids])
    store = make_store(tmp_path / "s", tasks, [0, 1], steps=5)
    sampler = SliceSampler(store, tasks, batch_size=64, horizon=3, seed=0)
    episodes, starts = sampler.indices(0)
    assert {(1, 0), (1, 1)} <= set(zip(episodes.tolist(), starts.tolist(), strict=True))
    batch = sampler.batch(0)
    for b, (episode, start) in enumerate(zip(episodes, starts, strict=True)):
        expected = padded(store.episode(episode), tasks.obs_dim, tasks.action_dim)
        np.testing.assert_array_equal(batch.obs[:, b], expected["obs"][start : start + 4])
        np.testing.assert_array_equal(batch.action[:, b], expected["action"][start + 1 : start + 4])
        np.testing.assert_array_equal(batch.reward[:, b, 0], expected["reward"][start + 1 : start + 4])


def test_a_batch_depends_on_seed_and_step_alone(store: EpisodeStore, tmp_path: Path) -> None:
    sampler = SliceSampler(store, MT30, batch_size=64, horizon=3, seed=7)
    forward = [sampler.batch(step) for step in range(4)]
    backward = [SliceSampler(store, MT30, 64, 3, 7).batch(step) for step in reversed(range(4))]
    assert all(same(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert not same(forward[0], forward[1])
    assert not same(forward[0], SliceSampler(store, MT30, 64, 3, 8).batch(0))
    in_one = make_store(tmp_path / "s", MT30, ALL)
    assert same(forward[2], SliceSampler(in_one, MT30, 64, 3, 7).batch(2))


def test_announcing_rows_to_the_system_changes_nothing(store: EpisodeStore) -> None:
    """What the sampler does for a while after a batch that had to wait for the disk."""
    sampler = SliceSampler(store, MT30, batch_size=64, horizon=3, seed=7)
    expected = sampler.batch(3)
    sampler._batches_to_announce = 2
    assert same(sampler.batch(3), expected)
    assert sampler._batches_to_announce >= 1  # more where this one had to wait, too


def test_every_slice_is_equally_likely(store: EpisodeStore) -> None:
    """Chi-square over all 60 x 18 slices; the limit is 6 standard deviations above its mean."""
    sampler = SliceSampler(store, MT30, batch_size=1024, horizon=3, seed=3)
    counts = np.zeros((60, 18))
    for step in range(200):
        np.add.at(counts, sampler.indices(step), 1)
    expected = 200 * 1024 / counts.size
    freedom = counts.size - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 6 * np.sqrt(2 * freedom)


def test_tasks_are_matched_by_name_and_padding_cropped(store: EpisodeStore) -> None:
    sampler = SliceSampler(store, FOUR, batch_size=200, horizon=3, seed=0)
    assert sampler.num_episodes == 8
    batch = sampler.batch(0)
    assert batch.obs.shape[-1] == 8 and batch.action.shape[-1] == 2
    assert sorted(batch.task.unique().tolist()) == [0, 1, 2, 3]
    for column, (index, start) in enumerate(zip(*sampler.indices(0), strict=True)):
        episode = store.episode(int(index))
        assert FOUR.tasks[int(batch.task[column])] == episode["task"]
        np.testing.assert_array_equal(batch.obs[:, column], padded(episode, 8, 2)["obs"][start : start + 4])


def test_a_single_task(store: EpisodeStore) -> None:
    batch = SliceSampler(store, task_set("pendulum-spin"), batch_size=50, horizon=3, seed=0).batch(0)
    assert batch.obs.shape[-1] == 3 and batch.action.shape[-1] == 1
    assert batch.task.tolist() == [0] * 50


def test_faults_are_named(store: EpisodeStore, tmp_path: Path) -> None:
    some = make_store(tmp_path / "s", FOUR, [0, 2, 2])
    with pytest.raises(DataError, match="no episodes of reacher-easy, pendulum-spin, which task set 'four'"):
        SliceSampler(some, FOUR, 8, 3, 0)
    with pytest.raises(DataError, match="no episodes of walker-stand"):
        SliceSampler(some, MT30, 8, 3, 0)
    for horizon in (0, 21):
        with pytest.raises(DataError, match=f"found horizon {horizon}, expected 1 to 20"):
            SliceSampler(store, MT30, 8, horizon, 0)
    with pytest.raises(DataError, match="found batch_size 0"):
        SliceSampler(store, MT30, 0, 3, 0)
    with pytest.raises(DataError, match="found seed -1"):
        SliceSampler(store, MT30, 8, 3, -1)


def test_large_seeds_and_steps(store: EpisodeStore) -> None:
    sampler = SliceSampler(store, MT30, 8, 3, 2**64 - 1)
    assert not same(sampler.batch(2**40), sampler.batch(2**40 + 1))


def test_prefetching_keeps_the_order_and_resumes(store: EpisodeStore) -> None:
    sampler = SliceSampler(store, MT30, batch_size=16, horizon=3, seed=0)
    expected = [sampler.batch(step) for step in range(30)]
    with Prefetcher(sampler, "cpu", depth=3) as batches:
        first = [next(batches) for _ in range(13)]
    with Prefetcher(sampler, "cpu", start_step=13, depth=1) as batches:
        rest = [next(batches) for _ in range(17)]
    assert all(same(a, b) for a, b in zip(expected, first + rest, strict=True))


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_changes_nothing(store: EpisodeStore, threads: int) -> None:
    sampler = SliceSampler(store, MT30, batch_size=64, horizon=3, seed=0)
    with Prefetcher(sampler, "cpu", start_step=4, depth=6, threads=threads) as batches:
        assert all(same(next(batches), sampler.batch(step)) for step in range(4, 104))


def test_processes_share_a_batch_out(store: EpisodeStore) -> None:
    whole = SliceSampler(store, MT30, 24, 3, 5)
    parts = [SliceSampler(store, MT30, 24, 3, 5, rank=rank, world_size=3) for rank in range(3)]
    assert all(np.array_equal(a, b) for part in parts for a, b in zip(part.indices(7), whole.indices(7), strict=True))
    batches = [part.batch(7) for part in parts]
    for key in ("obs", "action", "reward"):
        assert torch.equal(torch.cat([getattr(batch, key) for batch in batches], 1), getattr(whole.batch(7), key))
    assert torch.equal(torch.cat([batch.task for batch in batches]), whole.batch(7).task)
    with pytest.raises(DataError, match="found batch_size 24 for process 0 of 5, expected a multiple of 5"):
        SliceSampler(store, MT30, 24, 3, 5, rank=0, world_size=5)


def test_labels_come_along(store: EpisodeStore) -> None:
    class Column:
        def at(self, episodes: np.ndarray, rows: np.ndarray) -> np.ndarray:
            return (episodes * 100 + rows).astype(np.float32)

    sampler = SliceSampler(store, MT30, 32, 3, 0, labels=Column())
    episodes, starts = sampler.indices(2)
    taught = sampler.batch(2).labels
    assert taught is not None and taught.shape == (3, 32, 1)
    for step in range(3):
        np.testing.assert_array_equal(taught[step, :, 0], episodes * 100 + starts + 1 + step)
    assert SliceSampler(store, MT30, 32, 3, 0).batch(2).labels is None


def test_half_precision_rows_become_float32(tmp_path: Path) -> None:
    exact = SliceSampler(make_store(tmp_path / "a", MT30, ALL), MT30, 64, 3, 0).batch(1)
    rounded = SliceSampler(make_store(tmp_path / "b", MT30, ALL, dtype="float16"), MT30, 64, 3, 0).batch(1)
    assert rounded.obs.dtype == torch.float32
    assert torch.equal(rounded.obs, exact.obs.half().float()) and torch.equal(rounded.task, exact.task)


def test_a_prefetcher_stops_cleanly(store: EpisodeStore) -> None:
    sampler = SliceSampler(store, MT30, batch_size=16, horizon=3, seed=0)
    before = threading.active_count()
    batches = Prefetcher(sampler, "cpu", depth=2)
    next(batches)
    started = time.monotonic()
    batches.close()
    batches.close()
    assert time.monotonic() - started < 2
    assert threading.active_count() == before
    assert list(batches) == []
    with pytest.raises(DataError, match="found prefetch depth 0"):
        Prefetcher(sampler, "cpu", depth=0)


def test_an_error_in_the_thread_reaches_the_consumer(store: EpisodeStore) -> None:
    class Damaged:
        def at(self, episodes: np.ndarray, rows: np.ndarray) -> np.ndarray:
            raise DataError("labels.bin: cannot be read")

    with Prefetcher(SliceSampler(store, MT30, 16, 3, 0, labels=Damaged()), "cpu") as batches:
        for _ in range(2):
            with pytest.raises(DataError, match=r"labels\.bin: cannot be read"):
                next(batches)


def test_rows_that_cannot_be_read_are_found_at_once(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", MT30, ALL)
    (tmp_path / "s" / "rows.bin").unlink()
    with pytest.raises(DataError, match=r"rows\.bin: cannot be mapped"):
        SliceSampler(store, MT30, 16, 3, 0)


def test_a_nan_in_the_store_can_be_traced(tmp_path: Path) -> None:
    """Rows damaged on disk reach the batch, whose episodes `indices` names."""
    store = make_store(tmp_path / "s", MT30, ALL)
    rows = np.memmap(tmp_path / "s" / "rows.bin", dtype="<f4", mode="r+")
    rows[store.offsets[11] + 60 : store.offsets[12]] = np.nan
    rows.flush()
    sampler = SliceSampler(store, MT30, 256, 3, 0)
    bad = ~sampler.batch(0).obs.isfinite().all(dim=-1).all(dim=0)
    episodes, _ = sampler.indices(0)
    assert bad.any() and set(episodes[bad.numpy()].tolist()) == {11}


@pytest.mark.cuda
def test_prefetching_to_cuda(store: EpisodeStore) -> None:
    sampler = SliceSampler(store, MT30, batch_size=256, horizon=3, seed=0)
    with Prefetcher(sampler, "cuda", depth=3) as batches:
        for step in range(50):
            batch = next(batches)
            assert batch.obs.device.type == "cuda"
            assert same(batch.to("cpu"), sampler.batch(step))


def test_episodes_of_the_fixture_differ() -> None:
    """The slices above tell episodes and steps apart only if all rows differ."""
    obs = make_episodes(MT30, ALL, 21, 24, 6)["obs"]
    assert len(np.unique(obs[:, :, 0])) == 60 * 21


def test_a_store_that_grew_gives_the_batches_of_before(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", FOUR, [0, 1, 2, 3] * 2)
    expected = [SliceSampler(store, FOUR, 32, 3, seed=1).batch(step) for step in range(3)]
    length, fingerprint = len(store), store.fingerprint
    store.append(**make_episodes(FOUR, [3, 0, 1], 21, FOUR.obs_dim, FOUR.action_dim))
    assert not same(SliceSampler(store, FOUR, 32, 3, seed=1).batch(0), expected[0])
    past = EpisodeStore.open(tmp_path / "s").prefix(length, fingerprint)
    assert past is not None
    sampler = SliceSampler(past, FOUR, 32, 3, seed=1)
    assert sampler.num_episodes == 8
    assert all(same(sampler.batch(step), batch) for step, batch in enumerate(expected))


def test_a_store_that_is_shortened_between_batches_is_an_error(tmp_path: Path) -> None:
    """Not SIGBUS, which would end the process without a word."""
    make_store(tmp_path / "s", MT30, list(range(30)) * 8)
    store = EpisodeStore.open(tmp_path / "s")
    sampler = SliceSampler(store, MT30, 64, 3, seed=1)
    whole, later = sampler.batch(0), EpisodeStore.open(tmp_path / "s")
    assert same(sampler.batch(0), whole)
    for size in (store.num_bytes - 1, 4096, 0):
        os.truncate(tmp_path / "s" / "rows.bin", size)
        message = rf"rows\.bin: found {size:,} bytes, expected {store.num_bytes:,}: it was shortened while in use"
        for read in (lambda: sampler.batch(1), lambda: store.read_episodes(200, 240), lambda: store.episode(239)):
            with pytest.raises(DataError, match=message):
                read()
        with Prefetcher(sampler, "cpu") as batches, pytest.raises(DataError, match=message):
            next(batches)
    os.truncate(tmp_path / "s" / "tasks.bin", 7)
    with pytest.raises(DataError, match=r"tasks\.bin: found 6 bytes, expected 480: it was shortened since"):
        later.task_ids  # noqa: B018
    with pytest.raises(DataError, match=r"rows\.bin: (found 0 bytes|cannot be mapped)"):
        later.rows  # noqa: B018
