"""Batches from a replay that grows while its batches are learned from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from tdmpc2.agent import Agent
from tdmpc2.data.batch import Batch
from tdmpc2.data.importing import open_or_create
from tdmpc2.data.replay import Replay
from tdmpc2.data.source import Interrupted
from tdmpc2.data.store import EpisodeBlock, EpisodeStore
from tdmpc2.envs import EnvPool
from tdmpc2.envs.gym_env import ACTION_REPEAT
from tdmpc2.errors import CheckpointError, UserError
from tdmpc2.online.acting import LearningController, endless_jobs
from tdmpc2.online.settings import OnlineSettings
from tdmpc2.rollout import Episode, Job, Rollout, Trajectory, UnderWay
from tdmpc2.rollout.collecting import write_episode

_COLUMNS = ("obs", "action", "reward")


class OnlineSource:
    """Acts as far as the next update asks, and draws that update's batch from what the replay holds.

    While the update runs, worker processes simulate the last decisions. An episode enters the replay when it ends.
    Update k, counted from 0, needs every episode of the seed phase, and decisions for which utd gives k + 1 updates;
    those of the seed phase do not count for a model that was trained before.

    As a context it ends the worker processes. Nothing starts before the first batch is asked for.

    Args:
        agent: acts with the model that is trained.
        replay: empty; a run that goes on fills it from the store.
        settings: of acting.
        seed_behaviour: what acts in the seed phase: uniform, oscillate or agent.
        trained: whether the model has learned before.
        seed: of all episodes.
        workers: simulator processes.
        store: where every episode is kept, in segments that `state` commits.
        given: a store whose episodes the replay holds before the run's own.
        device: of the batches.
        start_step: updates done.
        state: what `state` gave then; None for a new run.
        asked_to_stop: whether a signal came; asked between decisions.
    """

    def __init__(
        self,
        agent: Agent,
        replay: Replay,
        settings: OnlineSettings,
        *,
        seed_behaviour: str,
        trained: bool,
        seed: int,
        workers: int,
        store: Path,
        device: torch.device,
        given: EpisodeStore | None = None,
        start_step: int = 0,
        state: Mapping[str, Any] | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._agent = agent
        self._tasks = agent.task_set
        self._replay = replay
        self._settings = settings
        self._seed = seed
        self._workers = workers
        self._device = device
        self._step = start_step
        self._asked_to_stop = asked_to_stop
        self._trained = trained
        self._place = store
        self._given = () if given is None else (given,)
        self._store: EpisodeStore | None = None
        self._unsaved: list[Episode] = []
        self._news: list[dict[str, float]] = []
        self._decisions = 0
        self._begun = 0  # episodes
        self._seeds_left = settings.seed_episodes * len(self._tasks)
        self._controller = LearningController(agent, settings.envs(self._tasks), settings, seed_behaviour)
        self._pool: EnvPool | None = None
        self._rollout: Rollout | None = None
        self._loaded = state
        if state is not None:
            try:
                self._decisions, self._begun = int(state["decisions"]), int(state["begun"])
                self._seeds_left = int(state["seeds_left"])
            except (KeyError, TypeError, ValueError) as error:
                raise _odd_state(error) from error

    def __enter__(self) -> OnlineSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.close()

    def __next__(self) -> Batch:
        """The next update's batch, on the device.

        Raises:
            Interrupted: when a signal came before all decisions were taken; the state holds those that were.
            EnvPoolError: when a simulation fails.
        """
        if self._rollout is None:
            self._begin()
        while self._step >= self._allowed():
            if self._asked_to_stop():
                raise Interrupted
            self._act()
        batch = self._replay.batch(self._step)
        self._step += 1
        if self._device.type == "cuda":
            return batch.pin_memory().to(self._device, non_blocking=True)
        return batch.to(self._device)

    def drawn(self, step: int) -> str:
        return self._replay.drawn(step)

    def news(self) -> list[dict[str, float]]:
        """The return of every episode that ended since this was last asked, under who acted and its task."""
        news, self._news = self._news, []
        return news

    def standing(self) -> dict[str, float]:
        """Decisions taken, and the environment steps that they are."""
        return {"decisions": self._decisions, "environment_steps": self._decisions * ACTION_REPEAT}

    def state(self) -> dict[str, Any]:
        """What a run goes on from: episodes under way, and how many of the store's the replay has seen.

        Those that ended since the last time are committed to the store first.
        """
        if self._rollout is None:
            return dict(self._loaded or {})
        store = self._commit()
        under_way = self._rollout.under_way()
        return {
            "decisions": self._decisions,
            "begun": self._begun,
            "seeds_left": self._seeds_left,
            "episodes": len(store),
            "fingerprint": store.fingerprint,
            "slots": list(under_way.running),
            "jobs": [[job.task, job.episode, job.seed] for job, _ in under_way.running.values()],
            "trajectories": [
                {
                    "obs": torch.from_numpy(t.obs),
                    "action": torch.from_numpy(t.action),
                    "reward": torch.from_numpy(t.reward),
                }
                for _, t in under_way.running.values()
            ],
            "decided": [[slots, torch.from_numpy(action)] for slots, action in under_way.decided],
            "controller": self._controller.state(),
        }

    # -- acting --------------------------------------------------------------------------------------------------------

    def _allowed(self) -> int:
        """Updates that the decisions so far call for."""
        if self._seeds_left > 0 or not len(self._replay):
            return 0
        return self._settings.updates(self._decisions, self._tasks, trained=self._trained)

    def _act(self) -> None:
        """One more decision in every environment."""
        assert self._rollout is not None
        for episode in self._rollout.turn():
            self._finish(episode)

    def _finish(self, episode: Episode) -> None:
        job, who = episode.job, self._controller.who(episode.job)
        if job.episode < self._settings.seed_episodes:
            self._seeds_left -= 1
        row = {f"{who}_return/{job.task}": episode.episode_return, "episode_length": float(episode.length)}
        self._news.append(row | self.standing())
        if episode.length + 1 != self._replay.episode_steps:
            return  # its simulation diverged; the store takes whole episodes alone, and the replay what the store has
        assert episode.trajectory is not None
        t = episode.trajectory
        task = np.full(1, self._tasks.index(job.task))
        self._replay.add(EpisodeBlock(t.obs[None], t.action[None], t.reward[None], task))
        self._unsaved.append(episode)

    def _count(self, decisions: int) -> None:
        self._decisions += decisions

    # -- beginning and going on ----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        tasks, envs = self._tasks, self._settings.envs(self._tasks)
        state = self._loaded
        if state:
            self._fill(int(state["episodes"]), str(state["fingerprint"]))
        else:
            self._store = _new_store(self._place, self._agent)
            self._replay.fill(*self._given)
        # The simulators share the cores with the updates: no more of them than environments.
        self._pool = EnvPool(tasks, num_envs=envs, num_workers=min(self._workers, envs))
        jobs = (self._counted(job) for job in endless_jobs(tasks, self._seed, self._begun))
        rollout = Rollout(self._pool, jobs, self._controller, record=True, on_decisions=self._count)
        if state:
            self._go_on(rollout, state)
        else:
            rollout.begin()
        self._rollout = rollout

    def _counted(self, job: Job) -> Job:
        self._begun += 1
        return job

    def _go_on(self, rollout: Rollout, state: Mapping[str, Any]) -> None:
        try:
            jobs = [Job(task, episode, seed) for task, episode, seed in state["jobs"]]
            trajectories = [
                Trajectory(**{name: part[name].numpy() for name in _COLUMNS}) for part in state["trajectories"]
            ]
            running = dict(zip(state["slots"], zip(jobs, trajectories, strict=True), strict=True))
            decided = tuple((list(slots), action.numpy()) for slots, action in state["decided"])
            under_way = UnderWay(running, decided)
            again = rollout.resume(under_way)
            pending = list(itertools.chain.from_iterable(slots for slots, _ in decided))
            taken = {slot: len(t.reward) - 1 + pending.count(slot) for slot, (_, t) in running.items()}
            self._controller.restore(state["controller"], taken, again)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if isinstance(error, UserError):
                raise
            raise _odd_state(error) from error
        if again:
            print(
                f"{len(again)} of {len(running)} episodes under way came out otherwise when they were simulated again "
                "(another machine, or another version of the simulator): they begin anew, and the run goes on from "
                "here as any other would."
            )

    # -- the store of all episodes -------------------------------------------------------------------------------------

    def _fill(self, episodes: int, fingerprint: str) -> None:
        """Fills the replay with what it held. What the store has beyond that, the run will play again: it goes."""
        store = EpisodeStore.open(self._place)
        store.go_back(episodes, fingerprint)
        self._replay.fill(*self._given, store)
        self._store = store

    def _commit(self) -> EpisodeStore:
        """Adds to the store what ended since the last time."""
        store = self._store
        assert store is not None
        if self._unsaved:
            with store.writer(
                source=f"online training, seed {self._seed}",
                details={"updates": self._step, "decisions": self._decisions, "weights": self._agent.checksum()},
                after=len(store),
            ) as writer:
                for episode in self._unsaved:
                    write_episode(store, writer, episode)
            self._unsaved.clear()
        return store


def _new_store(place: Path, agent: Agent) -> EpisodeStore:
    store = open_or_create(place, agent.task_set, notes="every episode of an agent in training, in their order")
    if len(store):
        raise UserError(
            f"{place}: holds {len(store):,} episodes already, and a new run keeps its own: choose another save_replay."
        )
    return store


def _odd_state(error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the training state does not fit this version's online source ({type(error).__name__}: {error}); use the "
        "version that wrote it, or start another run (exp_name=…)."
    )
