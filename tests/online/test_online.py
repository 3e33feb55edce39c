"""Online runs: acting and learning in one loop, resumed exactly, logged by episode, kept as a store."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from run_fixtures import DUO, TASKS, files_in, tiny_config, tiny_model, tiny_run, tiny_settings
from torch import Tensor

from tdmpc2.agent import Agent
from tdmpc2.checkpointing import CheckpointMetadata, save_checkpoint
from tdmpc2.checkpointing.fewer_tasks import dims_of_fewer, weights_of_fewer
from tdmpc2.checkpointing.files import read_checkpoint
from tdmpc2.data.replay import Replay
from tdmpc2.data.store import EpisodeStore
from tdmpc2.envs import EnvPool
from tdmpc2.errors import CheckpointError, DataError, UserError
from tdmpc2.losses import RunningScale
from tdmpc2.model import WorldModel
from tdmpc2.online import OnlineSettings
from tdmpc2.online.acting import PLANNER, PRIOR, SEED, LearningController, endless_jobs
from tdmpc2.planner import PlannerSettings
from tdmpc2.reporting.sinks import read_metrics
from tdmpc2.rollout import Job, Rollout
from tdmpc2.tasks import task_set
from tdmpc2.training import Learner
from tdmpc2.training.state import StateFolder

ONLINE = ("mode=online", "seed_episodes=1", "utd=0.02", "act_with=mixed", "log_freq=10", "state_freq=7")


def weights(run_dir: Path) -> dict[str, Tensor]:
    return read_checkpoint(run_dir / "checkpoints" / "final.safetensors").tensors


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks that nothing interrupted: 3,000 decisions, 60 updates, six episodes; it keeps four."""
    run_dir = tmp_path_factory.mktemp("whole")
    result = tiny_run(run_dir, *ONLINE, "steps=3000", "buffer_size=2004", "eval_freq=30", "mpc=false")
    assert result.step == 60 and not result.interrupted
    return run_dir


def test_every_finished_episode_is_logged_by_its_task(whole: Path) -> None:
    rows = [row for row in read_metrics(whole) if row["category"] == "episode"]
    named = [(name, row[name]) for row in rows for name in row if "_return/" in name]
    assert sorted(name.partition("/")[2] for name, _ in named) == sorted(TASKS * 3)
    assert [name.partition("_")[0] for name, _ in named[:2]] == ["seed", "seed"]
    assert all(name.startswith(("planner_", "prior_")) for name, _ in named[2:])
    assert [row["decisions"] for row in rows] == [1000, 1000, 2000, 2000, 3000, 3000]
    assert all(row["environment_steps"] == 2 * row["decisions"] for row in rows)
    assert [row["step"] for row in rows[:4]] == [1, 1, 40, 40], "updates come once the seed episodes have ended"
    evaluations = [row for row in read_metrics(whole) if row["category"] == "eval"]
    assert [row["step"] for row in evaluations] == [30, 60] and "decisions" in evaluations[0]


def test_the_replay_is_a_store_of_every_episode(whole: Path) -> None:
    store = EpisodeStore.open(whole / "replay")
    assert store.verify() and store.tasks == DUO.tasks and len(store) == 6
    logged = [v for row in read_metrics(whole) for name, v in row.items() if "_return/" in name]
    np.testing.assert_allclose(store.returns(), logged, rtol=1e-5)
    assert len(store.segments) > 1, "committed as the run goes"
    assert {"updates", "decisions", "weights"} <= store.segments[0].details.keys()


def test_offline_training_takes_the_replay(whole: Path, tmp_path: Path) -> None:
    result = tiny_run(tmp_path, "steps=3", f"data_dir={whole / 'replay'}", f"checkpoint={last(whole)}")
    assert result.step == 3


