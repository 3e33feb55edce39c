"""Rollouts in the real simulator: every job once, whatever the slots and workers, and data that replay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_fixtures import DUO, ROOT, TASKS, store_path, tiny_model

from tdmpc2.agent import Agent
from tdmpc2.data.importing import open_or_create, store_to_fill
from tdmpc2.data.store import EpisodeStore
from tdmpc2.envs import EnvPool, episode_seed, make_env
from tdmpc2.envs.pool import Steps
from tdmpc2.errors import UserError
from tdmpc2.planner import PlannerSettings
from tdmpc2.rollout import AgentController, Episode, Job, RandomController, Rollout
from tdmpc2.rollout.collecting import Collected, collect
from tdmpc2.tasks import task_set

SMALL = PlannerSettings(iterations=2, num_samples=16, num_elites=4, num_pi_trajs=4)


def jobs_of(count: int, tasks: Sequence[str] = TASKS) -> list[Job]:
    return [Job(task, n, episode_seed(1, task, n)) for n in range(count) for task in tasks]


def rolled_out(jobs: list[Job], num_envs: int, num_workers: int = 0, groups: int = 1) -> list[Episode]:
    with EnvPool(DUO, num_envs=num_envs, num_workers=num_workers) as pool:
        controller = RandomController(DUO, num_envs, oscillate=True, noise=0.2)
        return list(Rollout(pool, jobs, controller, record=True, groups=groups).episodes())


def by_job(episodes: list[Episode]) -> dict[Job, Episode]:
    return {episode.job: episode for episode in episodes}


def assert_same_episodes(first: list[Episode], second: list[Episode]) -> None:
    a, b = by_job(first), by_job(second)
    assert a.keys() == b.keys()
    for job, episode in a.items():
        other = b[job]
        assert (episode.episode_return, episode.length) == (other.episode_return, other.length)
        assert episode.trajectory is not None and other.trajectory is not None
        for name in ("obs", "action", "reward"):
            np.testing.assert_array_equal(getattr(episode.trajectory, name), getattr(other.trajectory, name))


def test_every_job_runs_once_whatever_the_slots_and_workers() -> None:
    jobs = jobs_of(3)[:5]
    decisions: list[int] = []
    with EnvPool(DUO, num_envs=2, num_workers=0) as pool:
        controller = RandomController(DUO, 2, oscillate=True, noise=0.2)
        few = list(Rollout(pool, jobs, controller, record=True, on_decisions=decisions.append).episodes())
    assert sorted(map(str, (e.job for e in few))) == sorted(map(str, jobs))
    assert sum(decisions) == sum(e.length for e in few) == 5 * 500 and max(decisions) == 2
    assert len({e.episode_return for e in few}) == 5, "every job has its own seed"
    assert_same_episodes(few, rolled_out(jobs, 5))
    assert_same_episodes(few, rolled_out(jobs, 4, num_workers=2))
    assert_same_episodes(few, rolled_out(jobs, 3, num_workers=2, groups=2))
    assert_same_episodes(few, rolled_out(jobs, 2, groups=3))  # more groups than slots
    for episode in few:
        assert episode.trajectory is not None
        reward = episode.trajectory.reward
        assert np.isnan(reward[0]) and episode.episode_return == pytest.approx(float(reward[1:].sum()), rel=1e-5)


def test_a_group_is_planned_while_the_others_are_stepped() -> None:
    events: list[tuple[str, tuple[int, ...]]] = []

    class Watched(RandomController):
        def actions(self, slots: list[int], obs: np.ndarray) -> np.ndarray:
            events.append(("plan", tuple(slots)))
            return super().actions(slots, obs)

    class WatchedPool(EnvPool):
        def step_wait(self) -> Steps:
            events.append(("wait", tuple(self._pending[0].slots)))
            return super().step_wait()

    with WatchedPool(DUO, num_envs=4, num_workers=2) as pool:
        controller = Watched(DUO, 4, oscillate=True)
        episodes = list(Rollout(pool, jobs_of(2), controller, groups=2).episodes())
    assert len(episodes) == 4
    first, second = (0, 1), (2, 3)
    turn = [("wait", first), ("plan", first), ("wait", second), ("plan", second)]
    assert events[: 2 + 8] == [("plan", first), ("plan", second), *turn, *turn]


def test_trajectories_are_kept_only_where_asked_for() -> None:
    with EnvPool(DUO, num_envs=1, num_workers=0) as pool:
        (episode,) = Rollout(pool, jobs_of(1)[:1], RandomController(DUO, 1, oscillate=False)).episodes()
    assert episode.trajectory is None and episode.length == 500


def test_random_actions_stay_in_range_and_in_the_tasks_width() -> None:
    tasks = task_set("mixed", ("walker-walk", "cup-spin", "pendulum-spin"))
    slots = [0, 1, 2]
    for oscillate in (True, False):
        for noise in (0.0, 0.5):
            controller = RandomController(tasks, 3, oscillate=oscillate, noise=noise)
            for slot, task in enumerate(tasks.tasks):
                controller.start(slot, Job(task, 0, slot))
            obs = np.zeros((3, tasks.obs_dim), np.float32)
            actions = np.stack([controller.actions(slots, obs) for _ in range(200)])
            assert actions.dtype == np.float32 and actions.shape == (200, 3, 6)
            assert np.abs(actions).max() <= 1
            moved = actions.std(axis=0) > 0
            np.testing.assert_array_equal(moved, tasks.action_masks().astype(bool))


def test_oscillation_excites_more_slowly_than_uniform_noise() -> None:
    def steps(oscillate: bool) -> float:
        controller = RandomController(DUO, 1, oscillate=oscillate)
        controller.start(0, Job(TASKS[0], 0, 5))
        actions = np.stack([controller.actions([0], np.zeros((1, 5), np.float32)) for _ in range(200)])
        return float(np.abs(np.diff(actions, axis=0)).mean() / actions.std())

    assert steps(True) < 0.75 * steps(False)


@pytest.mark.parametrize("mpc", [True, False])
def test_an_agents_actions_do_not_depend_on_its_neighbours(mpc: bool) -> None:
    agent = Agent(tiny_model(), DUO, SMALL)
    jobs = jobs_of(3)
    obs = np.random.default_rng(0).normal(size=(4, 6, DUO.obs_dim)).astype(np.float32)

    def decisions(chosen: list[int], noise: float = 0.1) -> np.ndarray:
        """Actions of these jobs, run side by side in slots 0, 1, …"""
        slots = list(range(len(chosen)))
        controller = AgentController(agent, len(chosen), mpc=mpc, noise=noise)
        for slot, number in enumerate(chosen):
            controller.start(slot, jobs[number])
        return np.stack([controller.actions(slots, step[chosen]) for step in obs])

    beside = decisions([0, 1, 2, 3, 4, 5])
    assert beside.shape == (4, 6, 1) and np.abs(beside).max() <= 1
    for chosen in ([0], [5, 2], [3, 1, 4]):
        np.testing.assert_allclose(decisions(chosen), beside[:, chosen], atol=1e-4)
    np.testing.assert_array_equal(decisions([0, 1]), decisions([0, 1]))
    assert np.abs(decisions([0], noise=0.0) - beside[:, [0]]).max() > 1e-3


def test_an_agent_starts_every_episode_anew() -> None:
    agent = Agent(tiny_model(), DUO, SMALL)
    controller = AgentController(agent, 2)
    jobs = jobs_of(1)
    obs = np.random.default_rng(0).normal(size=(1, DUO.obs_dim)).astype(np.float32)
    controller.start(1, jobs[0])
    first = [controller.actions([1], obs) for _ in range(3)]
    assert not np.array_equal(first[0], first[1])
    controller.start(1, jobs[0])
    np.testing.assert_array_equal([controller.actions([1], obs) for _ in range(3)], first)
    controller.start(1, jobs[1])
    assert not np.array_equal(controller.actions([1], obs), first[0])


def test_greedy_actions_have_no_noise() -> None:
    agent = Agent(tiny_model(), DUO)
    obs = torch.rand(1, DUO.obs_dim).numpy()
    for greedy in (True, False):
        controller = AgentController(agent, 1, mpc=False, greedy=greedy)
        controller.start(0, jobs_of(1)[0])
        same = np.array_equal(controller.actions([0], obs), controller.actions([0], obs))
        assert same == greedy


def test_collected_episodes_replay_in_the_environment() -> None:
    store = EpisodeStore.open(store_path())
    assert (len(store), len(store.segments), store.segments[0].source) == (4, 1, "tests")
    assert sorted(store.task_ids.tolist()) == [0, 0, 1, 1]
    seeds = {(t, n): episode_seed(1, f"collect {t}", n) for n in range(2) for t in TASKS}
    found: list[tuple[str, int]] = []
    for index in range(4):
        episode = store.episode(index)
        task = store.tasks[int(store.task_ids[index])]
        obs, action, reward = (np.asarray(episode[key]) for key in ("obs", "action", "reward"))
        assert obs.shape == (501, DUO.obs_dims[DUO.index(task)])
        assert np.isnan(action[0]).all() and np.isnan(reward[0])
        for n in range(2):
            env = make_env(task, seed=seeds[task, n])
            first, _ = env.reset(seed=seeds[task, n])
            if np.array_equal(first, obs[0]):
                break
        else:
            pytest.fail(f"no job starts like episode {index}")
        found.append((task, n))
        for t in range(1, 501):
            seen, earned, _, _, _ = env.step(action[t])
            np.testing.assert_array_equal(seen, obs[t])
            assert np.float32(earned) == reward[t]
        env.close()
    assert sorted(found) == sorted(seeds)


def test_a_second_collection_differs_and_refuses_foreign_tasks(tmp_path: Path) -> None:
    tasks = task_set("wide", ("pendulum-spin", "cartpole-swingup", "cup-spin"))
    store = open_or_create(tmp_path, tasks)

    def more(names: Sequence[str], episodes: int = 1) -> dict[str, list[float]]:
        return collect(
            store,
            names,
            episodes,
            lambda slots: RandomController(tasks, slots, oscillate=False),
            lambda jobs: EnvPool(tasks, num_envs=jobs, num_workers=0),
            seed=1,
            source="uniform",
        ).returns

    first = more(["pendulum-spin"])
    second = more(["pendulum-spin"])
    assert len(store) == 2 and len(store.segments) == 2
    assert not np.array_equal(store.episode(0)["action"], store.episode(1)["action"], equal_nan=True)
    np.testing.assert_allclose(store.returns(), [*first["pendulum-spin"], *second["pendulum-spin"]], rtol=1e-5)
    assert store.episode(0)["obs"].shape == (501, 3) and store.read_episodes(0, 2).obs.shape == (2, 501, 8)
    with pytest.raises(UserError, match="cannot take walker-walk"):
        more(["walker-walk"])
    with pytest.raises(UserError, match="episodes must be at least 1"):
        more(["pendulum-spin"], 0)
    assert len(store) == 2


@pytest.mark.parametrize("commit_freq", [0, 3])
def test_a_full_disk_while_collecting_keeps_what_was_committed(tmp_path: Path, commit_freq: int) -> None:
    program = """
