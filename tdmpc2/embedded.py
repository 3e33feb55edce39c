"""The embedded problem: a bundled teacher, and data that it and random behaviour make in the real simulator.

It is what `scale=cpu` and the quickstart train on, so that a clone needs nothing else to run the papers' rows.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from tdmpc2.agent import Agent, load_agent
from tdmpc2.data.importing import open_or_create, summary
from tdmpc2.data.store import EpisodeStore
from tdmpc2.envs import EnvPool
from tdmpc2.errors import UserError
from tdmpc2.evaluation.runner import default_workers, envs_at_a_time
from tdmpc2.locks import FolderLock, InUse
from tdmpc2.reporting.progress import Progress
from tdmpc2.rollout import AgentController, Controller, RandomController
from tdmpc2.rollout.collecting import collect
from tdmpc2.tasks import TaskSet

ROOT = Path(__file__).resolve().parents[1]
TEACHER = ROOT / "checkpoints" / "quickstart_teacher.safetensors"
COLLECTIONS: tuple[tuple[str, int, float], ...] = (
    ("oscillate", 8, 0.1),
    ("teacher prior", 6, 0.6),
    ("teacher prior", 6, 0.3),
    ("teacher prior", 4, 0.1),
)
"""(behaviour, episodes of each task, std of the noise): a range of skill, as replay buffers of the published data
have."""
_DATA_SEED = 1
_LOCK = "making.lock"


def embedded_store(folder: Path, tasks: TaskSet, seed: int = _DATA_SEED) -> EpisodeStore:
    """The embedded data in a folder of its own under `folder`, made where it is not there or not whole.

    Another process that makes it is waited for.

    Raises:
        UserError: for other tasks than the bundled teacher's, or a clone without the teacher.
    """
    if not TEACHER.is_file():
        raise UserError(f"{TEACHER} is missing, which makes the embedded data: run from a clone of the repository.")
    teacher = load_agent(TEACHER, device="cpu")
    if tasks.tasks != teacher.task_set.tasks:
        raise UserError(
            f"make_data=true makes data of {', '.join(teacher.task_set.tasks)} alone (task={teacher.task_set.name}), "
            f"not of '{tasks.name}': set make_data=false and data_dir=… to a store of these tasks."
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
        return _filled(place, teacher, seed)
    finally:
        lock.release()


def embedded_folder(folder: Path, seed: int = _DATA_SEED) -> Path:
    """Where the store lies: another seed or teacher has data of its own."""
    return folder / f"seed{seed}-{_teacher_digest()}"


def _teacher_digest() -> str:
    return hashlib.sha256(TEACHER.read_bytes()).hexdigest()[:12]


def _filled(place: Path, teacher: Agent, seed: int) -> EpisodeStore:
    """The store, with whatever collections it did not hold yet."""
    tasks, made_by = teacher.task_set, _teacher_digest()
    store = open_or_create(place, tasks, notes="made from the simulator by the bundled teacher (tdmpc2/embedded.py)")
    added = False
    for behaviour, episodes, noise in COLLECTIONS:
        source = f"{behaviour}, noise {noise}, {episodes} episodes a task, seed {seed}, teacher {made_by}"
        if any(segment.source == source for segment in store.segments):
            continue

        def controller(slots: int, behaviour: str = behaviour, noise: float = noise) -> Controller:
            if behaviour == "oscillate":
                return RandomController(tasks, slots, oscillate=True, noise=noise)
            return AgentController(teacher, slots, mpc=False, noise=noise)

        def pool(jobs: int) -> EnvPool:
            return EnvPool(tasks, num_envs=envs_at_a_time(jobs, None, teacher.device), num_workers=default_workers())

        with Progress(episodes * sum(tasks.episode_steps), f"data: {behaviour}, noise {noise}", "decisions") as bar:
            collect(store, tasks.tasks, episodes, controller, pool, seed=seed, source=source, on_decisions=bar.update)
        added = True
    if added:
        print(summary(store))
    return store
