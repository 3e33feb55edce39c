"""Evaluation of an agent in the real simulator."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import imageio
import numpy as np
import pytest
import torch
from run_fixtures import DUO, ROOT, TASKS, files_in, tiny_model

from tdmpc2.agent import Agent
from tdmpc2.envs import episode_seed
from tdmpc2.envs.rendering import choose_backend
from tdmpc2.errors import RenderError, UserError
from tdmpc2.evaluation.runner import EvaluationSettings, _Films, default_workers, envs_at_a_time, evaluate
from tdmpc2.planner import PlannerSettings
from tdmpc2.rollout import Job


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    yield Agent(tiny_model(), DUO, PlannerSettings(iterations=1, num_samples=8, num_elites=4, num_pi_trajs=2))


def test_every_episode_of_every_task_in_order(agent: Agent) -> None:
    decisions: list[int] = []
    settings = EvaluationSettings(episodes=2, seed=5, mpc=False, num_envs=3, num_workers=0)
    result = evaluate(agent, settings, label="prior", configuration={"seed": 5}, on_decisions=decisions.append)
    assert [(e.task, e.episode) for e in result.episodes] == [(t, n) for n in range(2) for t in TASKS]
    assert [e.seed for e in result.episodes] == [episode_seed(5, e.task, e.episode) for e in result.episodes]
    assert all(e.length == 500 and 0 <= e.episode_return <= 500 * 2 for e in result.episodes)
    assert result.decisions == sum(decisions) == 2000 and result.wall_seconds > 0
    assert (result.label, result.task_set, result.tasks, result.configuration) == ("prior", "duo", TASKS, {"seed": 5})
    assert result.machine.device == "cpu" and "torch" in result.versions

    # One task alone, in another number of slots and in worker processes: the same start and the same noise.
    alone = evaluate(
        agent,
        EvaluationSettings(episodes=2, seed=5, tasks=TASKS[1:], mpc=False, num_envs=1, num_workers=1),
        label="prior",
    )
    assert alone.tasks == TASKS[1:]
    np.testing.assert_allclose(alone.returns()[TASKS[1]], result.returns()[TASKS[1]], rtol=1e-2)


def test_planning_and_seeds_change_the_result(agent: Agent) -> None:
    def returns(**keys: object) -> list[float]:
        base = {"episodes": 1, "tasks": TASKS[1:], "num_workers": 0, "mpc": False, "seed": 1}
        return evaluate(agent, EvaluationSettings(**{**base, **keys}), label="x").returns()[TASKS[1]]  # type: ignore[arg-type]

    prior = returns()
    assert prior == returns()
    assert prior != returns(seed=2)
    assert prior != returns(greedy=True)
    assert prior != returns(mpc=True)


def test_settings_are_checked(agent: Agent) -> None:
    with pytest.raises(UserError, match="eval_episodes must be at least 1, not 0"):
        EvaluationSettings(episodes=0)
    with pytest.raises(UserError, match=r"tasks=\[\]"):
        EvaluationSettings(tasks=()).tasks_of(DUO)
    with pytest.raises(UserError, match="twice"):
        EvaluationSettings(tasks=(TASKS[0], TASKS[0])).tasks_of(DUO)
    assert EvaluationSettings(episodes=3).decisions_of(DUO) == 3000
    assert EvaluationSettings(episodes=3, tasks=TASKS[1:]).decisions_of(DUO) == 1500
    with pytest.raises(UserError, match="'walker-walk' is not in task set 'duo'"):
        evaluate(agent, EvaluationSettings(tasks=("walker-walk",)), label="x")
    with pytest.raises(UserError, match="num_envs must be at least 1, not 0"):
        evaluate(agent, EvaluationSettings(num_envs=0), label="x")


def test_environments_at_a_time() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert envs_at_a_time(4, None, cpu) == 4 and envs_at_a_time(300, None, cpu) == 60
    assert envs_at_a_time(1000, None, cuda) == 300 and envs_at_a_time(300, 8, cuda) == 8
    assert envs_at_a_time(4, 8, cpu) == 4
    assert default_workers() >= 1


def test_a_video_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        pytest.skip("imageio-ffmpeg is not installed")
    films = _Films(tmp_path / "videos", {TASKS[0]: 0.02, TASKS[1]: 0.04}.__getitem__)
    jobs = [Job(task, 0, 1) for task in TASKS]
    for value in range(5):
        for job in jobs:
            films.add(job, np.full((64, 64, 3), value * 40, np.uint8))
    films.close(jobs[0])
    assert f"{TASKS[0]}.mp4" in files_in(tmp_path / "videos") and f"{TASKS[1]}.mp4" not in files_in(tmp_path / "videos")
    films.discard()
    assert files_in(tmp_path / "videos") == [f"{TASKS[0]}.mp4"]
    film = tmp_path / "videos" / f"{TASKS[0]}.mp4"
    assert film.read_bytes()[4:8] == b"ftyp"
    with imageio.get_reader(film) as reader:
        assert reader.get_meta_data()["fps"] == 50


def test_films_of_killed_processes_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        pytest.skip("imageio-ffmpeg is not installed")
    program = """
import sys
from pathlib import Path
import numpy as np
from tdmpc2.evaluation.runner import _Films
from tdmpc2.rollout import Job
films = _Films(Path(sys.argv[1]), lambda task: 0.04)
films.add(Job("cup-spin", 0, 1), np.zeros((64, 64, 3), np.uint8))
print("filming", flush=True)
sys.stdin.read()
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == b"filming\n"
    wanted = time.monotonic() + 60
    while len(files_in(tmp_path)) < 2 and time.monotonic() < wanted:
        time.sleep(0.05)  # ffmpeg makes them, each in a process of its own
    killed, alive = processes
    killed.kill()
    killed.communicate()
    (tmp_path / ".cup-spin.partial.mp4").write_bytes(b"")  # as earlier versions named them
    (tmp_path / ".cup-spin.elsewhere-1.partial.mp4").write_bytes(b"")
    assert len(files_in(tmp_path)) == 4
    try:
        _Films(tmp_path, lambda task: 0.04)
        assert [name for name in files_in(tmp_path) if f"-{killed.pid}." in name] == []
        assert [name for name in files_in(tmp_path) if f"-{alive.pid}." in name] != []
        assert ".cup-spin.elsewhere-1.partial.mp4" in files_in(tmp_path)
        assert ".cup-spin.partial.mp4" not in files_in(tmp_path)
    finally:
        alive.kill()
        alive.communicate()


@pytest.mark.slow
def test_one_video_for_each_task(agent: Agent, tmp_path: Path) -> None:
    try:
        choose_backend()
    except RenderError as error:
        pytest.skip(f"no headless OpenGL here: {error}")
    settings = EvaluationSettings(episodes=2, mpc=False, num_envs=2, num_workers=0, video_dir=tmp_path)
    evaluate(agent, settings, label="x")
    assert files_in(tmp_path) == sorted(f"{task}.mp4" for task in TASKS)
    assert all((tmp_path / f"{task}.mp4").stat().st_size > 10_000 for task in TASKS)