def last(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "final.safetensors"


def test_a_run_that_dies_between_states_ends_as_if_it_had_not(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, done = Learner.update, [0]

    def dying(learner: Learner, *given: object) -> dict[str, Tensor]:
        done[0] += 1
        if done[0] in (20, 45):  # episodes under way, then after the store took some that no state knows of
            raise KeyboardInterrupt
        return update(learner, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "update", dying)
    keys = (*ONLINE, "steps=3000", "buffer_size=2004", "eval_freq=30", "mpc=false")
    for mode in ("false", "true"):
        with pytest.raises(KeyboardInterrupt):
            tiny_run(tmp_path, *keys, f"resume={mode}")
    assert tiny_run(tmp_path, *keys, "resume=true").step == 60
    assert same(weights(tmp_path), weights(whole))
    a, b = (EpisodeStore.open(run_dir / "replay") for run_dir in (tmp_path, whole))
    np.testing.assert_array_equal(a.returns(), b.returns())
    keep = ("step", "category", "decisions")
    rows = [[{name: row.get(name) for name in keep} for row in read_metrics(d)] for d in (tmp_path, whole)]
    assert rows[0] == rows[1], "no row twice, none lost"


def test_a_run_goes_on_beyond_its_first_length(whole: Path, tmp_path: Path) -> None:
    keys = (*ONLINE, "buffer_size=2004", "eval_freq=30", "mpc=false")
    assert tiny_run(tmp_path, *keys, "steps=1700").step == 34
    assert tiny_run(tmp_path, *keys, "steps=3000", "resume=true").step == 60
    assert same(weights(tmp_path), weights(whole))


def test_workers_and_storage_change_nothing(whole: Path, tmp_path: Path) -> None:
    keys = (*ONLINE, "steps=3000", "buffer_size=2004", "eval_freq=30", "mpc=false", "num_workers=1")
    tiny_run(tmp_path, *keys, "buffer_storage=disk", f"save_replay={tmp_path / 'kept'}")
    assert same(weights(tmp_path), weights(whole))
    assert len(EpisodeStore.open(tmp_path / "kept")) == 6 and not (tmp_path / "replay").exists()


def test_a_replay_begins_with_another_runs(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes on with them after a kill, and with those it began with when that store has grown since."""
    given = shutil.copytree(whole / "replay", tmp_path / "given")
    keys = (*ONLINE, "buffer_size=3006", f"replay_from={given}")
    seen: list[int] = []
    fill = Replay.fill

    def counted(replay: Replay, *stores: EpisodeStore) -> None:
        fill(replay, *stores)
        seen.append(len(replay))

    monkeypatch.setattr(Replay, "fill", counted)
    assert tiny_run(tmp_path / "once", *keys, "steps=2000").step == 40 and seen == [6]
    assert tiny_run(tmp_path / "parts", *keys, "steps=1500").step == 30
    store = EpisodeStore.open(given)
    block = store.read_episodes(0, 1)
    store.append(block.obs, block.action, block.reward, block.task)
    assert tiny_run(tmp_path / "parts", *keys, "steps=2000", "resume=true").step == 40 and seen[1:] == [6, 6]
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "once"))
    with pytest.raises(UserError, match=r"data was .*6 episodes, fingerprint .* and is .*simulator"):
        tiny_run(tmp_path / "parts", *keys[:-1], "steps=2000", "resume=true")
    assert not same(weights(tmp_path / "once"), weights(whole))


def test_other_simulations_begin_anew(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = (*ONLINE, "buffer_size=2004")
    tiny_run(tmp_path, *keys, "steps=1300")
    states = StateFolder(tmp_path)
    state = states.load()
    slot = state.source["trajectories"][0]
    slot["obs"][40] += 1e-3  # as another machine's simulator would have it
    states.save(state)
    assert tiny_run(tmp_path, *keys, "steps=2600", "resume=true").step == 52
    assert "1 of 2 episodes under way came out otherwise" in capsys.readouterr().out
    assert EpisodeStore.open(tmp_path / "replay").verify()


def test_a_store_of_another_run_is_refused(tmp_path: Path) -> None:
    keys = (*ONLINE, "steps=1300", f"save_replay={tmp_path / 'kept'}")
    tiny_run(tmp_path / "run", *keys)
    with pytest.raises(UserError, match=r"holds \d+ episodes already"):
        tiny_run(tmp_path / "another", *keys)
    shutil.rmtree(tmp_path / "kept")
    tiny_run(tmp_path / "third", *keys, "seed=2", "steps=2000")
    before = len(EpisodeStore.open(tmp_path / "kept"))
    with pytest.raises(DataError, match="is not the store of this run's episodes"):
        tiny_run(tmp_path / "run", *keys, "steps=1500", "resume=true")
    assert len(EpisodeStore.open(tmp_path / "kept")) == before


def test_other_settings_of_acting_are_another_run(tmp_path: Path) -> None:
    tiny_run(tmp_path, *ONLINE, "steps=1000")
    for key in ("prior_share=0.7", "num_samples=16", "buffer_size=3000", "train_envs=1", "prior_noise=0"):
        with pytest.raises(UserError, match="cannot resume with other settings"):
            tiny_run(tmp_path, *ONLINE, "steps=1500", key, "resume=true")
    with pytest.raises(UserError, match="mode was 'online'"):
        tiny_run(tmp_path, "steps=1500", "resume=true")


def test_one_task_at_a_time(tmp_path: Path) -> None:
    single = ("task.name=pendulum-spin", "task.tasks=null", *ONLINE, "seed_episodes=2", "utd=0.01", "steps=1200")
    assert tiny_run(tmp_path, *single).step == 12
    rows = [row for row in read_metrics(tmp_path) if row["category"] == "episode"]
    assert [row["decisions"] for row in rows] == [500, 1000]
    assert tiny_settings(tmp_path, "task.name=pendulum-spin", "task.tasks=null", "mode=online").updates == 200_000
    assert tiny_settings(tmp_path, "mode=online").updates == 30_000, "0.15 for each decision of several tasks"


# -- starting from a model -------------------------------------------------------------------------------------------


def trio_checkpoint(path: Path) -> tuple[WorldModel, Path]:
    tasks = task_set("trio", ("reacher-easy", *TASKS))
    model = tiny_model(tasks)
    metadata = CheckpointMetadata("trio", tasks.tasks, model.dims, 1, 0)
    save_checkpoint(path, model.state_dict(), metadata)
    return model, path


@pytest.mark.parametrize("wanted", [("pendulum-spin", "reacher-easy"), ("pendulum-spin",), ("reacher-easy",)])
def test_a_model_of_fewer_tasks_is_the_same_function(wanted: tuple[str, ...]) -> None:
    had = task_set("trio", ("reacher-easy", *TASKS))
    large = tiny_model(had)
    assert large.task_embedding is not None
    with torch.no_grad():
        large.task_embedding[2] *= 100  # beyond norm 1, which a forward pass scales down
    tasks = task_set(wanted[0] if len(wanted) == 1 else "few", wanted)
    small = WorldModel(dims_of_fewer(large.dims, tasks), tasks.action_masks() if tasks.multitask else None)
    small.load_state_dict(weights_of_fewer(large.state_dict(), large.dims, had, tasks))
    generator = torch.Generator().manual_seed(1)
    for position, name in enumerate(wanted):
        width, actions = tasks.obs_dims[position], tasks.action_dims[position]
        obs, action = torch.zeros(4, had.obs_dim), torch.zeros(4, had.action_dim)
        obs[:, :width] = torch.randn(4, width, generator=generator)
        action[:, :actions] = torch.rand(4, actions, generator=generator)
        noise = torch.randn(4, had.action_dim, generator=generator)
        old = torch.full((4,), had.index(name))
        new = torch.full((4,), position) if tasks.multitask else None
        o, a = obs[:, : tasks.obs_dim], action[:, : tasks.action_dim]
        with torch.no_grad():
            z = large.encode(obs, old)
            pairs = [
                (z, small.encode(o, new)),
                (large.next(z, action, old), small.next(z, a, new)),
                (large.reward(z, action, old), small.reward(z, a, new)),
                (large.q_values(z, action, old, target=True), small.q_values(z, a, new, target=True)),
                (large.policy(z, old, noise)[2], small.policy(z, new, noise[:, : tasks.action_dim])[2]),
            ]
        for before, after in pairs:
            assert before is not None and after is not None
            torch.testing.assert_close(before[..., : after.shape[-1]], after, rtol=1e-4, atol=1e-5)


def test_a_run_starts_from_a_model_of_more_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, file = trio_checkpoint(tmp_path / "trio.safetensors")
    keys = (*ONLINE, "steps=2100", f"checkpoint={file}", "enc_dim=null", "mlp_dim=null", "latent_dim=null")
    result = tiny_run(tmp_path / "run", *keys)
    assert "knows 3 tasks, of which the run has 2" in capsys.readouterr().out
    rows = read_metrics(tmp_path / "run")
    first = [name for row in rows for name in row if "_return/" in name][:2]
    assert all(name.startswith(("planner_", "prior_")) for name in first), "it acts from the start"
    assert result.step == 22, "none for the decisions of the seed phase"
    moved = file.rename(tmp_path / "moved.safetensors")  # a run that goes on does not need it
    assert tiny_run(tmp_path / "run", *keys, "steps=2200", "resume=true").step == 24
    moved.rename(file)

    with pytest.raises(CheckpointError, match="not cup-spin"):
        tiny_run(tmp_path / "x", *keys, "task.tasks=[cup-spin,pendulum-spin]")


def test_the_scale_of_a_trained_model_is_measured_on_the_first_batches() -> None:
    new, warm = RunningScale(0.01), RunningScale(0.01, measured=True)
    spreads = []
    for number in range(200):
        q = torch.linspace(0, 40 + (number % 5), 101)
        spreads.append(0.9 * (40 + number % 5))
        new.update(q)
        warm.update(q)
        if number < 100:
            torch.testing.assert_close(float(warm.value), sum(spreads) / len(spreads), rtol=1e-5, atol=0)
    assert float(new.value) < 35 < 37 < float(warm.value) < 39
    small = RunningScale(0.01, measured=True)
    small.update(torch.zeros(5))
    assert float(small.value) == 1


def test_offline_warm_starts_measure_it_too(whole: Path, tmp_path: Path) -> None:
    tiny_run(tmp_path / "warm", "steps=2", f"checkpoint={last(whole)}")
    assert float(StateFolder(tmp_path / "warm").load().learner["scale_updates"]) == 2
    tiny_run(tmp_path / "warm", "steps=4", "resume=true")
    assert float(StateFolder(tmp_path / "warm").load().learner["scale_updates"]) == 4
    tiny_run(tmp_path / "new", "steps=2")
    assert "scale_updates" not in StateFolder(tmp_path / "new").load().learner


# -- who acts --------------------------------------------------------------------------------------------------------


def controller(**keys: object) -> LearningController:
    agent = Agent(tiny_model(), DUO, PlannerSettings(iterations=1, num_samples=8, num_elites=4, num_pi_trajs=2))
    return LearningController(agent, 4, OnlineSettings(seed_episodes=2, **keys), "uniform")  # type: ignore[arg-type]


def test_who_acts_is_a_function_of_the_episode() -> None:
    jobs = [job for job, _ in zip(endless_jobs(DUO, 1, 0), range(400), strict=False)]
    assert [(job.task, job.episode) for job in jobs[:4]] == [(task, n) for n in range(2) for task in TASKS]
    assert len({job.seed for job in jobs}) == 400
    assert next(endless_jobs(DUO, 1, 3)) == jobs[3]
    mixed = controller(act_with="mixed", prior_share=0.25)
    found = [mixed.who(job) for job in jobs]
    assert found[:4] == [SEED] * 4 and SEED not in found[4:]
    assert 0.18 < found.count(PRIOR) / 396 < 0.32
    assert {controller().who(job) for job in jobs[4:]} == {PLANNER}
    assert {controller(act_with="prior").who(job) for job in jobs[4:]} == {PRIOR}


def test_a_controller_goes_on_where_it_was() -> None:
    first = controller(act_with="mixed")
    jobs = [Job("pendulum-spin", 0, 9), *(Job("pendulum-spin", 5, seed) for seed in range(20))]
    jobs = [next(job for job in jobs if first.who(job) == who) for who in (SEED, PLANNER, PRIOR)] + [jobs[-1]]
    assert {first.who(job) for job in jobs} == {SEED, PLANNER, PRIOR}
    rng = np.random.default_rng(0)
    seen = [rng.normal(size=(4, DUO.obs_dim)).astype(np.float32) for _ in range(6)]
    for slot, job in enumerate(jobs):
        first.start(slot, job)
    for obs in seen[:3]:
        first.actions([0, 1, 2, 3], obs)
    again = controller(act_with="mixed")
    for slot, job in enumerate(jobs):
        again.start(slot, job)
    again.restore(first.state(), dict.fromkeys(range(4), 3), [])
    for obs in seen[3:]:
        np.testing.assert_array_equal(first.actions([0, 1, 2, 3], obs), again.actions([0, 1, 2, 3], obs))


def test_a_rollout_goes_on_from_seeds_and_actions() -> None:
    jobs = [Job(task, n, 3 + n) for n in range(2) for task in TASKS]
    rng = np.random.default_rng(0)

    class Fixed:
        def start(self, slot: int, job: Job) -> None: ...

        def actions(self, slots: list[int], obs: np.ndarray) -> np.ndarray:
            return rng.uniform(-1, 1, (len(slots), DUO.action_dim)).astype(np.float32)

    with EnvPool(DUO, num_envs=2, num_workers=0) as pool, EnvPool(DUO, num_envs=2, num_workers=1) as other:
        rollout = Rollout(pool, jobs, Fixed(), record=True)
        assert not rollout.playing
        rollout.begin()
        for _ in range(30):
            assert rollout.turn() == []
        state = rollout.under_way()
        resumed = Rollout(other, jobs[2:], Fixed(), record=True)
        assert resumed.resume(state) == []
        again = resumed.under_way()
        for slot, (job, trajectory) in state.running.items():
            assert again.running[slot][0] == job
            for name in ("obs", "action", "reward"):
                np.testing.assert_array_equal(getattr(again.running[slot][1], name), getattr(trajectory, name))
        np.testing.assert_array_equal(again.decided[0][1], state.decided[0][1])
        assert resumed.turn() == []


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (("mode=both",), "mode=both is unknown; choose one of offline, online"),
        (("mode=online", "steps=100"), "end before the first update: seed_episodes=5 of 2 tasks take 5,000"),
        (("mode=online", "make_data=true"), "make_data=true is for offline runs"),
        (("save_replay=kept",), "add mode=online"),
        (("replay_from=kept",), "replay_from is for the replay of an online run: add mode=online"),
        (("mode=online", "replay_from=kept"), r"kept.store\.json"),
        (("mode=online", "teacher=dataset"), "mode=online has none before it ends"),
        (("mode=online", "utd=0"), "utd must be above 0"),
        (("mode=online", "act_with=nobody"), "act_with=nobody is unknown"),
        (("mode=online", "utd=1e-9", "steps=5000"), "are no update"),
        (("mode=online", "buffer_size=100"), "holds no whole episode of 501"),
    ],
)
def test_refusals(tmp_path: Path, keys: tuple[str, ...], named: str) -> None:
    with pytest.raises(UserError, match=named):
        tiny_run(tmp_path / "run", *keys)
    assert files_in(tmp_path) == []


def test_fitted_objectives_need_a_store(tmp_path: Path) -> None:
    keys = ("teacher=random", "teacher.model_size=1", "d_coef=0", "d_latent_pca=0.1", "pca_batches=2")
    with pytest.raises(UserError, match="d_latent_pca is fitted on data before the first update"):
        tiny_run(tmp_path / "run", *ONLINE, *keys)


def test_a_teacher_may_teach_online(tmp_path: Path) -> None:
    tiny_run(tmp_path, *ONLINE, "teacher=random", "teacher.model_size=1", "d_coef=0.4", "steps=1100")
    rows = [row for row in read_metrics(tmp_path) if row["category"] == "train"]
    assert rows and all(row["distillation_loss"] > 0 for row in rows)


def test_damaged_states_are_named(tmp_path: Path) -> None:
    tiny_run(tmp_path, *ONLINE, "steps=1000")
    states = StateFolder(tmp_path)
    for damage in ({"decisions": "many"}, {"jobs": [[1]]}, {"controller": {}}):
        state = states.load()
        before = dict(state.source)
        state.source.update(damage)
        states.save(state)
        with pytest.raises(CheckpointError, match="does not fit this version's online source"):
            tiny_run(tmp_path, *ONLINE, "steps=1500", "resume=true")
        state.source.clear()
        state.source.update(before)
        states.save(state)
    assert tiny_run(tmp_path, *ONLINE, "steps=1500", "resume=true").step == 30


@pytest.mark.skipif(not hasattr(os, "kill"), reason="no signals")
def test_a_signal_stops_it_while_it_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turn, turns = Rollout.turn, [0]

    def counted(rollout: Rollout) -> object:
        turns[0] += 1
        if turns[0] == 200:
            os.kill(os.getpid(), 15)
        return turn(rollout)

    monkeypatch.setattr(Rollout, "turn", counted)
    keys = (*ONLINE, "steps=1500", "buffer_size=2004")
    result = tiny_run(tmp_path / "stopped", *keys)
    assert result.interrupted and result.step == 0 and turns[0] == 200
    assert tiny_run(tmp_path / "stopped", *keys, "resume=true").step == 30
    tiny_run(tmp_path / "whole", *keys)
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def test_the_console_says_what_steps_are() -> None:
    from tdmpc2.programs.train import acting
    from tdmpc2.settings.convert import train_settings

    settings = train_settings(tiny_config("mode=online", "steps=50000"), Path("run"))
    said = "50,000 decisions (100,000 environment steps) in 2 environments by planner, 7,500 updates"
    assert acting(settings) == said
