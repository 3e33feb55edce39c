"""Labels a store with what a model's own planner would do, once, for any number of extractions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch

from tdmpc2.agent import Agent
from tdmpc2.data.labels import LabelWriter, PlanFacts, PlannedColumn, labelled_tasks
from tdmpc2.data.store import EpisodeBlock, EpisodeStore
from tdmpc2.errors import DataError
from tdmpc2.model import WorldModel, world_checksum
from tdmpc2.tasks import TaskSet

_BLOCK_STATES = 2048
_MOST_BLOCKS = 1024


@dataclass(frozen=True)
class StateChoice:
    """Which states of each episode are planned from, and by what noise: functions of the seed and the episode alone.

    Attributes:
        share: of an episode's states; at least one is taken.
        seed: of the draws.
    """

    share: float
    seed: int

    def __str__(self) -> str:
        return f"share {self.share:g}, seed {self.seed}"

    def count(self, steps: int) -> int:
        """States of an episode of `steps`."""
        return max(1, min(steps, round(self.share * steps)))

    def rows(self, episode: int, steps: int) -> npt.NDArray[np.int64]:
        """The steps of these states, in their order."""
        return np.sort(np.argsort(self._raw(episode, steps, 1), kind="stable")[: self.count(steps)])

    def seeds(self, episode: int, steps: int) -> npt.NDArray[np.uint64]:
        """[steps]: of each state's noise, whether it is planned from or not."""
        return self._raw(episode, steps, 2) >> np.uint64(1)

    def _raw(self, episode: int, steps: int, use: int) -> npt.NDArray[np.uint64]:
        stream = np.random.Philox(key=self.seed, counter=np.array([0, episode, use, 0], dtype=np.uint64))
        return stream.random_raw(steps)


def plan_facts(store: EpisodeStore, agent: Agent, choice: StateChoice) -> PlanFacts:
    """What the column of this agent's plans for this store is; the tasks labelled are the agent's that it has.

    Raises:
        DataError: for a store without episodes of its tasks, or of narrower ones.
    """
    own = agent.task_set
    tasks = labelled_tasks(store, own)
    for name in tasks:
        held, needed = store.header.obs_dims[store.tasks.index(name)], own.obs_dims[own.index(name)]
        if held < needed:
            raise DataError(f"{store.path}: found observations of {held} numbers of '{name}', expected {needed}.")
    numbers = asdict(agent.settings)
    del numbers["warm_start"]  # a state is planned from alone
    return PlanFacts(
        store=store.fingerprint,
        tasks=tasks,
        episodes=len(store),
        episode_steps=store.episode_steps,
        planner=" ".join(f"{name}={value}" for name, value in numbers.items()),
        precision=agent.planner.execution.precision,
        model=agent.checksum(),
        world=world_checksum(agent.model, own.tasks),
        states=str(choice),
        action_dim=own.action_dim,
    )


def block_episodes(store: EpisodeStore, choice: StateChoice) -> int:
    """Episodes that are committed at a time: about as many as half a minute's plans, but not a list without end."""
    states = choice.count(store.episode_steps)
    return max(1, min(256, _BLOCK_STATES // states), math.ceil(len(store) / _MOST_BLOCKS))


def plan_store(
    store: EpisodeStore,
    agent: Agent,
    choice: StateChoice,
    writer: LabelWriter[PlanFacts],
    *,
    batch_size: int,
    on_episodes: Callable[[int], None] = lambda count: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Appends the planner's actions from the writer's next episode on; returns whether the column is complete.

    Each state is planned from alone, with noise of its own, so that its label depends neither on the actions that the
    store's behaviour took before nor, but for rounding, on the states planned beside it.

    Args:
        store: the episodes.
        agent: its model and its planner.
        choice: which states.
        writer: entered; holds what is labelled already.
        batch_size: states planned at a time.
        on_episodes: told how many episodes were added.
        stop: asked before every batch; episodes that are not whole by then are left out.
    """
    total, steps = len(store), store.episode_steps
    # Groups of episodes within a block, so that one who goes on after a block forms the same batches.
    count = min(writer.header.block_episodes, math.ceil(batch_size / choice.count(steps)))
    while writer.header.block_episodes % count:
        count -= 1
    for start in range(writer.episodes, total, count):
        block = store.read_episodes(start, min(start + count, total))
        labels = np.full((len(block.task), steps, agent.task_set.action_dim), np.nan, np.float32)
        places = _places(store, agent.task_set, block, start, choice)
        for first in range(0, len(places), batch_size):
            if stop():
                return False
            part = places[first : first + batch_size]
            labels[part[:, 0], part[:, 1]] = _planned(store, agent, block, part, start, choice)
        writer.append(labels)
        on_episodes(len(labels))
    return True


def _places(
    store: EpisodeStore, tasks: TaskSet, block: EpisodeBlock, first: int, choice: StateChoice
) -> npt.NDArray[np.int64]:
    """[N, 2]: episode of the block and step, of every state to plan from."""
    found = [np.empty((0, 2), np.int64)]
    for number, task in enumerate(block.task):
        if store.tasks[task] in tasks.tasks:
            rows = choice.rows(first + number, store.episode_steps)
            found.append(np.stack([np.full_like(rows, number), rows], axis=1))
    return np.concatenate(found)


def _planned(
    store: EpisodeStore,
    agent: Agent,
    block: EpisodeBlock,
    places: npt.NDArray[np.int64],
    first: int,
    choice: StateChoice,
) -> npt.NDArray[np.float32]:
    """Actions [N, A] for the states at `places` of a block whose first episode is `first`."""
    own = agent.task_set
    obs = np.zeros((len(places), own.obs_dim), np.float32)
    ids = np.empty(len(places), np.int64)
    generators = []
    for number in np.unique(places[:, 0]):
        at = np.flatnonzero(places[:, 0] == number)
        position = own.index(store.tasks[block.task[number]])
        ids[at], width = position, own.obs_dims[position]
        obs[at, :width] = block.obs[number, places[at, 1], :width]
        seeds = choice.seeds(first + int(number), store.episode_steps)[places[at, 1]]
        generators += [torch.Generator(agent.device).manual_seed(int(seed)) for seed in seeds]
    states = torch.from_numpy(obs).to(agent.device, agent.dtype)
    task = torch.from_numpy(ids).to(agent.device) if own.multitask else None
    return agent.plan_mean(states, task, generators).float().cpu().numpy()


def check_planned(column: PlannedColumn, model: WorldModel, tasks: TaskSet) -> None:
    """Raises a `DataError` for actions that were planned in another world model; its policy prior may differ."""
    found, expected = column.header.facts.world, world_checksum(model, tasks.tasks)
    if found != expected:
        raise DataError(
            f"{column.path}: its actions were planned in another world model (checksum {found}, not {expected}); give "
            "labels of the model of checkpoint=…, of the run's own tasks (scripts/label.py what=planner)."
        )
