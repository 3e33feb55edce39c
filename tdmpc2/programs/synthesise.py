"""Writes synthetic episodes with a task set's widths and plausible values: to try and to measure the store.

python scripts/synthesise.py --store data/synthetic --episodes 690000 --dtype float16
python scripts/synthesise.py --published chunk_0.pt --episodes 20000

Observations are smooth random walks, actions lie in [-1, 1], rewards in [0, 2], and those of step 0 are NaN as in
the published files. Nothing can be learned from them. To be fast, episodes are cut out of a pool of random ones of
each task, each from another step of it. A store that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tdmpc2.data.importing import store_to_fill, summary
from tdmpc2.data.store import DTYPES, EpisodeStore
from tdmpc2.errors import DataError, UserError
from tdmpc2.fileio import atomic_file, human_bytes
from tdmpc2.memory import check_memory
from tdmpc2.programs.arguments import ProgramParser
from tdmpc2.ranges import MOST_SEED, check_whole
from tdmpc2.reporting.progress import Progress
from tdmpc2.tasks import TaskSet, task_set

_POOL_STEPS = 4000
_BLOCK = 512
_SEGMENT = 16_384
"""Episodes committed at a time."""
_MOST = 10**9


@dataclass(frozen=True)
class Episodes:
    """obs [E,T,O], action [E,T,A], reward [E,T], task [E], padded to the task set's widths."""

    obs: npt.NDArray[np.float32]
    action: npt.NDArray[np.float32]
    reward: npt.NDArray[np.float32]
    task: npt.NDArray[np.int64]


class Source:
    """Makes episode number n of a seed; which task it is of depends on n alone, in runs as in the published files."""

    def __init__(self, tasks: TaskSet, steps: int, episodes: int, seed: int) -> None:
        self._tasks, self._steps, self._episodes, self._seed = tasks, steps, episodes, seed
        rng = np.random.default_rng(seed)
        self._pools = [self._pool(rng, tasks.obs_dims[k], tasks.action_dims[k]) for k in range(len(tasks))]

    def _pool(self, rng: np.random.Generator, obs_dim: int, action_dim: int) -> tuple[npt.NDArray[np.float32], ...]:
        walk = rng.normal(size=(_POOL_STEPS, obs_dim)).astype(np.float32) * 0.2
        for step in range(1, _POOL_STEPS):
            walk[step] += 0.98 * walk[step - 1]
        walk *= rng.uniform(0.3, 3, obs_dim).astype(np.float32)
        action = np.tanh(rng.normal(size=(_POOL_STEPS, action_dim))).astype(np.float32)
        reward = rng.uniform(0, 2, _POOL_STEPS).astype(np.float32)
        return walk, action, reward

    def block(self, first: int, stop: int) -> Episodes:
        """Episodes `first` to `stop - 1`."""
        tasks, count = self._tasks, stop - first
        task = np.arange(first, stop, dtype=np.int64) * len(tasks) // self._episodes
        obs = np.zeros((count, self._steps, tasks.obs_dim), np.float32)
        action = np.zeros((count, self._steps, tasks.action_dim), np.float32)
        reward = np.empty((count, self._steps), np.float32)
        for e in range(count):
            walk, actions, rewards = self._pools[task[e]]
            start = (first + e) * 2_654_435_761 % (_POOL_STEPS - self._steps)
            part = slice(start, start + self._steps)
            obs[e, :, : walk.shape[1]] = walk[part]
            action[e, :, : actions.shape[1]] = actions[part]
            reward[e] = rewards[part]
        action[:, 0], reward[:, 0] = np.nan, np.nan
        return Episodes(obs, action, reward, task)


def write_store(path: Path, tasks: TaskSet, episodes: int, seed: int, dtype: str) -> EpisodeStore:
    """Adds what is missing of the store's episodes, a segment at a time."""
    name = f"synthetic, seed {seed}, {episodes} episodes"
    with store_to_fill(path, tasks, notes="synthetic: nothing can be learned from it", dtype=dtype) as store:
        _fill(store, path, name, tasks, episodes, seed)
    return store