import resource, sys
from pathlib import Path
from tdmpc2.data.importing import open_or_create
from tdmpc2.envs import EnvPool
from tdmpc2.errors import UserError
from tdmpc2.rollout import RandomController
from tdmpc2.rollout.collecting import collect
from tdmpc2.tasks import task_set
tasks = task_set("pendulum-spin")
store = open_or_create(Path(sys.argv[1]), tasks)

def go(episodes):
    collect(
        store, tasks.tasks, episodes, lambda n: RandomController(tasks, n, oscillate=True),
        lambda jobs: EnvPool(tasks, num_envs=2, num_workers=0), seed=1, source="test", commit_freq=int(sys.argv[2]),
    )

go(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (3 * store.num_bytes + 100, resource.RLIM_INFINITY))
try:
    go(4)
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "s", str(commit_freq)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write {tmp_path / 's' / 'rows.bin'}: ") and done.stdout.count("\n") == 1
    store = EpisodeStore.open(tmp_path / "s")
    assert [segment.episodes for segment in store.segments] == ([1, 2] if commit_freq else [1]) and store.verify() > 0
    assert ("2 of 4 episodes are in" in done.stdout) == bool(commit_freq)
    assert (tmp_path / "s" / "rows.bin").stat().st_size == store.num_bytes, "what was not committed is cut off"


