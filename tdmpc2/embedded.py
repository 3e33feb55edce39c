"""The embedded problem: a bundled teacher, and data that bundled agents and random behaviour make in the simulator.

It is what `scale=cpu` and the quickstart train on, so that a clone needs nothing else to run the papers' rows.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

import torch

from tdmpc2.agent import load_agent
from tdmpc2.data.importing import open_or_create, summary
from tdmpc2.data.store import EpisodeStore
from tdmpc2.envs import EnvPool
from tdmpc2.errors import UserError
from tdmpc2.evaluation.runner import default_workers, envs_at_a_time
from tdmpc2.locks import FolderLock, InUse
from tdmpc2.places import CHECKPOINTS
from tdmpc2.planner import PlannerSettings
from tdmpc2.reporting.progress import Progress
from tdmpc2.rollout import AgentController, Controller, RandomController
from tdmpc2.rollout.collecting import collect
from tdmpc2.tasks import TaskSet, task_set

TEACHER = CHECKPOINTS / "quickstart_teacher.safetensors"
TASK_SET = "quickstart"
PLANNER = PlannerSettings(iterations=3, num_samples=64, num_elites=8, num_pi_trajs=12)
"""As planner=small, which scale=cpu has: what plans in the data, and what students are compared with."""


@dataclass(frozen=True)
class Collection:
    """A part of the data.

    Attributes:
        behaviour: a sine in each action, or an agent by its policy prior or its planner, exploring.
        episodes: of each task.
        noise: std of the Gaussian noise added to every action.
        agent: its file's name in `checkpoints/`.
    """

    behaviour: Literal["oscillate", "prior", "planner"]
    episodes: int
    noise: float
    agent: str = ""

    def source(self, seed: int) -> str:
        """What the store's segment says of itself."""
        who = (
            f"{self.behaviour} of {self.agent} ({_digest(CHECKPOINTS / self.agent)})" if self.agent else self.behaviour
        )
        return f"{who}, noise {self.noise}, {self.episodes} episodes a task, seed {seed}"


COLLECTIONS: tuple[Collection, ...] = (
    Collection("oscillate", 8, 0.1),
    Collection("prior", 6, 0.6, TEACHER.name),
    Collection("prior", 6, 0.3, TEACHER.name),
    Collection("prior", 4, 0.1, TEACHER.name),
)
"""A range of skill, as replay buffers of the published data have."""
_DATA_SEED = 1
_LOCK = "making.lock"


def embedded_store(folder: Path, tasks: TaskSet, seed: int = _DATA_SEED) -> EpisodeStore:
    """The embedded data in a folder of its own under `folder`, made where it is not there or not whole.

    Another process that makes it is waited for.

    Raises:
        UserError: for other tasks than the embedded ones, or where a bundled agent is missing.
    """
    for name in dict.fromkeys((TEACHER.name, *(part.agent for part in COLLECTIONS if part.agent))):
        if not (CHECKPOINTS / name).is_file():
            raise UserError(
                f"{CHECKPOINTS / name} is missing, which makes the embedded data: install the package again, or run "
                "from a whole clone of the repository."
            )
    own = task_set(TASK_SET)
    if tasks.tasks != own.tasks:
        raise UserError(
            f"make_data=true makes data of {', '.join(own.tasks)} alone (task={own.name}), not of '{tasks.name}': set "
            "make_data=false and data_dir=… to a store of these tasks."
        )
    place = embedded_folder(folder, seed)
    lock = FolderLock(folder, _LOCK, advice="choose another data_dir")
    told = False
    while True:
        try:
            lock.acquire()
            break
        except InUse:
            if not told:
                print(f"waiting for another program, which is making the data in {place}")
            told = True
            time.sleep(1)
    try:
        return _filled(place, own, seed)
    finally:
        lock.release()


def embedded_folder(folder: Path, seed: int = _DATA_SEED) -> Path:
    """Where the store lies: another seed, other agents or collections have data of their own."""
    made_by = hashlib.sha256(repr([(astuple(c), c.source(seed)) for c in COLLECTIONS]).encode()).hexdigest()
    return folder / f"seed{seed}-{made_by[:12]}"


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _filled(place: Path, tasks: TaskSet, seed: int) -> EpisodeStore:
    """The store, with whatever collections it did not hold yet."""
    store = open_or_create(place, tasks, notes="made from the simulator by bundled agents (tdmpc2/embedded.py)")
    added = False
    for part in COLLECTIONS:
        source = part.source(seed)
        if any(segment.source == source for segment in store.segments):
            continue

        def pool(jobs: int) -> EnvPool:
            return EnvPool(
                tasks, num_envs=envs_at_a_time(jobs, None, torch.device("cpu")), num_workers=default_workers()
            )

        said = f"data: {part.behaviour} {part.agent.partition('.')[0]}".strip()
        with Progress(part.episodes * sum(tasks.episode_steps), said, "decisions") as bar:
            makers = _controllers(part, tasks)
            collect(store, tasks.tasks, part.episodes, makers, pool, seed=seed, source=source, on_decisions=bar.update)
        added = True
    if added:
        print(summary(store))
    return store


def _controllers(part: Collection, tasks: TaskSet) -> Callable[[int], Controller]:
    """Makes the controller of a collection for a number of slots."""
    if not part.agent:
        return lambda slots: RandomController(tasks, slots, oscillate=True, noise=part.noise)
    agent = load_agent(CHECKPOINTS / part.agent, tasks, "cpu", PLANNER)
    return lambda slots: AgentController(agent, slots, mpc=part.behaviour == "planner", noise=part.noise)