def _fill(store: EpisodeStore, path: Path, name: str, tasks: TaskSet, episodes: int, seed: int) -> None:
    if any(segment.source != name for segment in store.segments):
        raise DataError(f"{path}: found {store.segments[0].source}, expected {name} or nothing; choose a new folder.")
    store.check_space(episodes - len(store))
    source = Source(tasks, store.episode_steps, episodes, seed)
    with Progress(episodes, str(path), "episodes") as progress:
        progress.update(len(store))
        while len(store) < episodes:
            first, stop = len(store), min(len(store) + _SEGMENT, episodes)
            with store.writer(source=name, first_episode=first, after=first) as writer:
                for start in range(first, stop, _BLOCK):
                    block = source.block(start, min(start + _BLOCK, stop))
                    writer.write(block.obs, block.action, block.reward, block.task)
                    progress.update(len(block.task))


def write_published(path: Path, tasks: TaskSet, episodes: int, seed: int) -> None:
    """One file in the published format; held in memory while it is written, as torch.save needs it."""
    try:
        import torch
        from tensordict import TensorDict
    except ImportError as error:
        raise UserError("--published needs tensordict: pip install tensordict.") from error
    steps = tasks.episode_steps[0] + 1
    needed = episodes * steps * (tasks.obs_dim + tasks.action_dim + 1 + 1) * 4
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    check_memory(f"{path} with {episodes:,} episodes", needed, "write fewer --episodes")
    if needed > free:
        raise UserError(
            f"{path}: needs {human_bytes(needed)}, found {human_bytes(free)} of disk; write fewer episodes."
        )
    obs = torch.empty(episodes, steps, tasks.obs_dim)
    action = torch.empty(episodes, steps, tasks.action_dim)
    reward, task = torch.empty(episodes, steps), torch.empty(episodes, steps, dtype=torch.int32)
    source = Source(tasks, steps, episodes, seed)
    with Progress(episodes, str(path), "episodes") as progress:
        for start in range(0, episodes, _BLOCK):
            block = source.block(start, min(start + _BLOCK, episodes))
            part = slice(start, start + len(block.task))
            obs[part], action[part] = torch.from_numpy(block.obs), torch.from_numpy(block.action)
            reward[part], task[part] = torch.from_numpy(block.reward), torch.from_numpy(block.task[:, None])
            progress.update(len(block.task))
    content = TensorDict({"obs": obs, "action": action, "reward": reward, "task": task}, batch_size=[episodes, steps])
    with atomic_file(path) as file:
        torch.save(content, file)


INTERRUPTED = "interrupted; run the same command again to go on"


def main() -> None:
    parser = ProgramParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--store", type=Path, metavar="DIR", help="write a store")
    target.add_argument("--published", type=Path, metavar="FILE", help="write a file in the published format")
    parser.add_argument("--task", default="mt30", help="task set (mt30)")
    parser.add_argument("--episodes", type=int, default=690_000, help="in all (690000, as many as MT30 has)")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES), help="of a store (float32)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    tasks = task_set(arguments.task)
    check_whole("--seed", arguments.seed, 0, MOST_SEED)
    check_whole("--episodes", arguments.episodes, 1, _MOST)
    if arguments.episodes < len(tasks):
        raise UserError(f"--episodes {arguments.episodes}: expected at least {len(tasks)}, one of each task.")
    if arguments.published is not None:
        if arguments.published.exists():
            raise UserError(f"{arguments.published} exists; name another file with --published, or remove it.")
        write_published(arguments.published, tasks, arguments.episodes, arguments.seed)
        print(
            f"{arguments.published}: {arguments.episodes:,} episodes, {human_bytes(arguments.published.stat().st_size)}"
        )
    else:
        print(summary(write_store(arguments.store, tasks, arguments.episodes, arguments.seed, arguments.dtype)))
