"""Extraction in rounds: between two of them the policy acts in the simulator, and starts from the states it met too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from tdmpc2.agent import Agent
from tdmpc2.data.batch import Batch
from tdmpc2.data.importing import open_or_create
from tdmpc2.data.sampler import Labels, Prefetcher, SliceSampler
from tdmpc2.data.source import Interrupted
from tdmpc2.data.store import EpisodeStore
from tdmpc2.envs import EnvPool
from tdmpc2.errors import CheckpointError, UserError
from tdmpc2.evaluation.runner import envs_at_a_time
from tdmpc2.rollout import AgentController
from tdmpc2.rollout.collecting import collect
from tdmpc2.tasks import TaskSet

_ANOTHER_STREAM = 2**32


class StartStates:
    """Draws batches from the store that a run was given; half of each from what was collected, once there is some.

    A batch is a function of the seed, the step and the stores.

    Args:
        store: given.
        tasks: to draw.
        batch_size: slices of a batch, 2 or more.
        horizon: of a slice.
        seed: of the order.
        planned: a planner's actions for the given store.
    """

    def __init__(
        self, store: EpisodeStore, tasks: TaskSet, batch_size: int, horizon: int, seed: int, planned: Labels | None
    ) -> None:
        if batch_size < 2:
            raise UserError(f"batch_size={batch_size} cannot be halved: rounds above 1 need 2 or more.")
        self._tasks, self._horizon, self._seed = tasks, horizon, seed
        self._later = batch_size // 2
        self._whole = SliceSampler(store, tasks, batch_size, horizon, seed, planned=planned)
        self._given = SliceSampler(store, tasks, batch_size - self._later, horizon, seed, planned=planned)
        self._collected: SliceSampler | None = None

    def take(self, collected: EpisodeStore) -> None:
        """Draws half of each batch from this store from now on."""
        self._collected = SliceSampler(collected, self._tasks, self._later, self._horizon, self._seed + _ANOTHER_STREAM)

    def batch(self, step: int) -> Batch:
        """The batch of update `step`, on the CPU; what was collected is not labelled."""
        if self._collected is None:
            return self._whole.batch(step)
        given, collected = self._given.batch(step), self._collected.batch(step)
        if given.planned is not None:
            unknown = torch.full((*collected.obs.shape[:2], self._tasks.action_dim), torch.nan)
            collected = replace(collected, planned=unknown)
        return given.followed_by(collected)

    def drawn(self, step: int) -> str:
        """The episodes of the batch of update `step`, in words."""
        if self._collected is None:
            return self._whole.drawn(step)
        return (
            f"{self._given.drawn(step)} of {self._given.store.path}, {self._collected.drawn(step)} of "
            f"{self._collected.store.path}"
        )


class RoundsSource:
    """Batches of an extraction in rounds of as many updates each; before each but the first, its policy acts.

    Episodes are sampled from the policy prior as it then is, every task's, and kept in a store, a segment for each
    round. As a context it ends its threads.

    Args:
        starts: draws the batches.
        agent: acts with the model that is trained.
        rounds: how many.
        episodes: of each task, collected between two rounds.
        updates: of the whole run.
        seed: of the episodes.
        workers: simulator processes.
        store: where they are kept.
        device: of the batches.
        start_step: updates done.
        state: what `state` gave then; None for a new run.
        asked_to_stop: whether a signal came; asked between decisions.

    Raises:
        CheckpointError: for a state that is none of this source.
        DataError: where the store is not the one that the run has collected.
    """

    def __init__(
        self,
        starts: StartStates,
        agent: Agent,
        *,
        rounds: int,
        episodes: int,
        updates: int,
        seed: int,
        workers: int,
        store: Path,
        device: torch.device,
        start_step: int = 0,
        state: Mapping[str, Any] | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._starts = starts
        self._agent = agent
        self._episodes = episodes
        self._begins = [number * updates // rounds for number in range(1, rounds)]
        """The updates before which the policy acts."""
        self._seed = seed
        self._workers = workers
        self._device = device
        self._step = start_step
        self._asked_to_stop = asked_to_stop
        self._news: list[dict[str, float]] = []
        self._batches: Prefetcher | None = None
        self._store, self._done = self._opened(store, state)
        if self._done:
            starts.take(self._store)

    def _opened(self, path: Path, state: Mapping[str, Any] | None) -> tuple[EpisodeStore, int]:
        """The store as it was when the state was written, and the collections in it; what came later comes again."""
        try:
            done = 0 if state is None else int(state["collections"])
            held = None if state is None else (int(state["episodes"]), str(state["fingerprint"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the training state does not fit an extraction in rounds ({type(error).__name__}: {error}); start "
                "another run (exp_name=…)."
            ) from error
        store = open_or_create(path, self._agent.task_set, notes="episodes of a policy prior between rounds")
        if held is None:
            held = (0, EpisodeStore(path, replace(store.header, segments=())).fingerprint)
        store.go_back(*held)
        return EpisodeStore.open(path), done

    def __enter__(self) -> RoundsSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._batches is not None:
            self._batches.close()

    def __next__(self) -> Batch:
        """The next update's batch, on the device.

        Raises:
            Interrupted: when a signal came while the policy acted; nothing of that collection is kept.
        """
        while self._done < len(self._begins) and self._step >= self._begins[self._done]:
            self._collect()
        if self._batches is None:
            self._batches = Prefetcher(self._starts, self._device, self._step)
        batch = next(self._batches)
        self._step += 1
        return batch

    def drawn(self, step: int) -> str:
        return self._starts.drawn(step)

    def state(self) -> dict[str, Any]:
        """How much of the store the run has seen."""
        return {
            "collections": self._done,
            "episodes": len(self._store),
            "fingerprint": self._store.fingerprint,
        }

    def news(self) -> list[dict[str, float]]:
        """The mean returns by task of collections since this was last asked."""
        news, self._news = self._news, []
        return news

    def standing(self) -> dict[str, float]:
        """Episodes collected so far."""
        return {"collected_episodes": float(len(self._store))}

    def _collect(self) -> None:
        if self._batches is not None:  # it has prepared some from the states of before
            self._batches.close()
            self._batches = None
        agent, tasks = self._agent, self._agent.task_set

        def pool(jobs: int) -> EnvPool:
            envs = envs_at_a_time(jobs, None, self._device)
            return EnvPool(tasks, num_envs=envs, num_workers=min(self._workers, envs))

        def on_decisions(count: int) -> None:
            if self._asked_to_stop():
                raise Interrupted

        collected = collect(
            self._store,
            tasks.tasks,
            self._episodes,
            lambda slots: AgentController(agent, slots, mpc=False),
            pool,
            seed=self._seed,
            source=f"policy prior in extraction, after {self._step:,} updates",
            details={"updates": self._step, "weights": agent.checksum()},
            on_decisions=on_decisions,
        )
        self._news.append({f"prior_return/{t}": sum(r) / len(r) for t, r in collected.returns.items() if r})
        self._store = EpisodeStore.open(self._store.path)
        self._done += 1
        self._starts.take(self._store)
