"""Evaluation of an agent: episodes of every task, run many at a time (method: planning and evaluation)."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import torch
from numpy.typing import NDArray

from tdmpc2.agent import Agent
from tdmpc2.envs import EnvPool, episode_seed
from tdmpc2.evaluation.films import film_name
from tdmpc2.evaluation.results import EpisodeResult, EvaluationResult, this_machine
from tdmpc2.fileio import write_or_rescue
from tdmpc2.keys import TDMPC2, TDMPC_OPT, THIS_PROJECT, check_keys, key
from tdmpc2.ranges import MOST_ENVS, MOST_EPISODES, MOST_SEED, MOST_WORKERS, Whole
from tdmpc2.reporting.progress import Progress
from tdmpc2.rollout import AgentController, Job, Rollout, check_jobs
from tdmpc2.tasks import TaskSet

# Enough to keep a GPU busy, or to share the simulators' overhead on a CPU, without filling the memory.
_MOST_ENVS = {"cpu": 60, "cuda": 300}
# From so many on, one half is stepped while the other is planned. Two plans of fewer take a GPU longer than one of all.
_ENVS_TO_OVERLAP = 60


@dataclass(frozen=True)
class EvaluationSettings:
    """What to evaluate.

    `video_dir` is a folder for one video a task, of its first episode; None for no videos.
    """

    episodes: int = key(
        10,
        "number of episodes of each task",
        name="eval_episodes",
        unit="episodes",
        source="TD-MPC2 (arXiv 2310.16828), evaluation",
        check=Whole(1, MOST_EPISODES),
        names_run=False,
    )
    tasks: tuple[str, ...] | None = key(
        None, "tasks to run, of those of the task set; null: all", unit="names of tasks", source=THIS_PROJECT
    )
    seed: int = key(
        1,
        "start of all random numbers; with a task and an episode's number it decides that episode",
        unit="seed",
        source=THIS_PROJECT,
        check=Whole(0, MOST_SEED),
    )
    mpc: bool = key(True, "whether to plan; false: the policy prior alone acts", unit="true or false", source=TDMPC2)
    greedy: bool = key(
        False,
        "whether exploration noise is left out of actions; the papers keep it",
        unit="true or false",
        source=f"{TDMPC_OPT}, evaluation",
    )
    num_envs: int | None = key(
        None,
        "environments at a time; null: by device, 60 for a CPU and 300 for CUDA at most",
        unit="environments",
        source=THIS_PROJECT,
        check=Whole(1, MOST_ENVS),
        names_run=False,
    )
    num_workers: int | None = key(
        None,
        "simulator processes; null: one for each core, 0: none",
        unit="processes",
        source=THIS_PROJECT,
        check=Whole(0, MOST_WORKERS),
        names_run=False,
    )
    video_dir: Path | None = None

    def __post_init__(self) -> None:
        check_keys(self)

    def tasks_of(self, task_set: TaskSet) -> tuple[str, ...]:
        """The tasks to evaluate, checked (see `TaskSet.chosen`)."""
        return task_set.chosen(self.tasks)

    def decisions_of(self, task_set: TaskSet) -> int:
        """How many decisions all episodes take together, for a progress display."""
        return self.episodes * sum(task_set.episode_steps[task_set.index(t)] for t in self.tasks_of(task_set))


def default_workers() -> int:
    """One simulator process for each usable core."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def envs_at_a_time(jobs: int, wanted: int | None, device: torch.device) -> int:
    """How many environments to run at a time for a number of episodes; None chooses by device."""
    return min(jobs, wanted or _MOST_ENVS[device.type])


