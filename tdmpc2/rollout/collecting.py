"""Rolls out a controller into an episode store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tdmpc2.data.store import EpisodeStore
from tdmpc2.envs import EnvPool, episode_seed
from tdmpc2.errors import UserError
from tdmpc2.ranges import MOST_EPISODES, check_whole
from tdmpc2.rollout.controllers import Controller
from tdmpc2.rollout.episodes import Job, check_jobs, run_episodes


@dataclass
class Collected:
    """What a collection added: returns by task, and episodes left out because their simulation diverged."""

    returns: dict[str, list[float]] = field(default_factory=dict)
    diverged: int = 0


def collect(
    store: EpisodeStore,
    tasks: Sequence[str],
    episodes: int,
    controller_for: Callable[[int], Controller],
    pool_for: Callable[[int], EnvPool],
    *,
    seed: int,
    source: str,
    on_decisions: Callable[[int], None] | None = None,
) -> Collected:
    """Runs `episodes` episodes of each task and appends them to the store as one segment.

    Args:
        store: must know the tasks; widths are its own.
        tasks: which tasks to run.
        episodes: of each task, 10**6 at most.
        controller_for, pool_for: make the controller and the pool for a number of slots.
        seed: with the store's size, so that a second collection into the same store differs, it decides every episode.
        source: kept with the segment.
        on_decisions: told how many decisions were just taken.

    Nothing is seen of an interrupted collection: the segment appears whole, at the end.
    """
    check_whole("episodes", episodes, 1, MOST_EPISODES)
    check_jobs(episodes, len(tasks), "collect fewer episodes at a time")
    unknown = [t for t in tasks if t not in store.tasks]
    if unknown:
        raise UserError(f"{store.path} is a store of {', '.join(store.tasks)}; it cannot take {', '.join(unknown)}.")
    collected = Collected({t: [] for t in tasks})
    with store.writer(source=source, details={"seed": seed}) as writer, pool_for(episodes * len(tasks)) as pool:
        first = len(store)  # now that no other writer can add to it
        # Named apart from evaluation, so that no agent is evaluated on starts that it was trained on.
        jobs = [Job(t, n, episode_seed(seed, f"collect {t}", first + n)) for n in range(episodes) for t in tasks]
        controller = controller_for(pool.num_envs)
        for episode in run_episodes(pool, jobs, controller, record=True, on_decisions=on_decisions):
            assert episode.trajectory is not None
            if episode.length + 1 != store.episode_steps:
                collected.diverged += 1  # a store's episodes all have the same length
                continue
            obs, action, reward = episode.trajectory.obs, episode.trajectory.action, episode.trajectory.reward
            task = np.full(1, store.tasks.index(episode.job.task))
            writer.write(_widen(obs, store.obs_dim)[None], _widen(action, store.action_dim)[None], reward[None], task)
            collected.returns[episode.job.task].append(episode.episode_return)
    return collected


def _widen(values: np.ndarray, width: int) -> np.ndarray:
    """[T, W] zero-padded to [T, width]."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))
