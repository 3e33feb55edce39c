"""Environments against dm_control and against golden trajectories, rewards and observations."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import tdmpc2
from tdmpc2.envs import PadToTaskSet, dmcontrol, episode_seed, make_env, register_envs
from tdmpc2.envs.gym_env import DMControlEnv
from tdmpc2.envs.rendering import choose_backend
from tdmpc2.errors import RenderError, UserError
from tdmpc2.tasks import EPISODE_STEPS, MT30, task_set

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "golden" / "envs_mt30.npz"
# Of each task in `SHARED`, zero-padded: the first six decisions and five of the states (`state_index`).
PART = REPOSITORY / "tests" / "golden" / "envs_mt30_part.npz"
OWN = {
    "walker-walk": ["walker", "walk"],
    "cup-catch": ["ball_in_cup", "catch"],
    "fish-swim": ["fish", "swim"],
}


@functools.cache
def env_of(task: str) -> DMControlEnv:
    """One environment a task for the tests that leave no trace in it but a state."""
    env = gymnasium.make(f"tdmpc2/{task}-v0").unwrapped
    assert isinstance(env, DMControlEnv)
    return env


def relative(found: object, expected: np.ndarray) -> float:
    difference = np.linalg.norm(np.asarray(found, np.float64) - expected)
    return float(difference / max(float(np.linalg.norm(expected)), 1e-12)) if difference else 0.0


def golden(task: str, shared: bool) -> dict[str, np.ndarray]:
    if shared:
        if not SHARED.exists():
            pytest.skip(f"{SHARED.name} is not beside this checkout")
        with np.load(SHARED) as file:
            return {key.split("/")[1]: file[key] for key in file.files if key.split("/")[0] == task}
    with np.load(PART) as file:
        assert tuple(file["tasks"]) == MT30
        row = MT30.index(task)
        figures = {key: file[key][row] for key in file.files}
    widths = task_set(task)
    figures["state"] = figures["state"][:, : figures["state_dim"]]
    figures["action"] = figures["action"][:, : widths.action_dim]
    for key in ("obs", "state_obs"):
        figures[key] = figures[key][:, : widths.obs_dim]
    return figures


@pytest.mark.parametrize("shared", [False, True], ids=["part", "shared"])
@pytest.mark.parametrize("task", MT30)
def test_golden_trajectory_and_states(task: str, shared: bool) -> None:
    figures = golden(task, shared)
    env = env_of(task)
    observations = [env.reset(seed=1)[0]]
    rewards = []
    for action in figures["action"]:
        obs, reward, terminated, truncated, _ = env.step(action)
        assert not terminated and not truncated
        observations.append(obs)
        rewards.append(reward)
    assert relative(observations[0], figures["obs"][0]) <= 1e-4
    assert relative(observations, figures["obs"]) <= 1e-4
    assert relative(rewards, figures["reward"]) <= 1e-4

    state_obs, state_reward = [], []
    dm_task = env._task
    for state in figures["state"]:
        with env.physics.reset_context():
            env.physics.set_state(state)
        state_obs.append(np.concatenate([np.ravel(v) for v in dm_task.get_observation(env.physics).values()]))
        state_reward.append(dm_task.get_reward(env.physics))
    assert relative(state_obs, figures["state_obs"]) <= 1e-4
    assert relative(state_reward, figures["state_reward"]) <= 1e-4


def test_stored_part_is_of_the_shared_figures() -> None:
    for task in MT30:
        part, whole = golden(task, False), golden(task, True)
        for key in ("obs", "action", "reward"):
            assert np.array_equal(part[key], whole[key][: len(part[key])]), (task, key)
        for key in ("state", "state_obs", "state_reward"):
            assert np.array_equal(part[key], whole[key][part["state_index"]]), (task, key)


@pytest.mark.parametrize("task", MT30)
def test_seeds_are_those_of_dm_control(task: str) -> None:
    fresh = dmcontrol.build(task, 7)
    expected = [DMControlEnv._flat(fresh.reset().observation) for _ in range(2)]

    env = env_of(task)  # has been played before, so its model and state carry the traces of other episodes
    env.reset(seed=3)
    env.step(np.ones(env.action_space.shape, np.float32))
    assert np.array_equal(env.reset(seed=7)[0], expected[0])
    env.step(np.ones(env.action_space.shape, np.float32))
    assert np.array_equal(env.reset()[0], expected[1])

    made = make_env(task, 7)
    assert np.array_equal(made.reset()[0], expected[0])
    assert np.array_equal(made.reset()[0], expected[1])


@pytest.mark.parametrize("task", OWN)
def test_whole_episode_equals_dm_control(task: str) -> None:
    from dm_control import suite

    dm_env = suite.load(*OWN[task], task_kwargs={"random": 5})
    env = env_of(task)
    dm_env.reset()
    env.reset(seed=5)
    actions = np.random.default_rng(0).uniform(-1, 1, (EPISODE_STEPS, *env.action_space.shape))
    for number, action in enumerate(actions, start=1):
        obs, reward, terminated, truncated, info = env.step(action)
        first, second = dm_env.step(action), dm_env.step(action)
        assert not first.last() and second.last() == (number == EPISODE_STEPS)
        assert np.array_equal(obs, DMControlEnv._flat(second.observation))
        assert reward == first.reward + second.reward
        assert (terminated, truncated, info) == (False, number == EPISODE_STEPS, {})
    assert second.discount == 1


def test_seeds_of_any_whole_kind_and_length() -> None:
    env = env_of("cup-spin")
    first = env.reset(seed=7)[0]
    for kind in (np.int64, np.uint8):
        assert np.array_equal(env.reset(seed=kind(7))[0], first)
        assert np.array_equal(make_env("cup-spin", kind(7)).reset()[0], first)
    # Beyond 32 bits numpy takes a seed in words: they are all different starts, and always the same ones.
    longer = [7 + 2**32, 7 + 2**40, 2**63 - 1, 2**200]
    starts = [env.reset(seed=seed)[0] for seed in longer]
    assert len({start.tobytes() for start in (first, *starts)}) == 5
    assert np.array_equal(make_env("cup-spin", np.uint64(7 + 2**40)).reset()[0], starts[1])
    expected = dmcontrol.build("cup-spin", None)
    expected.task.random.seed([7, 2**8])
    assert np.array_equal(DMControlEnv._flat(expected.reset().observation), starts[1])


def test_what_an_environment_says_of_itself() -> None:
    env = make_env("pendulum-spin", 3)
    assert env.spec is not None and env.spec.max_episode_steps == EPISODE_STEPS
    assert PadToTaskSet(env, task_set("mt30"), "pendulum-spin").spec.max_episode_steps == EPISODE_STEPS
    again = env.spec.make()
    env.reset(seed=0), again.reset(seed=0)
    action = np.ones(1, np.float32)
    ends = [(env.step(action)[2:4], again.step(action)[2:4]) for _ in range(EPISODE_STEPS)]
    assert set(ends[:-1]) == {((False, False),) * 2} and ends[-1] == ((False, True),) * 2


def test_default_seed_differs_between_environments() -> None:
    first, second = make_env("pendulum-swingup"), make_env("pendulum-swingup")
    assert not np.array_equal(first.reset()[0], second.reset()[0])


def check(env: gymnasium.Env, frames: bool = False) -> None:
    """Gymnasium's checker, which may only remark that DMControl's observations have no bounds."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env, skip_render_check=not frames)
    remarks = [str(warning.message) for warning in caught]
    assert [remark for remark in remarks if "infinity" not in remark and "wrapper" not in remark] == []