def evaluate(
    agent: Agent,
    settings: EvaluationSettings | None = None,
    *,
    label: str = "agent",
    configuration: Mapping[str, Any] | None = None,
    on_decisions: Callable[[int], None] | None = None,
) -> EvaluationResult:
    """Runs `episodes` episodes of every task and returns all their returns.

    Args:
        agent: what to evaluate.
        settings: how; default ten episodes of every task, planned.
        label: names the agent in tables.
        configuration: kept with the results.
        on_decisions: told how many decisions were just taken, for a progress display.
    """
    settings = settings or EvaluationSettings()
    tasks = settings.tasks_of(agent.task_set)
    check_jobs(settings.episodes, len(tasks), "choose fewer eval_episodes")
    jobs = [
        Job(task, number, episode_seed(settings.seed, task, number))
        for number in range(settings.episodes)
        for task in tasks
    ]
    num_envs = envs_at_a_time(len(jobs), settings.num_envs, agent.device)
    workers = default_workers() if settings.num_workers is None else settings.num_workers
    controller = AgentController(agent, num_envs, mpc=settings.mpc, greedy=settings.greedy)
    with EnvPool(agent.task_set, num_envs=num_envs, num_workers=workers, render=settings.video_dir is not None) as pool:
        films = _Films(settings.video_dir, pool.decision_seconds)
        started = time.perf_counter()
        finished = []
        try:
            rollout = Rollout(
                pool,
                jobs,
                controller,
                groups=2 if pool.num_workers and num_envs >= _ENVS_TO_OVERLAP else 1,
                on_decisions=on_decisions,
                on_frame=films.add if settings.video_dir is not None else None,
                filmed=lambda job: job.episode == 0,
            )
            for episode in rollout.episodes():
                finished.append(episode)
                films.close(episode.job)
        finally:
            films.discard()
        seconds = time.perf_counter() - started
    order = {job: rank for rank, job in enumerate(jobs)}
    finished.sort(key=lambda episode: order[episode.job])
    return EvaluationResult(
        label=label,
        task_set=agent.task_set.name,
        tasks=tasks,
        episodes=tuple(
            EpisodeResult(e.job.task, e.job.episode, e.job.seed, e.episode_return, e.length) for e in finished
        ),
        configuration=dict(configuration or {}),
        machine=this_machine(device_name(agent.device)),
        wall_seconds=seconds,
        decisions=sum(e.length for e in finished),
    )


def device_name(device: torch.device) -> str:
    """What a results file calls a device: a GPU by its model, since `cuda:0` says nothing to a reader."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def evaluate_to_files(
    agent: Agent, settings: EvaluationSettings, *, label: str, configuration: Mapping[str, Any], folder: Path
) -> EvaluationResult:
    """`evaluate` with a progress line; writes <label>.json and <label>.csv into `folder`."""
    with Progress(settings.decisions_of(agent.task_set), f"evaluating {label}", "decisions") as progress:
        result = evaluate(agent, settings, label=label, configuration=configuration, on_decisions=progress.update)
    write_or_rescue(folder / f"{label}.json", result.save_json)
    write_or_rescue(folder / f"{label}.csv", result.save_csv)
    return result


def _runs(process: int) -> bool:
    """Whether there is such a process; where the system cannot tell, there is."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


class _Films:
    """One MP4 per filmed job, written frame by frame under a temporary name and renamed when the episode ends.

    `decision_seconds` tells how long a decision of a task lasts: one frame each, so that a film plays in real time.
    Unfinished films that a killed process of this machine left in the folder go first: their names hold its id.
    """

    _PARTIAL = ".partial.mp4"

    def __init__(self, folder: Path | None, decision_seconds: Callable[[str], float]) -> None:
        self._folder = folder
        self._decision_seconds = decision_seconds
        self._open: dict[Job, tuple[Any, Path, Path]] = {}
        self._machine = re.sub(r"[^A-Za-z0-9]", "_", platform.node()) or "here"
        if folder is not None:
            self._sweep(folder)

    def _sweep(self, folder: Path) -> None:
        for leftover in folder.glob(f".*{self._PARTIAL}"):
            _, named, maker = leftover.name.removesuffix(self._PARTIAL)[1:].partition(".")
            machine, _, process = maker.partition("-")
            of_the_dead = machine == self._machine and process.isdecimal() and not _runs(int(process))
            if of_the_dead or not named:  # earlier versions named no process
                with contextlib.suppress(OSError):
                    leftover.unlink()

    def add(self, job: Job, frame: NDArray[np.uint8]) -> None:
        assert self._folder is not None
        if job not in self._open:
            self._folder.mkdir(parents=True, exist_ok=True)
            final = self._folder / film_name(job.task)
            partial = self._folder / f".{job.task}.{self._machine}-{os.getpid()}{self._PARTIAL}"
            writer = imageio.get_writer(
                partial, fps=1 / self._decision_seconds(job.task), codec="libx264", macro_block_size=16
            )
            self._open[job] = (writer, partial, final)
        self._open[job][0].append_data(frame)

    def close(self, job: Job) -> None:
        if job in self._open:
            writer, partial, final = self._open.pop(job)
            writer.close()
            partial.replace(final)

    def discard(self) -> None:
        for writer, partial, _ in self._open.values():
            writer.close()
            partial.unlink(missing_ok=True)
        self._open.clear()