def pendulum(store: EpisodeStore, episodes: int, **how: Any) -> Collected:
    """Oscillating episodes of pendulum-spin, two at a time."""
    tasks = task_set("pendulum-spin")
    return collect(
        store,
        tasks.tasks,
        episodes,
        lambda slots: RandomController(tasks, slots, oscillate=True),
        lambda jobs: EnvPool(tasks, num_envs=2, num_workers=0),
        seed=1,
        source="test",
        **how,
    )


def test_no_episode_depends_on_how_often_is_committed(tmp_path: Path) -> None:
    stores = [open_or_create(tmp_path / str(n), task_set("pendulum-spin")) for n in range(2)]
    for store, freq in zip(stores, (0, 2), strict=True):
        pendulum(store, 1)
        pendulum(store, 3, commit_freq=freq, details={"noise": 0})
    assert [[s.episodes for s in store.segments] for store in stores] == [[1, 3], [1, 2, 1]]
    rows = [(tmp_path / str(n) / "rows.bin").read_bytes() for n in range(2)]
    assert rows[0] == rows[1] and stores[1].verify()
    asked = {"noise": 0, "seed": 1, "first": 1, "tasks": ["pendulum-spin"], "episodes": 3}
    assert all(s.details == asked and s.source == "test" for store in stores for s in store.segments[1:])


