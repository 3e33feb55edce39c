"""Environments, stores and agents in torchrl, which comes with online training."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from run_fixtures import store_path
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer, SliceSampler
from torchrl.envs import GymWrapper, InitTracker, SerialEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from tdmpc2.agent import Agent, load_agent
from tdmpc2.data.store import EpisodeStore
from tdmpc2.envs import PadToTaskSet, make_env
from tdmpc2.errors import DataError
from tdmpc2.places import CHECKPOINTS
from tdmpc2.planner import PlannerSettings
from tdmpc2.tasks import task_set

QUICK = PlannerSettings(iterations=1, num_samples=16, num_elites=4, num_pi_trajs=4)


def teacher() -> Agent:
    agent = load_agent(CHECKPOINTS / "quickstart_teacher.safetensors", device="cpu", planner=QUICK)
    agent.generator = torch.Generator().manual_seed(1)
    return agent


def wrapped(task: str = "cup-spin") -> TransformedEnv:
    return TransformedEnv(GymWrapper(make_env(task)), InitTracker())


def test_an_environment_in_torchrl() -> None:
    for env in (make_env("cup-spin"), PadToTaskSet(make_env("cup-spin"), task_set("mt30"), "cup-spin")):
        known = GymWrapper(env)
        check_env_specs(known)
        known.set_seed(3)
        steps = known.rollout(5)
        again = make_env("cup-spin")
        again.reset(seed=3)  # torchrl resets to seed, and once more for the rollout
        obs, _ = again.reset()
        width = len(obs)
        for step in steps:
            assert np.array_equal(step["observation"][:width], obs)
            obs, reward, *_ = again.step(step["action"][:2].numpy())
            assert step["next", "reward"].item() == pytest.approx(reward, rel=1e-6)
        known.close()


def test_an_agent_as_a_tensordict_module() -> None:
    env = wrapped()
    env.set_seed(1)
    agent = teacher()
    steps = env.rollout(4, agent.policy(make_env("cup-spin")).module())
    agent.generator.manual_seed(1)
    for number, step in enumerate(steps):
        expected = agent.act(step["observation"], "cup-spin", first=number == 0)
        assert torch.equal(step["action"], expected), "with the plan of the decision before"
    env.close()


@pytest.mark.parametrize("mpc", [True, False])
def test_a_module_begins_anew_where_an_episode_does(mpc: bool) -> None:
    agent, other = teacher(), teacher()
    module = agent.policy(make_env("cup-spin"), mpc=mpc).module(deterministic=True)
    obs = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    for is_init in (None, (False, True, False), (True, True, True)):
        entries = {"observation": obs, **({} if is_init is None else {"is_init": torch.tensor(is_init)[:, None]})}
        found = module(TensorDict(entries, batch_size=[3]))["action"]
        if mpc:
            expected = other.act(obs, "cup-spin", first=is_init, greedy=True)
        else:
            expected = other.policy_action(*other.checked(obs, [1, 1, 1]), None, greedy=True)
        assert found.shape == (3, 2) and torch.equal(found, expected)


def test_an_agent_collects_in_torchrl() -> None:
    env = SerialEnv(2, functools.partial(wrapped, "pendulum-spin"))
    module = teacher().policy(make_env("pendulum-spin")).module()
    collector = Collector(env, module, frames_per_batch=12, total_frames=24)
    batches = list(collector)
    collector.shutdown()
    assert len(batches) == 2
    for batch in batches:
        assert batch.shape == (2, 6) and batch["action"].shape == (2, 6, 1)
        assert batch["action"].abs().max() <= 1 and batch["next", "reward"].isfinite().all()
    assert batches[0]["is_init"][:, 0].all() and not batches[0]["is_init"][:, 1:].any()


def test_a_store_as_transitions() -> None:
    store = EpisodeStore.open(store_path())
    steps = store.to_tensordict(1, 4)
    assert steps.shape == (3, store.episode_steps - 1)
    for number in range(3):
        episode = store.episode(1 + number)
        (o, a), part = (episode["obs"].shape[1], episode["action"].shape[1]), steps[number]
        assert np.array_equal(part["observation"][:, :o], episode["obs"][:-1])
        assert np.array_equal(part["next", "observation"][:, :o], episode["obs"][1:])
        assert np.array_equal(part["action"][:, :a], episode["action"][1:])
        assert np.array_equal(part["next", "reward"][:, 0], episode["reward"][1:])
        assert not part["observation"][:, o:].any() and not part["action"][:, a:].any()
        assert store.tasks[int(part["task"].unique())] == episode["task"] and part["episode"].unique() == 1 + number
    for name in ("done", "truncated"):
        assert steps["next", name].squeeze(-1).nonzero()[:, 1].tolist() == [store.episode_steps - 2] * 3
    assert not steps["next", "terminated"].any()
    assert store.to_tensordict(2, 2).shape == (0, store.episode_steps - 1)
    with pytest.raises(DataError, match="expected within 0 to 4"):
        store.to_tensordict(3, 5)


def test_a_store_feeds_a_replay_buffer() -> None:
    store = EpisodeStore.open(store_path())
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(3_000), sampler=SliceSampler(slice_len=4, traj_key="episode"), batch_size=32
    )
    buffer.extend(store.to_tensordict(0, len(store)).reshape(-1))
    slices = buffer.sample().reshape(8, 4)
    assert (slices["episode"] == slices["episode"][:, :1]).all()
    assert torch.equal(slices["next", "observation"][:, :-1], slices["observation"][:, 1:])
