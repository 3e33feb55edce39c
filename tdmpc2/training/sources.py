"""Where a run's batches come from: a store of episodes, or the simulator."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tdmpc2.agent import Agent
from tdmpc2.data.batch import Batch
from tdmpc2.data.importing import common_episode_steps
from tdmpc2.data.labels import LabelColumn, PlannedColumn
from tdmpc2.data.replay import Replay
from tdmpc2.data.sampler import Prefetcher, SliceSampler
from tdmpc2.data.source import BatchSource
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import UserError
from tdmpc2.evaluation.runner import default_workers
from tdmpc2.extraction import PLANNED, ExtractionSettings
from tdmpc2.model import WorldModel
from tdmpc2.online import OnlineSource
from tdmpc2.training.finite import Drawing
from tdmpc2.training.identity import recorded_store
from tdmpc2.training.ranks import Ranks
from tdmpc2.training.rounds import RoundsSource, StartStates
from tdmpc2.training.settings import TrainSettings
from tdmpc2.training.state import TrainingState

REPLAY = "replay"
"""The folder, in an online run's, of the store of all its episodes."""
COLLECTED = "collected"
"""The folder, likewise, of the store of what an extraction's policy has played between its rounds."""
_ROWS = "replay-rows"


@dataclass(frozen=True)
class RunData:
    """What a run learns from, read and checked; nothing of it has started.

    Attributes:
        store: of episodes; None for the simulator alone.
        labels: a teacher's rewards for the store.
        planned: a planner's actions for the store.
        drawn: tells what a batch was drawn from.
        open: makes the source of batches, for the model that acts, from an update on and from what its `state` then
            gave; it asks whether the run is to stop.
        whole: batches of all processes, from the first on; None where there are none before the run begins.
    """

    store: EpisodeStore | None
    labels: LabelColumn | None
    planned: PlannedColumn | None
    drawn: Drawing
    open: Callable[[WorldModel, int, Mapping[str, Any] | None, Callable[[], bool]], BatchSource]
    whole: Callable[[], Iterator[Batch]] | None


def run_data(settings: TrainSettings, state: TrainingState | None, ranks: Ranks) -> RunData:
    """The store in `data_dir`, or the simulator for an online run.

    Raises:
        UserError: for data or labels that do not fit, or more than one process for an online run.
    """
    return _from_store(settings, state, ranks) if settings.online is None else _from_simulator(settings, state, ranks)


def _from_store(settings: TrainSettings, state: TrainingState | None, ranks: Ranks) -> RunData:
    store = EpisodeStore.open(settings.data_dir)
    if state is not None:
        store = recorded_store(store, state.identity)
    labels = None if settings.labels is None else LabelColumn.open(settings.labels, store, settings.task_set.tasks)
    planned = None
    if settings.extraction is not None and settings.extraction.e_imitate:
        folder = settings.extraction.imitate_labels or settings.data_dir / PLANNED
        planned = PlannedColumn.open(folder, store, settings.task_set.tasks)
    chosen = (store, settings.task_set, settings.batch_size, settings.horizon, settings.seed)
    if settings.extraction is not None and settings.extraction.rounds > 1:
        return _in_rounds(settings, settings.extraction, store, planned)
    sampler = SliceSampler(*chosen, rank=ranks.rank, world_size=ranks.size, labels=labels, planned=planned)

    def opened(
        model: WorldModel, step: int, state: Mapping[str, Any] | None, asked_to_stop: Callable[[], bool]
    ) -> BatchSource:
        return Prefetcher(sampler, settings.device, step)

    def whole() -> Iterator[Batch]:
        everything = SliceSampler(*chosen)
        return (everything.batch(step).to(settings.device) for step in itertools.count())

    return RunData(store, labels, planned, sampler, opened, whole)


def _in_rounds(
    settings: TrainSettings, extraction: ExtractionSettings, store: EpisodeStore, planned: PlannedColumn | None
) -> RunData:
    """The store, and what an extraction's policy collects between its rounds."""
    tasks, workers = settings.task_set, settings.evaluation.num_workers
    starts = StartStates(store, tasks, settings.batch_size, settings.horizon, settings.seed, planned)

    def opened(
        model: WorldModel, step: int, state: Mapping[str, Any] | None, asked_to_stop: Callable[[], bool]
    ) -> BatchSource:
        return RoundsSource(
            starts,
            Agent(model, tasks),
            rounds=extraction.rounds,
            episodes=extraction.collect_episodes,
            updates=settings.updates,
            seed=settings.seed,
            workers=default_workers() if workers is None else workers,
            store=settings.run_dir / COLLECTED,
            device=settings.device,
            start_step=step,
            state=state,
            asked_to_stop=asked_to_stop,
        )

    return RunData(store, None, planned, starts, opened, None)


def _from_simulator(settings: TrainSettings, state: TrainingState | None, ranks: Ranks) -> RunData:
    online, tasks = settings.online, settings.task_set
    assert online is not None
    if ranks.size > 1:
        raise UserError("mode=online runs in one process, whose workers simulate: start it without torchrun.")
    replay = Replay(
        tasks,
        online.buffer_size,
        common_episode_steps(tasks),
        settings.batch_size,
        settings.horizon,
        settings.seed,
        settings.run_dir / _ROWS if online.buffer_storage == "disk" else None,
    )
    workers = settings.evaluation.num_workers
    given = None if online.replay_from is None else EpisodeStore.open(online.replay_from)
    if given is not None:
        replay.check(given)
        given = given if state is None else recorded_store(given, state.identity)

    def opened(
        model: WorldModel, step: int, state: Mapping[str, Any] | None, asked_to_stop: Callable[[], bool]
    ) -> BatchSource:
        # A graph is captured for one set of weights: here they change between two plans.
        execution = replace(settings.execution, cudagraphs=False)
        return OnlineSource(
            Agent(model, tasks, settings.planner, execution=execution),
            replay,
            online,
            seed_behaviour=settings.seed_behaviour,
            trained=settings.trained,
            seed=settings.seed,
            workers=default_workers() if workers is None else workers,
            store=online.save_replay or settings.run_dir / REPLAY,
            given=given,
            device=settings.device,
            start_step=step,
            state=state,
            asked_to_stop=asked_to_stop,
        )

    return RunData(given, None, None, replay, opened, None)
