"""The agent and the public interface."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from model_fixtures import (
    RELEASED,
    ROOT,
    SMALL_PLAN,
    checkpoint_error,
    golden,
    golden_plan,
    single_task_model,
    small_model,
    small_tasks,
)

import tdmpc2
from tdmpc2.agent import Agent, load_agent, resolve_device
from tdmpc2.checkpointing import CheckpointMetadata, read_checkpoint, save_checkpoint
from tdmpc2.errors import UserError
from tdmpc2.execution import Execution
from tdmpc2.places import CHECKPOINTS
from tdmpc2.planner import PlannerSettings
from tdmpc2.rollout import AgentController, Job
from tdmpc2.tasks import task_set

QUICK = PlannerSettings(iterations=2, num_samples=32, num_elites=8, num_pi_trajs=4)


def small_agent(seed: int = 0, planner: PlannerSettings = SMALL_PLAN) -> Agent:
    return Agent(small_model(), small_tasks(), planner, torch.Generator().manual_seed(seed))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_the_return_of_a_plan_is_that_of_its_mean() -> None:
    agent = small_agent()
    model, horizon = agent.model, agent.settings.horizon
    obs, task = torch.rand(2, 24), torch.tensor([0, 2])
    action, warm, expected = agent.plan_and_return(obs, task, agent.zero_plan(2), generators(1, 2))
    same_action, same_warm = agent.plan(obs, task, agent.zero_plan(2), generators(1, 2))
    assert torch.equal(action, same_action) and torch.equal(warm, same_warm)

    mean = agent.planner.plan(obs, task, agent.zero_plan(2), agent.planner.draw_noise(2, generators(1, 2))).mean
    with torch.no_grad():
        z, total = model.encode(obs, task), torch.zeros(2)
        gamma = torch.from_numpy(small_tasks().discounts())[task]
        for t in range(horizon):
            total += gamma**t * model.decode(model.reward(z, mean[:, t], task)).squeeze(-1)
            z = model.next(z, mean[:, t], task)
        q = model.decode(model.q_values(z, model.policy(z, task)[0], task)).squeeze(-1)
    torch.testing.assert_close(expected, total + gamma**horizon * q[-2:].mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_environments_planned_on_several_threads_get_the_same_actions(compiled: bool) -> None:
    many = PlannerSettings(iterations=2, num_samples=400, num_elites=8, num_pi_trajs=4)  # one environment at a time
    obs, task = torch.rand(5, 24), torch.tensor([0, 1, 2, 0, 1])
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            agent = Agent(small_model(), small_tasks(), many, execution=Execution(compile=compiled))
            for _ in range(2):
                action, warm = agent.plan(obs, task, agent.zero_plan(5), generators(*range(5)))
            found.append((action, warm))
            assert torch.get_num_threads() == threads
        agent.generator = torch.Generator().manual_seed(3)  # one generator for all: drawn in order
        drawn_in_order = agent.act(obs, task)
        torch.set_num_threads(1)
        agent.generator = torch.Generator().manual_seed(3)
        torch.testing.assert_close(agent.act(obs, task, first=[True] * 5), drawn_in_order, rtol=1e-4, atol=1e-5)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_fails_on_a_thread_is_raised() -> None:
    many = PlannerSettings(iterations=1, num_samples=400, num_elites=8, num_pi_trajs=4)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        agent = Agent(small_model(), small_tasks(), many)
        with pytest.raises(RuntimeError):
            agent.plan(torch.rand(2, 23), torch.tensor([0, 1]), agent.zero_plan(2), generators(1, 2))
    finally:
        torch.set_num_threads(before)


def test_without_a_warm_start_every_decision_begins_anew() -> None:
    obs, task = torch.rand(2, 24), torch.tensor([0, 2])
    cold, warm = (small_agent(planner=replace(SMALL_PLAN, warm_start=on)) for on in (False, True))
    for agent in (cold, warm):
        agent.act(obs, task)
        agent.generator = torch.Generator().manual_seed(7)
    fresh = small_agent(7)
    again = fresh.act(obs, task, first=[True, True])
    torch.testing.assert_close(cold.act(obs, task), again)
    assert not torch.allclose(warm.act(obs, task), again)


# -- the public interface ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_released_student_through_the_public_interface(shared_checkpoints: Path, count: int) -> None:
    agent = tdmpc2.load_agent(str(shared_checkpoints / RELEASED), task="mt30", device="cpu", planner=QUICK)
    assert isinstance(agent, tdmpc2.Agent)
    obs, task = torch.randn(count, 24), torch.arange(count)
    with torch.no_grad():
        z = agent.model.encode(obs, task)
        action = agent.act(obs, task, first=torch.ones(count, dtype=torch.bool))
        assert z.shape == (count, 128)
        assert action.shape == (count, 6)
        assert (action.abs() <= 1).all()
        assert agent.model.next(z, action, task).shape == (count, 128)
        assert agent.model.reward(z, action, task).shape == (count, 101)
        online = agent.model.q_values(z, action, task)
        target = agent.model.q_values(z, action, task, target=True)
        assert online.shape == target.shape == (2, count, 101)
        assert not torch.equal(online, target)
        mean, log_std, sampled = agent.model.policy(z, task, noise=None)
        assert mean.shape == log_std.shape == (count, 6)
        assert sampled is None
        sampled = agent.model.policy(z, task, noise=torch.zeros(count, 6))[2]
        assert sampled is not None
        torch.testing.assert_close(sampled, mean)
    greedy = agent.act(obs, task, first=np.zeros(count, bool), greedy=True)
    assert greedy.shape == (count, 6)
    assert not greedy.requires_grad


def test_a_file_without_target_q_says_so(tmp_path: Path) -> None:
    path, tasks = tmp_path / "student.safetensors", small_tasks()
    model = small_model()
    meta = CheckpointMetadata(tasks.name, tasks.tasks, model.dims, None, 1)
    for target in (True, False):
        state = {n: t for n, t in model.state_dict().items() if target or not n.startswith("target_")}
        save_checkpoint(path, state, meta)
        agent = load_agent(path, device="cpu", planner=SMALL_PLAN)
        assert agent.model.has_target_q is target
        assert agent.task_set == tasks
        assert agent.act(torch.rand(2, 24), [0, 2]).shape == (2, 6)
    with pytest.raises(UserError, match="no weights for 'target_q_heads'"):
        agent.model.q_values(torch.rand(1, 16), torch.rand(1, 6), torch.tensor([0]), target=True)
    with checkpoint_error(path, "expected 'mt30'"):
        load_agent(path, task="mt30", device="cpu")


def test_an_agent_acts_in_an_environment(shared_checkpoints: Path) -> None:
    agent = tdmpc2.load_agent(shared_checkpoints / RELEASED, task="mt30", device="cpu", planner=QUICK)
    env = tdmpc2.make_env("cup-spin", seed=1)
    obs, _ = env.reset()
    task = [agent.task_set.index("cup-spin")]
    for step in range(3):
        padded = np.zeros((1, 24), np.float32)
        padded[0, : len(obs)] = obs
        action = agent.act(padded, task, first=[step == 0])
        assert not action[0, 2:].any()
        obs, reward, _, _, _ = env.step(action[0, :2].numpy())
        assert np.isfinite(reward)
    env.close()


def run_python(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_importing_the_package_is_light() -> None:
    run_python(
        "import sys, tdmpc2, tdmpc2.envs, tdmpc2.tasks\n"
        "heavy = {'torch', 'hydra', 'wandb', 'omegaconf', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'load_agent' in tdmpc2.__all__ and callable(tdmpc2.load_agent)\n"
        "assert 'torch' in sys.modules and 'hydra' not in sys.modules and 'wandb' not in sys.modules\n"
    )


def test_names_of_the_package() -> None:
    assert tdmpc2.PlannerSettings is PlannerSettings
    assert all(hasattr(tdmpc2, name) for name in tdmpc2.__all__) and set(tdmpc2.__all__) <= set(dir(tdmpc2))
    assert callable(tdmpc2.train) and callable(tdmpc2.evaluate), "the functions, not the files that start programs"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        tdmpc2.nothing  # noqa: B018


def test_no_module_shadows_a_library() -> None:
    """`python tdmpc2/train.py` puts this folder first on the path."""
    names = {p.stem for p in (ROOT / "tdmpc2").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    installed = set(importlib.metadata.packages_distributions())
    assert not (names - {"__init__"}) & (set(sys.stdlib_module_names) | installed)


# -- acting --------------------------------------------------------------------------------------------------------


def test_acting_is_planning_with_a_warm_start() -> None:
    agent, other = small_agent(3), small_agent(3)
    obs, task, _, _ = golden_plan(golden())
    first = agent.act(obs, task)
    expected, warm = other.plan(obs, task, other.zero_plan(3), other.generator)
    assert torch.equal(first, expected)
    assert not warm[:, -1].any()
    second = agent.act(obs, task)
    expected, _ = other.plan(obs, task, warm, other.generator)
    assert torch.equal(second, expected)
    # One environment starts anew: its warm start alone is forgotten.
    agent, other = small_agent(3), small_agent(3)
    agent.act(obs, task)
    _, warm = other.plan(obs, task, other.zero_plan(3), other.generator)
    warm[1] = 0
    assert torch.equal(
        agent.act(obs, task, first=[False, True, False]), other.plan(obs, task, warm, other.generator)[0]
    )


def test_own_generators_make_environments_independent() -> None:
    agent = small_agent()
    obs = torch.randn(7, 24, generator=torch.Generator().manual_seed(0))
    task = torch.arange(7) % 3
    together, _ = agent.plan(obs, task, agent.zero_plan(7), generators(*range(7)))
    alone, _ = agent.plan(obs[4:5], task[4:5], agent.zero_plan(1), generators(4))
    torch.testing.assert_close(alone[0], together[4], rtol=1e-4, atol=1e-5)
    prior = agent.policy_action(obs, task, generators(*range(7)))
    torch.testing.assert_close(agent.policy_action(obs[4:5], task[4:5], generators(4))[0], prior[4])


def test_the_prior_alone() -> None:
    agent = small_agent()
    obs, task = torch.rand(3, 24), torch.arange(3)
    with torch.no_grad():
        mean = agent.model.policy(agent.model.encode(obs, task), task)[0]
    torch.testing.assert_close(agent.policy_action(obs, task, None, greedy=True), mean, rtol=1e-4, atol=1e-6)
    assert not torch.equal(agent.policy_action(obs, task, torch.Generator().manual_seed(0)), mean)


def test_inputs_may_be_arrays_lists_or_tensors() -> None:
    obs = np.random.default_rng(0).normal(size=(2, 24))  # float64
    actions = [
        small_agent(1).act(kind(obs), task, first)
        for kind, task, first in (
            (torch.from_numpy, torch.tensor([1, 2]), torch.tensor([True, True])),
            (np.asarray, np.array([1, 2], np.int32), np.array([True, True])),
            (np.ndarray.tolist, [1, 2], [True, True]),
            (np.float32, (1, 2), None),
        )
    ]
    for action in actions[1:]:
        torch.testing.assert_close(action, actions[0], rtol=1e-4, atol=1e-5)


def test_bad_inputs_are_named() -> None:
    agent, obs = small_agent(), torch.rand(2, 24)
    for bad, message in [
        (torch.rand(24), r"observations have shape \(24,\), expected \(N, 24\)"),
        (torch.rand(2, 23), r"shape \(2, 23\)"),
    ]:
        with pytest.raises(UserError, match=message):
            agent.act(bad, [0, 1])
    for task, message in [
        (None, "knows 3 tasks: give the task ids"),
        ([0], r"task has shape \(1,\), expected \(2,\)"),
        ([0, 3], "task ids run from 0 to 3; 'small' has ids 0 to 2"),
        ([-1, 0], "task ids run from -1"),
        (np.array([0.5, 1.0]), "task holds float64 values, expected integer ids"),
    ]:
        with pytest.raises(UserError, match=message):
            agent.act(obs, task)
    with pytest.raises(UserError, match=r"first has shape \(3,\), expected \(2,\)"):
        agent.act(obs, [0, 1], first=[True, True, False])
    with pytest.raises(UserError, match="the last plan was for 0: mark every one as first"):
        agent.act(obs, [0, 1], first=[True, False])
    agent.act(obs, [0, 1])
    with pytest.raises(UserError, match="3 environments, but the last plan was for 2"):
        agent.act(torch.rand(3, 24), [0, 1, 2], first=[True, True, False])
    assert agent.act(torch.rand(3, 24), [0, 1, 2]).shape == (3, 6)


def test_single_task_agent_needs_no_task() -> None:
    agent = Agent(single_task_model(), task_set("cup-catch"), SMALL_PLAN)
    assert agent.act(torch.rand(2, 8)).shape == (2, 2)
    assert agent.act(torch.rand(2, 8), task=[0, 0]).shape == (2, 2)


def test_devices_and_precisions(tmp_path: Path) -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UserError, match="device=gpu is not a device name"):
        resolve_device("gpu")
    with pytest.raises(UserError, match="device=cuda:99, but torch sees"):
        resolve_device("cuda:99")
    with pytest.raises(UserError, match="device=meta is not supported"):
        resolve_device("meta")
    with pytest.raises(UserError, match="precision=int8 is unknown; choose one of float32, float16, bfloat16"):
        load_agent(tmp_path, device="cpu", precision="int8")
    with pytest.raises(UserError, match="precision=float16 needs CUDA"):
        load_agent(tmp_path, device="cpu", precision="float16")


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_acting_on_cuda(tmp_path: Path, precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    path, model, tasks = tmp_path / "model.safetensors", small_model(), small_tasks()
    save_checkpoint(path, model.state_dict(), CheckpointMetadata(tasks.name, tasks.tasks, model.dims, None, 1))
    agent = load_agent(path, device="cuda", planner=SMALL_PLAN, precision=precision)
    for _ in range(2):
        action = agent.act(torch.rand(3, 24), [0, 1, 2])
        assert action.device.type == "cuda"
        assert action.isfinite().all()
        assert not action[2, 1:].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_observations_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    agent = small_agent()
    name = agent.task_set.tasks[1]
    obs = torch.zeros(3, agent.task_set.obs_dim)
    obs[2, 1] = bad
    message = rf"observation 2 \({name}\) holds {bad} in column 1, expected finite"
    with pytest.raises(UserError, match=message):
        agent.act(obs, [0, 1, 1])
    with pytest.raises(UserError, match=message):
        agent.policy_action(obs, torch.tensor([0, 1, 1]), None)
    with pytest.raises(UserError, match=message):
        agent.act(obs.double().numpy(), [0, 1, 1])
    with pytest.raises(UserError, match=rf"observation 0 \({agent.task_set.tasks[0]}\) holds inf"):
        agent.act(np.full((1, agent.task_set.obs_dim), 1e39), [0])  # beyond float32
    controller = AgentController(agent, 3)
    for slot, position in enumerate((0, 1, 1)):
        controller.start(slot, Job(agent.task_set.tasks[position], 0, 1))
    with pytest.raises(UserError, match=message):
        controller.actions([0, 1, 2], obs.numpy())


# -- in a task's own widths ------------------------------------------------------------------------------------------


def test_a_named_task_is_acted_in_by_its_own_widths() -> None:
    agent, other = small_agent(3), small_agent(3)
    tasks = agent.task_set
    name, index = tasks.tasks[2], 2
    o, a = tasks.obs_dims[index], tasks.action_dims[index]
    assert o < tasks.obs_dim and a < tasks.action_dim
    obs = torch.rand(2, 4, o)
    padded = torch.nn.functional.pad(obs, (0, tasks.obs_dim - o))
    for decision in range(2):
        action = agent.act(obs[decision], name)
        assert action.shape == (4, a)
        assert torch.equal(action, other.act(padded[decision], [index] * 4)[:, :a])
    # One environment, and an array: begun anew because their number changed, then as `first` says.
    agent.generator, other.generator = generators(5, 5)
    single = agent.act(obs[0, 0].numpy(), name)
    assert single.shape == (a,)
    assert torch.equal(single, other.act(padded[0, :1], [index])[0, :a])
    for first in (False, True):
        expected = other.act(padded[1, :1], [index], first=[first])[0, :a]
        assert torch.equal(agent.act(obs[1, 0], name, first=first), expected)


def test_a_plan_for_one_task_is_not_gone_on_with_in_another() -> None:
    agent, other = small_agent(3), small_agent(3)
    first, second = agent.task_set.tasks[:2]
    widths = dict(zip(agent.task_set.tasks, agent.task_set.obs_dims, strict=True))
    agent.act(torch.rand(widths[first]), first)
    agent.generator, other.generator = generators(5, 5)
    obs = torch.rand(widths[second])
    assert torch.equal(agent.act(obs, second), other.act(obs, second))


def test_mistakes_about_a_named_task() -> None:
    agent = small_agent()
    name, width = agent.task_set.tasks[2], agent.task_set.obs_dims[2]
    with pytest.raises(UserError, match=rf"shape \(24,\), expected \({width},\) or \(N, {width}\), as '{name}' has"):
        agent.act(torch.rand(24), name)
    with pytest.raises(UserError, match="task 'walker-fly' is not in task set 'small'"):
        agent.act(torch.rand(24), "walker-fly")
    with pytest.raises(UserError, match=rf"observation 0 \({name}\) holds nan"):
        agent.act(torch.full((width,), float("nan")), name)
    single = Agent(single_task_model(), task_set("cup-catch"), SMALL_PLAN)
    assert single.act(torch.rand(8), "cup-catch").shape == (2,)


def test_an_agent_says_what_it_is() -> None:
    assert re.fullmatch(
        r"Agent\(small, 3 tasks; \d\.\dM parameters; plans \d+ x \d+ samples of 3 steps; cpu\)", repr(small_agent())
    )
    assert repr(Agent(single_task_model(), task_set("cup-catch"))).startswith("Agent(cup-catch; ")


def test_an_agent_is_saved_with_what_is_known_of_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    agent = small_agent()
    agent.save(first)
    again = load_agent(first, device="cpu", planner=SMALL_PLAN)
    assert again.checksum() == agent.checksum() and again.task_set == agent.task_set
    # A file's own record goes on; its score does not, for the weights may be others by then.
    meta = CheckpointMetadata(
        "small", agent.task_set.tasks, agent.model.dims, None, 7, "fp16", {"lr": 1}, normalised_score=3.0
    )
    save_checkpoint(first, {n: t.half() for n, t in agent.model.state_dict().items()}, meta)
    load_agent(first, device="cpu").save(second)
    found = read_checkpoint(second)
    assert found.metadata is not None and found.stored_as == "float32"
    assert (found.metadata.step, found.metadata.config, found.metadata.normalised_score) == (7, {"lr": 1}, None)
    assert load_agent(second, device="cpu").checksum() == load_agent(first, device="cpu").checksum()
    with pytest.raises(UserError, match="end its name so"):
        agent.save(tmp_path / "agent.pt")


def test_a_released_file_is_saved_as_float32(shared_checkpoints: Path, tmp_path: Path) -> None:
    agent = load_agent(shared_checkpoints / RELEASED, "mt30", "cpu")
    agent.save(tmp_path / "own.safetensors")
    own = load_agent(tmp_path / "own.safetensors", device="cpu")
    assert own.checksum() == agent.checksum() and own.task_set == agent.task_set


# -- as other libraries act ------------------------------------------------------------------------------------------

TEACHER_TASKS = task_set("quickstart")


@functools.cache
def teacher() -> Agent:
    return load_agent(CHECKPOINTS / "quickstart_teacher.safetensors", device="cpu", planner=QUICK)


def test_predicting_is_acting_with_the_state_outside() -> None:
    agent = teacher()
    env = tdmpc2.make_env("cup-spin")
    policy = agent.policy(env)
    agent.generator = torch.Generator().manual_seed(1)
    obs, _ = env.reset(seed=1)
    seen, taken, state = [obs], [], None
    for _ in range(3):
        action, state = policy.predict(obs, state)
        assert isinstance(action, np.ndarray) and env.action_space.contains(action)
        obs, *_ = env.step(action)
        seen.append(obs)
        taken.append(action)
    agent.generator.manual_seed(1)
    for number, (obs, action) in enumerate(zip(seen, taken, strict=False)):
        assert np.array_equal(agent.act(obs, "cup-spin", first=number == 0).numpy(), action)
    agent.generator.manual_seed(2)
    anew = policy.predict(obs, state, episode_start=np.array([True]), deterministic=True)[0]
    agent.generator.manual_seed(2)
    assert np.array_equal(anew, policy.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize("mpc", [True, False])
def test_policies_of_vector_and_padded_environments(mpc: bool) -> None:
    agent = teacher()
    own = gymnasium.vector.SyncVectorEnv([functools.partial(tdmpc2.make_env, "pendulum-spin")] * 3)
    mixed = gymnasium.vector.SyncVectorEnv(
        [
            lambda name=name: gymnasium.wrappers.RecordEpisodeStatistics(
                tdmpc2.PadToTaskSet(tdmpc2.make_env(name), TEACHER_TASKS, name)
            )
            for name in ("cup-spin", "pendulum-spin")
        ]
    )
    for env, tasks in ((own, ("pendulum-spin",) * 3), (mixed, ("cup-spin", "pendulum-spin"))):
        policy = agent.policy(env, mpc=mpc)
        assert policy.tasks == tasks
        obs, _ = env.reset(seed=1)
        state = None
        for _ in range(2):
            action, state = policy.predict(obs, state, episode_start=np.zeros(len(tasks), bool))
            assert env.action_space.contains(action) and (state is None) == (not mpc)
            obs, *_ = env.step(action)
        env.close()
    if not mpc:
        wanted = agent.policy_action(*agent.checked(obs, [1, 2]), None, greedy=True)
        assert np.array_equal(policy.predict(obs, deterministic=True)[0], wanted.numpy())


def test_environments_that_a_policy_does_not_fit() -> None:
    agent = teacher()
    with pytest.raises(UserError, match="no environment of this project"):
        agent.policy(gymnasium.make("CartPole-v1"))
    with pytest.raises(UserError, match="task 'walker-walk' is not in task set 'quickstart'"):
        agent.policy(tdmpc2.make_env("walker-walk"))
    wide = tdmpc2.PadToTaskSet(tdmpc2.make_env("cup-spin"), task_set("mt30"), "cup-spin")
    with pytest.raises(
        UserError, match=r"24 and 6 wide, expected those of cup-spin or, padded \(PadToTaskSet\), 8 and 2"
    ):
        agent.policy(wide)
    policy = agent.policy(tdmpc2.make_env("pendulum-spin"))
    with pytest.raises(UserError, match=r"shape \(1, 8\), expected \(1, 3\)"):
        policy.predict(np.zeros(8, np.float32))