class Stops:
    """Raises an error after so many decisions."""

    def __init__(self, error: BaseException, decisions: int) -> None:
        self.error, self.left = error, decisions

    def __call__(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise self.error


def test_what_ends_a_collection_early_keeps_the_episodes_that_have_ended(tmp_path: Path) -> None:
    """Three are committed, one has ended since, and two are under way."""
    store = open_or_create(tmp_path / "s", task_set("pendulum-spin"))
    whole = open_or_create(tmp_path / "whole", task_set("pendulum-spin"))
    pendulum(whole, 6)
    stop = Stops(KeyboardInterrupt(), 2100)
    said = rf"^4 of 6 episodes are in {tmp_path / 's'}; the same command with episodes=2 adds the rest\.$"
    with pytest.raises(KeyboardInterrupt, match=said):
        pendulum(store, 6, commit_freq=3, on_decisions=stop)
    assert [s.episodes for s in store.segments] == [3, 1] and store.verify()
    np.testing.assert_array_equal(store.returns(), whole.returns()[:4])

    pendulum(store, 2, commit_freq=3)
    assert len(store) == 6 and len(set(store.returns().tolist())) == 6, "no episode twice"

    with pytest.raises(UserError, match=r"^no simulator None of 2 episodes is in .*; run the same command again"):
        pendulum(store, 2, commit_freq=1, on_decisions=Stops(UserError("no simulator"), 900))
    with pytest.raises(ZeroDivisionError) as raised:
        pendulum(store, 3, commit_freq=100, on_decisions=Stops(ZeroDivisionError(), 1100))
    assert raised.value.__notes__ == [
        f"2 of 3 episodes are in {store.path}; the same command with episodes=1 adds the rest."
    ]
    assert len(store) == 8


def test_without_commits_nothing_is_seen_of_a_collection_that_ends_early(tmp_path: Path) -> None:
    store = open_or_create(tmp_path / "s", task_set("pendulum-spin"))
    with pytest.raises(KeyboardInterrupt) as raised:
        pendulum(store, 3, on_decisions=Stops(KeyboardInterrupt(), 1100))
    assert len(store) == 0 and not str(raised.value)


def test_a_collection_that_fails_at_its_start_leaves_nothing(tmp_path: Path) -> None:
    tasks = task_set("pendulum-spin")

    def no_pool(jobs: int) -> EnvPool:
        raise UserError("no pool")

    path = tmp_path / "data" / "mine"
    with pytest.raises(UserError, match="no pool"), store_to_fill(path, tasks) as store:
        collect(
            store, tasks.tasks, 1, lambda n: RandomController(tasks, n, oscillate=True), no_pool, seed=1, source="test"
        )
    assert not list(tmp_path.iterdir())
    with store_to_fill(path, tasks) as store:
        pass
    with pytest.raises(UserError, match="no pool"), store_to_fill(path, tasks):  # one that was there stays
        no_pool(1)
    assert (path / "store.json").exists() and len(store) == 0


def test_a_collection_repeats_no_episode_of_one_that_lost_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds count the episodes that were left out too, since their simulation diverged."""
    whole = Rollout.episodes

    def one_diverges(rollout: Rollout) -> Iterator[Episode]:
        first, *others = whole(rollout)
        yield replace(first, length=3)
        yield from others

    store = open_or_create(tmp_path / "s", task_set("pendulum-spin"))
    with monkeypatch.context() as patch:
        patch.setattr(Rollout, "episodes", one_diverges)
        assert pendulum(store, 3).diverged == 1
    pendulum(store, 1)
    starts = {store.episode(n)["obs"][0].tobytes() for n in range(len(store))}
    assert len(store) == len(starts) == 3 and store.segments[1].details["first"] == 3


def test_two_collections_differ_although_one_store_was_opened_before_the_other(tmp_path: Path) -> None:
    """Seeds go by what the store holds when it is written, not when it was opened."""
    tasks = task_set("pendulum-spin")
    stores = [open_or_create(tmp_path / "s", tasks) for _ in range(2)]
    for store in stores:
        collect(
            store,
            tasks.tasks,
            1,
            lambda n: RandomController(tasks, n, oscillate=True),
            lambda jobs: EnvPool(tasks, num_envs=1, num_workers=0),
            seed=1,
            source="test",
        )
    store = EpisodeStore.open(tmp_path / "s")
    assert len(store) == 2 and not np.array_equal(store.episode(0)["obs"], store.episode(1)["obs"])