@pytest.mark.parametrize("task", MT30)
def test_gymnasium_checker(task: str) -> None:
    env = env_of(task)
    check(env)
    assert env.spec is not None and env.spec.max_episode_steps is None
    assert env.task_name == task
    widths = task_set(task)
    assert env.observation_space.shape == (widths.obs_dim,)
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (widths.action_dim,), np.float32)


def test_gymnasium_episode_is_500_decisions() -> None:
    env = gymnasium.make("tdmpc2/pendulum-spin-v0")
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(EPISODE_STEPS)]
    assert ends == [(False, False)] * (EPISODE_STEPS - 1) + [(False, True)]
    with pytest.raises(UserError, match="episode has ended"):
        env.step(np.zeros(1, np.float32))
    env.reset()
    env.step(np.zeros(1, np.float32))


def test_registration_twice_changes_nothing() -> None:
    before = dict(gymnasium.registry)
    register_envs()
    assert gymnasium.registry == before
    assert tdmpc2.make_env is make_env


def test_actions_are_clipped_and_checked() -> None:
    env = env_of("reacher-easy")
    env.reset(seed=0)
    beyond = env.step([7.0, -np.inf])[0]
    env.reset(seed=0)
    assert np.array_equal(env.step([1.0, -1.0])[0], beyond)
    with pytest.raises(UserError, match=r"reacher-easy.*NaN"):
        env.step([np.nan, 0])
    with pytest.raises(UserError, match=r"shape \(3,\), expected \(2,\)"):
        env.step(np.zeros(3))


def test_observations_are_the_callers_own() -> None:
    env = env_of("cartpole-balance")
    first, _ = env.reset(seed=0)
    kept = first.copy()
    second = env.step([1.0])[0]
    assert np.array_equal(first, kept)
    second[:] = 0
    assert env.step([1.0])[0].any()


