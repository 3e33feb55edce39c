"""Rolls out a controller into an episode store."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tdmpc2.data.store import EpisodeStore, StoreWriter
from tdmpc2.envs import EnvPool, episode_seed
from tdmpc2.errors import UserError, as_user_error
from tdmpc2.ranges import MOST_EPISODES, check_whole
from tdmpc2.rollout.controllers import Controller
from tdmpc2.rollout.episodes import Episode, Job, Rollout, check_jobs


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
    details: Mapping[str, Any] | None = None,
    commit_freq: int = 0,
    on_decisions: Callable[[int], None] | None = None,
) -> Collected:
    """Runs `episodes` episodes of each task and appends them to the store, which no other writer can add to meanwhile.

    Args:
        store: must know the tasks; widths are its own.
        tasks: which tasks to run.
        episodes: of each task, 10**6 at most.
        controller_for, pool_for: make the controller and the pool for a number of slots.
        seed: with a number that no earlier collection into this store used, it decides every episode.
        source: kept with each segment.
        details: kept with it too, beside what decides the episodes: `seed`, `tasks`, `episodes`, and `first`, the
            number of its first episode in the seeds.
        commit_freq: episodes between commits, each a segment. Whatever ends the collection early then keeps them, and
            the episodes that have ended since where it can. 0: one segment at the end, and nothing is seen of a
            collection that ends early.
        on_decisions: told how many decisions were just taken.

    Raises:
        UserError: for what cannot be collected or written. With `commit_freq` it ends, as a KeyboardInterrupt does,
            with how many episodes are in the store, and what adds the rest.
    """
    check_whole("episodes", episodes, 1, MOST_EPISODES)
    check_whole("commit_freq", commit_freq, 0, MOST_EPISODES)
    check_jobs(episodes, len(tasks), "collect fewer episodes at a time")
    unknown = [t for t in tasks if t not in store.tasks]
    if unknown:
        raise UserError(f"{store.path} is a store of {', '.join(store.tasks)}; it cannot take {', '.join(unknown)}.")
    collected = Collected({t: [] for t in tasks})
    with store.writer(source=source, details=details) as writer, pool_for(episodes * len(tasks)) as pool:
        first = _next_number(store)  # now that no other writer can add to it
        writer.details |= {"seed": seed, "first": first, "tasks": list(tasks), "episodes": episodes}
        # Named apart from evaluation, so that no agent is evaluated on starts that it was trained on.
        jobs = [Job(t, n, episode_seed(seed, f"collect {t}", first + n)) for n in range(episodes) for t in tasks]
        controller = controller_for(pool.num_envs)
        with _keeping(store, writer, collected, episodes, len(tasks)) if commit_freq else contextlib.nullcontext():
            for episode in Rollout(pool, jobs, controller, record=True, on_decisions=on_decisions).episodes():
                if episode.length + 1 != store.episode_steps:
                    collected.diverged += 1  # a store's episodes all have the same length
                    continue
                write_episode(store, writer, episode)
                collected.returns[episode.job.task].append(episode.episode_return)
                if commit_freq and writer.episodes - writer.committed >= commit_freq:
                    writer.commit()
    return collected


def _next_number(store: EpisodeStore) -> int:
    """The first number after those of all collections so far, episodes that were left out included."""
    used = [len(store)]
    for details in (segment.details for segment in store.segments):
        first, episodes = details.get("first"), details.get("episodes")
        if isinstance(first, int) and isinstance(episodes, int):
            used.append(first + episodes)
    return max(used)


@contextlib.contextmanager
def _keeping(
    store: EpisodeStore, writer: StoreWriter, collected: Collected, episodes: int, tasks: int
) -> Iterator[None]:
    """Commits at the end; whatever ends the block early keeps the episodes that have ended, and says how many."""
    try:
        yield
        writer.commit()
    except BaseException as error:
        with contextlib.suppress(BaseException):  # a second Ctrl-C, or a disk that is still full
            writer.commit()
        wanted, held = episodes * tasks, writer.committed
        rest = math.ceil((wanted - held - collected.diverged) / tasks)
        if not held:
            said = f"None of {wanted:,} episodes is in {store.path}; run the same command again."
        else:
            more = f"; the same command with episodes={rest} adds the rest" if rest else ""
            said = f"{held:,} of {wanted:,} episodes are in {store.path}{more}."
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(said) from error
        told = as_user_error(error) if isinstance(error, Exception) else None
        if told is not None:
            raise type(told)(f"{told} {said}") from error
        error.add_note(said)
        raise


def write_episode(store: EpisodeStore, writer: StoreWriter, episode: Episode) -> None:
    """Adds a recorded episode, in the store's widths."""
    trajectory = episode.trajectory
    assert trajectory is not None
    obs, action = _widen(trajectory.obs, store.obs_dim), _widen(trajectory.action, store.action_dim)
    writer.write(obs[None], action[None], trajectory.reward[None], np.full(1, store.tasks.index(episode.job.task)))


def _widen(values: np.ndarray, width: int) -> np.ndarray:
    """[T, W] zero-padded to [T, width]."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))
