"""The environment pool: the same numbers as single environments, and an end without hangs or leftovers."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdmpc2.envs import EnvPool, EnvPoolError, make_env
from tdmpc2.envs.gym_env import DMControlEnv
from tdmpc2.envs.rendering import choose_backend
from tdmpc2.errors import RenderError, UserError
from tdmpc2.tasks import TaskSet, task_set

REPOSITORY = Path(__file__).parents[2]
TASKS = ("cartpole-swingup", "reacher-three-easy", "cup-spin", "pendulum-spin", "finger-turn-easy")
SET = task_set("five", TASKS)


@pytest.fixture(scope="module")
def shared_pool() -> Iterator[EnvPool]:
    """One pool of two workers for the tests that do not break it."""
    with EnvPool(SET, num_envs=5, num_workers=2) as pool:
        yield pool


def single(task: str, seed: int, actions: np.ndarray, tasks: TaskSet) -> tuple[np.ndarray, np.ndarray]:
    """Padded observations [T+1, O] and rewards [T] of one environment under padded actions [T, A]."""
    env = make_env(task, seed)
    width = tasks.action_dims[tasks.index(task)]
    observations, rewards = [env.reset()[0]], []
    for action in actions:
        obs, reward, *_ = env.step(action[:width])
        observations.append(obs)
        rewards.append(reward)
    padded = np.zeros((len(observations), tasks.obs_dim), np.float32)
    padded[:, : len(observations[0])] = observations
    return padded, np.asarray(rewards, np.float32)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process whose parent is gone may wait for a while to be reaped by whoever inherited it.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_until_gone(pids: list[int], seconds: float) -> list[int]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(alive, pids)):
        time.sleep(0.05)
    return [pid for pid in pids if alive(pid)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_equals_single_environments(num_workers: int, shared_pool: EnvPool) -> None:
    pool = shared_pool if num_workers else EnvPool(SET, num_envs=5, num_workers=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 5, SET.action_dim)).astype(np.float32)
    expected = [single(task, 10 + slot, actions[:, slot], SET) for slot, task in enumerate(TASKS)]

    obs = pool.reset(range(5), TASKS, range(10, 15))
    assert obs.shape == (5, SET.obs_dim) and obs.dtype == np.float32
    assert np.array_equal(obs, np.stack([e[0][0] for e in expected]))
    seconds = [pool.decision_seconds(task) for task in TASKS]
    assert seconds == pytest.approx([0.02, 0.04, 0.04, 0.04, 0.04])
    for t in range(10):
        obs, reward, done = pool.step(actions[t])
        assert np.array_equal(obs, np.stack([e[0][t + 1] for e in expected]))
        assert np.array_equal(reward, np.stack([e[1][t] for e in expected]))
        assert reward.dtype == np.float32 and done.dtype == np.bool_ and not done.any()

    # Two parts of the slots take turns, in an order of their own, with both under way at once.
    first, second = [4, 0], [1, 3, 2]
    pool.step_async(actions[10, first], first)
    for t in range(10, 20):
        pool.step_async(actions[t, second], second)
        results = [pool.step_wait()]
        if t < 19:
            pool.step_async(actions[t + 1, first], first)
        results.append(pool.step_wait())
        for part, (obs, reward, _) in zip((first, second), results, strict=True):
            assert np.array_equal(obs, np.stack([expected[slot][0][t + 1] for slot in part]))
            assert np.array_equal(reward, np.stack([expected[slot][1][t] for slot in part]))
    if not num_workers:
        assert pool.worker_pids == (os.getpid(),)
        pool.close()


def test_reset_of_some_slots_and_change_of_task(shared_pool: EnvPool) -> None:
    pool = shared_pool
    actions = np.full((5, SET.action_dim), 0.5, np.float32)
    pool.reset(range(5), TASKS, range(5))
    pool.step(actions)
    kept = pool.step(actions[:2], [0, 2])[0]
    # A wide observation gives way to a narrow one, whose padding must be zeros; slot 0 goes on meanwhile.
    pool.step_async(actions[:1], [0])
    obs = pool.reset([4, 3], ["pendulum-spin", "cup-spin"], [8, 9])
    assert pool.tasks == (*TASKS[:3], "cup-spin", "pendulum-spin")
    expected = [single(task, seed, actions[:2], SET) for task, seed in (("pendulum-spin", 8), ("cup-spin", 9))]
    assert np.array_equal(obs, np.stack([e[0][0] for e in expected]))
    ahead = pool.step_wait()[0]
    assert np.array_equal(ahead[0], single(TASKS[0], 0, actions[[0] * 3], SET)[0][3])
    assert np.array_equal(pool.step(actions[:2], [4, 3])[0], np.stack([e[0][1] for e in expected]))
    again = pool.reset([2], [TASKS[2]], [2])
    pool.step(actions[:1], [2])
    assert np.array_equal(pool.step(actions[:1], [2])[0][0], kept[1]) and again.any()


def test_results_are_the_callers_own(shared_pool: EnvPool) -> None:
    actions = np.ones((5, SET.action_dim), np.float32)
    obs = shared_pool.reset(range(5), TASKS, range(5))
    first, reward, done = shared_pool.step(actions)
    copies = [array.copy() for array in (obs, first, reward, done)]
    shared_pool.step(actions)
    for array, copy in zip((obs, first, reward, done), copies, strict=True):
        assert np.array_equal(array, copy)


def test_episodes_end(shared_pool: EnvPool) -> None:
    pool = shared_pool
    pool.reset([0, 1], ["pendulum-spin", "cartpole-swingup"], [0, 0])
    actions = np.zeros((2, SET.action_dim), np.float32)
    for _ in range(499):
        assert not pool.step(actions, [0, 1])[2].any()
    assert pool.step(actions, [0, 1])[2].all()
    with pytest.raises(UserError, match=r"slots \[0\] have no episode under way"):
        pool.step(actions[:1], [0])
    pool.reset([0], ["pendulum-spin"], [1])
    assert not pool.step(actions[:1], [0])[2].any()


def test_misuse_is_named_and_breaks_nothing(shared_pool: EnvPool) -> None:
    pool = shared_pool
    actions = np.zeros((5, SET.action_dim), np.float32)
    pool.reset(range(5), TASKS, range(5))
    with pytest.raises(UserError, match="step_wait"):
        pool.step_wait()
    with pytest.raises(UserError, match="different numbers below 5"):
        pool.step(actions[:2], [1, 5])
    with pytest.raises(UserError, match="different numbers below 5"):
        pool.step(actions[:2], [1, 1])
    with pytest.raises(UserError, match=r"shape \(5, 3\), expected \(2, 3\)"):
        pool.step(actions, [1, 2])
    with pytest.raises(UserError, match="'walker-fly' is not in task set 'five'"):
        pool.reset([0], ["walker-fly"], [0])
    with pytest.raises(UserError, match="1 slots, 2 tasks and 1 seeds"):
        pool.reset([0], TASKS[:2], [0])
    bad = actions.copy()
    bad[2, 0] = np.nan
    with pytest.raises(UserError, match=r"slot 2 \(cup-spin\) holds NaN"):
        pool.step(bad)
    with pytest.raises(RenderError, match="render=True"):
        pool.render([0])
    with pytest.raises(UserError, match="no slot of this pool holds 'fish-swim'"):
        pool.decision_seconds("fish-swim")
    pool.step_async(actions[:2], [0, 1])
    with pytest.raises(UserError, match=r"slots \[1\] are being stepped"):
        pool.reset([1], ["cup-spin"], [0])
    with pytest.raises(UserError, match="under way"):
        pool.step(actions[:1], [2])
    pool.step_wait()
    assert pool.step(actions)[0].shape == (5, SET.obs_dim)
    with pytest.raises(UserError, match="num_envs of 1 or more"):
        EnvPool(SET, num_envs=0, num_workers=1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_environment_that_raises(num_workers: int) -> None:
    pool = EnvPool(SET, num_envs=2, num_workers=num_workers)
    with pytest.raises(EnvPoolError, match=r"slot 1 \(cup-spin\): seed must be a whole number") as caught:
        pool.reset([0, 1], ["pendulum-spin", "cup-spin"], [0, -1])
    assert "Traceback" in caught.value.__notes__[0]
    with pytest.raises(EnvPoolError, match="closed"):
        pool.step_wait()


@pytest.mark.parametrize(
    ("obs", "reward", "message"),
    [
        (np.nan, 0.0, "an observation with nan in column 2"),
        (np.inf, 0.0, "an observation with inf in column 2"),
        (0.0, np.nan, "the reward nan"),
        (0.0, -np.inf, "the reward -inf"),
    ],
)
def test_an_environment_that_returns_what_is_not_finite(
    obs: float, reward: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, reset = DMControlEnv.step, DMControlEnv.reset

    def faulty_step(self: DMControlEnv, action: Any) -> Any:
        values, _, *rest = step(self, action)
        values[2] = obs
        return values, reward, *rest

    def faulty_reset(self: DMControlEnv, **keys: Any) -> Any:
        values, info = reset(self, **keys)
        values[2] = obs
        return values, info

    pool = EnvPool(SET, num_envs=2, num_workers=0)
    pool.reset([0, 1], ["pendulum-spin", "cup-spin"], [0, 1])
    monkeypatch.setattr(DMControlEnv, "step", faulty_step)
    with pytest.raises(EnvPoolError, match=rf"slot 1 \(cup-spin\): the environment returned {message}\."):
        pool.step(np.zeros((1, SET.action_dim), np.float32), [1])
    if not np.isfinite(obs):
        monkeypatch.setattr(DMControlEnv, "reset", faulty_reset)
        with pytest.raises(EnvPoolError, match=r"slot 0 \(cup-spin\): the environment returned an observation"):
            EnvPool(SET, num_envs=2, num_workers=0).reset([0], ["cup-spin"], [0])


def test_a_worker_that_dies() -> None:
    with EnvPool(SET, num_envs=5, num_workers=2) as pool:
        pool.reset(range(5), TASKS, range(5))
        os.kill(pool.worker_pids[1], signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(EnvPoolError, match=r"worker 1 .*killed by SIGKILL"):
            for _ in range(2):  # the first send may still find room in the connection
                pool.step(np.zeros((5, SET.action_dim), np.float32))
        assert time.monotonic() - started < 10
        assert wait_until_gone(list(pool.worker_pids), 5) == []


def test_a_worker_that_stops_answering() -> None:
    with EnvPool(SET, num_envs=1, num_workers=1, timeout=30) as pool:
        pool.reset([0], ["pendulum-spin"], [0])
        os.kill(pool.worker_pids[0], signal.SIGSTOP)
        pool._workers[0]._timeout = 0.2  # building above may take longer on a busy machine
        with pytest.raises(EnvPoolError, match=r"worker 0 .*no answer within 0.2 s"):
            pool.step(np.zeros((1, SET.action_dim), np.float32))
        assert wait_until_gone(list(pool.worker_pids), 5) == []


def test_close_twice_and_forgotten_pools() -> None:
    pool = EnvPool(SET, num_envs=3, num_workers=8)
    pids = list(pool.worker_pids)
    assert len(pids) == pool.num_workers == 3
    pool.close()
    pool.close()
    assert wait_until_gone(pids, 5) == []
    with pytest.raises(EnvPoolError, match="closed"):
        pool.reset([0], ["cup-spin"], [0])

    forgotten = EnvPool(SET, num_envs=1, num_workers=1)
    pids = list(forgotten.worker_pids)
    del forgotten
    gc.collect()
    assert wait_until_gone(pids, 5) == []


def run_script(tmp_path: Path, code: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(code)
    return subprocess.Popen(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# No `if __name__ == "__main__"`: a script whose main module were run again in the workers would never end.
UNGUARDED = """
print("main module")
import os, signal, sys, time
import numpy as np
from tdmpc2.envs import EnvPool
from tdmpc2.tasks import task_set
pool = EnvPool(task_set("quickstart"), num_envs=2, num_workers=2)
pool.reset([0, 1], ["cup-spin", "pendulum-spin"], [0, 1])
print(*pool.worker_pids, flush=True)
"""


def test_a_script_without_guard_that_forgets_to_close(tmp_path: Path) -> None:
    process = run_script(tmp_path, UNGUARDED + "pool.step(np.zeros((2, 2)))\n")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    main, pids = output.splitlines()
    assert main == "main module"
    assert wait_until_gone([int(pid) for pid in pids.split()], 10) == []


def test_workers_load_no_torch_and_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    process = run_script(tmp_path, "import torch\n" + UNGUARDED + "time.sleep(60)\n")
    assert process.stdout is not None and process.stderr is not None
    with process:
        assert process.stdout.readline() == "main module\n"
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2 and all(map(alive, pids))
        for pid in pids:
            assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
        process.kill()
        assert wait_until_gone(pids, 10) == []
        assert process.stderr.read() == ""


def test_frames_of_a_pool() -> None:
    try:
        choose_backend()
    except RenderError as error:
        pytest.skip(f"no headless OpenGL here: {error}")
    with EnvPool(SET, num_envs=3, num_workers=2, render=True, frame_size=(48, 64)) as pool:
        pool.reset([0, 2], ["cup-spin", "pendulum-spin"], [3, 4])
        with pytest.raises(UserError, match=r"slots \[1\] hold no environment"):
            pool.render([1])
        frames = pool.render([2, 0])
        assert frames.shape == (2, 48, 64, 3) and frames.dtype == np.uint8
        for frame, task, seed in zip(frames, ("pendulum-spin", "cup-spin"), (4, 3), strict=True):
            env = make_env(task, seed, render_mode="rgb_array", height=48, width=64)
            env.reset()
            assert np.array_equal(frame, env.render())
            env.close()