def test_diverged_simulation_truncates_the_episode(caplog: pytest.LogCaptureFixture) -> None:
    env = env_of("cartpole-swingup")
    env.reset(seed=0)
    last, _, _, _, _ = env.step([0.5])
    env.physics.data.qvel[:] = 1e12
    with caplog.at_level(logging.WARNING):
        obs, reward, terminated, truncated, info = env.step([0.5])
    assert np.array_equal(obs, last) and reward == 0
    assert truncated and not terminated
    assert "BADQ" in info["physics_error"] and "cartpole-swingup" in caplog.text
    with pytest.raises(UserError, match="reset"):
        env.step([0.5])
    fresh = make_env("cartpole-swingup", 0).reset()[0]
    assert np.array_equal(env.reset(seed=0)[0], fresh)


def test_building_a_model_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="absl"):
        for task in ("cheetah-run", "cheetah-jump"):
            make_env(task)
        assert caplog.records == []
        logging.getLogger("absl").warning("settotalmass of another program")
    assert len(caplog.records) == 1, "the log is as it was"


def test_bad_requests() -> None:
    with pytest.raises(UserError, match="unknown task 'walker-fly'"):
        make_env("walker-fly")
    with pytest.raises(UserError, match="render_mode is 'human'"):
        make_env("cup-spin", render_mode="human")
    for seed in (-1, 1.0, True, "1", np.float32(2)):
        with pytest.raises(UserError, match="seed must be a whole number of 0 or more"):
            make_env("cup-spin", seed)
    env = make_env("cup-spin")
    with pytest.raises(UserError, match="reset"):
        env.step([0, 0])
    with pytest.raises(UserError, match="seed must be a whole number of 0 or more"):
        env.reset(seed=-1)
    with pytest.raises(RenderError, match="render_mode='rgb_array'"):
        env.render()
    env.close()
    env.close()
    with pytest.raises(UserError, match="closed"):
        env.reset()


def test_cup_spin_starts_in_the_cup_except_one_time_in_ten() -> None:
    env = env_of("cup-spin")
    outside = 0
    for seed in range(60):
        env.reset(seed=seed)
        assert env.physics.data.ncon == 0
        in_cup = env.physics.in_target() == 1
        assert in_cup or np.random.RandomState(seed).uniform() < 0.1
        outside += not in_cup
    assert 1 <= outside <= 12


def test_custom_models() -> None:
    assert env_of("walker-run-backwards").physics.named.model.geom_size["floor", "x"] == 500
    assert env_of("walker-run").physics.named.model.geom_size["floor", "x"] == 250
    assert env_of("cheetah-jump").physics.named.model.geom_size["ground", "x"] == 200
    assert env_of("cheetah-run").physics.named.model.geom_size["ground", "x"] == 100
    three = env_of("reacher-three-easy").physics
    joints = ["shoulder0", "shoulder1", "wrist"]
    assert [three.model.id2name(i, "joint") for i in range(three.model.njnt)] == joints
    assert [three.model.id2name(i, "actuator") for i in range(three.model.nu)] == joints
    assert three.named.model.jnt_limited[joints].tolist() == [0, 1, 1]
    assert np.allclose(np.rad2deg(three.named.model.jnt_range[joints[1:]]), [[-80, 80]] * 2)


@pytest.mark.parametrize(
    ("task", "own"),
    [
        ("walker-walk-backwards", "walker-walk"),
        ("cheetah-jump", "cheetah-run"),
        ("hopper-hop-backwards", "hopper-hop"),
        ("cup-spin", "cup-catch"),
        ("pendulum-spin", "pendulum-swingup"),
        ("reacher-three-hard", "reacher-hard"),
    ],
)
def test_custom_tasks_keep_their_domains_clock(task: str, own: str) -> None:
    custom, original = env_of(task)._env, env_of(own)._env
    assert custom.control_timestep() == original.control_timestep()
    assert custom.physics.timestep() == original.physics.timestep()
    assert custom._step_limit == original._step_limit


def test_padding() -> None:
    tasks = task_set("mt30")
    env = PadToTaskSet(make_env("reacher-three-easy"), tasks, "reacher-three-easy")
    assert env.observation_space.shape == (24,) and env.action_space.shape == (6,)
    mask = np.array([1, 1, 1, 0, 0, 0], np.float32)
    obs, info = env.reset(seed=4)
    assert np.array_equal(info["action_mask"], mask) and np.array_equal(env.action_mask, mask)
    plain = env_of("reacher-three-easy")
    assert np.array_equal(obs[:8], plain.reset(seed=4)[0]) and not obs[8:].any()
    action = np.array([0.3, -0.2, 0.9, 5, np.nan, -5], np.float32)
    obs, reward, terminated, truncated, _ = env.step(action)
    expected = plain.step(action[:3])
    assert np.array_equal(obs[:8], expected[0]) and not obs[8:].any() and obs.dtype == np.float32
    assert (reward, terminated, truncated) == expected[1:4]
    check(env)

    with pytest.raises(UserError, match=r"shape \(3,\), expected \(6,\)"):
        env.step(action[:3])
    with pytest.raises(UserError, match="pass the environment of that task"):
        PadToTaskSet(make_env("cup-spin"), tasks, "walker-walk")
    with pytest.raises(UserError, match="not in task set 'quickstart'"):
        PadToTaskSet(make_env("walker-walk"), task_set("quickstart"), "walker-walk")


