"""What is said of a store: figures by task that can be counted by hand, and sources in few words."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import make_episodes, make_store

from tdmpc2.data.facts import Bin, Summary, store_facts
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import DataError
from tdmpc2.tasks import task_set

TASKS = task_set("trio", ("pendulum-spin", "cartpole-swingup", "cup-spin"))


def with_returns(path: Path, ids: list[int], returns: list[float], steps: int = 21) -> EpisodeStore:
    """A store whose episodes have these returns, an episode a segment."""
    store = EpisodeStore.create(path, TASKS.tasks, TASKS.obs_dim, TASKS.action_dim, steps)
    for number, (task, value) in enumerate(zip(ids, returns, strict=True)):
        episode = make_episodes(TASKS, [task], steps, TASKS.obs_dim, TASKS.action_dim)
        episode["reward"][:, 1:] = 0
        episode["reward"][:, 5] = value
        details = {"first": number, "planner": {"horizon": 3}, "tasks": ["a", "b"], "greedy": True}
        store.append(**episode, source="odd" if number % 2 else "", details=details)
    return store


def test_figures_by_task(tmp_path: Path) -> None:
    store = with_returns(tmp_path / "s", [0, 2, 0, 0, 2], [4.0, 1.0, 2.0, 0.0, 9.0])
    facts = store_facts(store)
    first, none, last = facts.tasks
    assert (first.name, first.obs_dim, first.action_dim, first.episodes, first.transitions) == (
        *("pendulum-spin", 3, 1, 3, 63),
    )
    assert sum(task.bytes for task in facts.tasks) == store.num_bytes
    assert first.returns == Summary(mean=2.0, least=0.0, lower=1.0, median=2.0, upper=3.0, most=4.0)
    assert first.curve == tuple(Bin(n, n, value, value, value) for n, value in enumerate((4.0, 2.0, 0.0), 1))
    assert (none.episodes, none.returns, none.curve, sum(none.histogram)) == (0, None, (), 0)
    assert (facts.edges[0], facts.edges[-1], len(facts.edges)) == (0.0, 9.0, 51)
    assert sum(first.histogram) == 3 and first.histogram[0] == 1 and last.histogram[-1] == 1


def test_a_curve_is_of_equal_bins_in_the_order_of_adding(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", TASKS, [1] * 401, steps=3)
    curve = store_facts(store).tasks[1].curve
    assert len(curve) == 50 and (curve[0].first, curve[0].last, curve[-1].last) == (1, 9, 401)
    assert all(after.first == before.last + 1 for before, after in itertools.pairwise(curve))
    returns = store.returns().astype(np.float64)
    assert (curve[1].least, curve[1].most, curve[1].mean) == (returns[9], returns[16], returns[9:17].mean())


def test_segments_are_grouped_by_source(tmp_path: Path) -> None:
    facts = store_facts(with_returns(tmp_path / "s", [0] * 10, [1.0] * 10))
    unnamed, odd = facts.sources
    assert [(s.source, s.segments, s.episodes) for s in facts.sources] == [("an unnamed source", 5, 5), ("odd", 5, 5)]
    assert odd.details == {"first": "1 to 9", "planner.horizon": "3", "tasks": "a, b", "greedy": "true"}
    assert unnamed.details["first"] == "0 to 8" and odd.versions == (0,) and len(facts.versions) == 1
    assert facts.edges[0] < facts.edges[-1], "all returns are the same"


def test_details_that_differ_or_are_missing(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s", TASKS.tasks, TASKS.obs_dim, TASKS.action_dim, 21)
    episode = make_episodes(TASKS, [0], 21, TASKS.obs_dim, TASKS.action_dim)
    for number in range(5):
        details = {"file": f"f{number}", "way": "ab"[number % 2], "seed": None}
        store.append(**episode, source="x", details={**details, "odd": 1} if number % 2 else details)
    (source,) = store_facts(store).sources
    said = {"file": "5 values, f0 first and f4 last", "way": "a or b", "seed": "null", "odd": "1 (in 2 of 5 segments)"}
    assert source.details == said


def test_what_cannot_be_described(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no episodes yet"):
        store_facts(EpisodeStore.create(tmp_path / "none", TASKS.tasks, TASKS.obs_dim, TASKS.action_dim, 21))
    store = make_store(tmp_path / "s", TASKS, [0, 1])
    (tmp_path / "s" / "returns.bin").write_bytes(np.array([1, np.nan], "<f4").tobytes())
    with pytest.raises(DataError, match=r"returns\.bin: found nan as the return of episode 1"):
        store_facts(store)