def test_episode_seeds_never_change() -> None:
    assert [episode_seed(1, "cup-spin", k) for k in range(3)] == [742193870, 1590245587, 592378242]
    assert episode_seed(1, "walker-walk", 0) == 592193256
    assert episode_seed(2**32 - 1, "walker-walk", 2**32 - 1) == 361314046
    seeds = {episode_seed(s, task, k) for s in range(3) for task in MT30 for k in range(20)}
    assert len(seeds) == 3 * 30 * 20
    assert all(0 <= seed < 2**31 for seed in seeds)
    with pytest.raises(UserError, match="seed must lie"):
        episode_seed(-1, "cup-spin", 0)
    with pytest.raises(UserError, match="episode must lie"):
        episode_seed(0, "cup-spin", 2**32)


def run_python(code: str, **environment: str) -> str:
    """The output of `code` in a fresh interpreter that knows this checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_nothing_heavy_and_physics_loads_no_opengl() -> None:
    code = """
import os, sys
import tdmpc2, tdmpc2.envs
print(sorted({"torch", "mujoco", "dm_control", "hydra", "wandb"} & set(sys.modules)))
env = tdmpc2.make_env("cup-spin")
env.reset()
env.step([0, 0])
print(sorted({"torch", "OpenGL", "glfw"} & set(sys.modules)), os.environ.get("MUJOCO_GL"))
"""
    assert run_python(code).splitlines() == ["[]", "[] None"]
    # A back end that is not there does no harm to a program that draws nothing.
    assert run_python(code, MUJOCO_GL="osmesa", PYOPENGL_PLATFORM="none").splitlines() == ["[]", "[] osmesa"]


def test_render_error_names_the_packages() -> None:
    code = """
from tdmpc2.envs import make_env
from tdmpc2.errors import RenderError
try:
    make_env("cup-spin", render_mode="rgb_array")
except RenderError as error:
    print(error)
"""
    # PyOpenGL is bound to a platform that neither back end runs on, so both fail as where they are missing.
    message = run_python(code, PYOPENGL_PLATFORM="none")
    assert "egl: " in message and "osmesa: " in message
    assert "libegl1" in message and "libosmesa6" in message
    assert "OpenGL could not be started" in run_python(code, PYOPENGL_PLATFORM="none", MUJOCO_GL="egl")
    assert "MUJOCO_GL is 'disabled'" in run_python(code, MUJOCO_GL="disabled")


@functools.cache
def opengl() -> str:
    try:
        return choose_backend()
    except RenderError as error:
        pytest.skip(f"no headless OpenGL here: {error}")


def test_frames() -> None:
    opengl()
    env = make_env("walker-walk", 1, render_mode="rgb_array", width=96, height=64)
    env.reset()
    assert env.physics._contexts is None, "OpenGL starts with the first frame"
    first = env.render()
    assert first.shape == (64, 96, 3) and first.dtype == np.uint8 and first.std() > 5
    kept = first.copy()
    for _ in range(5):
        env.step(np.ones(6))
    second = env.render()
    assert np.array_equal(first, kept) and not np.array_equal(first, second)
    assert env.metadata["render_fps"] == 20

    larger = make_env("walker-walk", 1, render_mode="rgb_array", camera="back", width=800, height=600)
    larger.reset()
    assert larger.render().shape == (600, 800, 3)
    assert np.array_equal(env.render(), second)  # two contexts in one process do not disturb each other
    larger.close()
    assert np.array_equal(env.render(), second)
    with pytest.raises(UserError, match=r"camera 'top' is not in the model.*side"):
        make_env("walker-walk", render_mode="rgb_array", camera="top")
    small = gymnasium.make("tdmpc2/cup-spin-v0", render_mode="rgb_array", width=32, height=32)
    check(small.unwrapped, frames=True)


def test_unclosed_frames_end_quietly() -> None:
    opengl()
    code = """
from tdmpc2.envs import make_env
make_env("cup-spin").reset()
envs = [make_env(t, render_mode="rgb_array", width=32, height=32) for t in ("cup-spin", "pendulum-spin")]
for env in envs:
    env.reset()
    env.render()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
