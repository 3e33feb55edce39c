"""A replay that grows and forgets while a run learns: torchrl's buffer and slice sampler over rows of episodes.

The offline store keeps an exact order and every episode; a replay takes an episode when it ends and drops the oldest
ones. Both give the same `Batch`. torchrl is imported where a replay is made.
"""

from __future__ import annotations

import collections
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from tdmpc2.data.batch import Batch
from tdmpc2.data.store import EpisodeBlock, EpisodeStore
from tdmpc2.errors import DataError, UserError, printable
from tdmpc2.memory import check_memory
from tdmpc2.tasks import TaskSet

_REMEMBERED = 1000
"""Updates whose drawn episodes can be told."""
_READ_EPISODES = 64


class Replay:
    """The last whole episodes, as many as fit into `capacity` rows; slices never cross from one to another.

    An episode's number, counted from the run's first, is its trajectory key, and decides where it lies: a replay that
    is filled again from a store is the same, row for row. What an update draws is a function of the seed, the update
    and the episodes held.

    Args:
        task_set: gives the widths.
        capacity: rows at most, a row being a transition or an episode's first observation.
        episode_steps: T, the rows of each episode.
        batch_size: B, slices of a batch.
        horizon: H; a slice has H + 1 rows.
        seed: of the draws.
        folder: where the rows lie in files mapped into memory; None keeps them in memory. What is there is replaced.

    Raises:
        UserError: for a capacity below one episode, a horizon beyond it, or more than the memory holds.
    """

    def __init__(
        self,
        task_set: TaskSet,
        capacity: int,
        episode_steps: int,
        batch_size: int,
        horizon: int,
        seed: int,
        folder: Path | None = None,
    ) -> None:
        from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ReplayBuffer, SliceSampler

        logging.getLogger("torchrl").setLevel(logging.WARNING)  # it tells of every storage
        if capacity < episode_steps:
            raise UserError(
                f"buffer_size={capacity:,} holds no whole episode of {episode_steps} steps; choose {episode_steps} or "
                "more."
            )
        if not 1 <= horizon < episode_steps:
            raise UserError(f"horizon={horizon} must lie between 1 and {episode_steps - 1}, an episode's decisions.")
        self.episode_steps = episode_steps
        self._most = capacity // episode_steps
        self._shape = (batch_size, horizon + 1)
        self._seed = seed
        self._added = 0
        self._tasks = task_set
        self._drawn: collections.deque[tuple[int, torch.Tensor]] = collections.deque(maxlen=_REMEMBERED)
        rows = self._most * episode_steps
        if folder is None:
            held = rows * 4 * (task_set.obs_dim + task_set.action_dim + 5)
            check_memory(f"a replay of buffer_size={capacity:,}", held, "lower it, or set buffer_storage=disk")
            storage = LazyTensorStorage(rows)
        else:
            shutil.rmtree(folder, ignore_errors=True)
            storage = LazyMemmapStorage(rows, scratch_dir=folder)
        self._generator = torch.Generator()
        self._buffer = ReplayBuffer(
            storage=storage,
            # One trajectory key: an episode is contiguous rows, whichever environment it comes from.
            sampler=SliceSampler(slice_len=horizon + 1, traj_key="episode", truncated_key=None, cache_values=True),
            batch_size=batch_size * (horizon + 1),
            generator=self._generator,
        )

    def __len__(self) -> int:
        """Episodes held."""
        return min(self._added, self._most)

    @property
    def added(self) -> int:
        """Episodes ever added: the number of the next one."""
        return self._added

    def add(self, block: EpisodeBlock) -> None:
        """Takes in episodes, in the places of the oldest ones once the replay is full; of the task set's widths."""
        self._extend(block, self._added)
        self._added += len(block.task)

    def fill(self, *stores: EpisodeStore) -> None:
        """Takes over the episodes of stores, one after the other, as if they had been added so to an empty replay.

        Raises:
            DataError: for a store that `check` refuses.
        """
        assert not self._added
        for store in stores:
            self.check(store)
        held = sum(map(len, stores))
        first = max(0, held - self._most)
        # Episode e lies at place e modulo the number of places: from place 0 on, then once more up to the next one's.
        turn = held - held % self._most
        for start, stop in ((turn, held), (first, turn), (turn, held)) if first else ((0, held),):
            for number, block in _blocks(stores, start, stop):
                self._extend(block, number)
        self._added = held

    def check(self, store: EpisodeStore) -> None:
        """Raises a `DataError` for a store that is not of the task set's own tasks, in their order, and widths."""
        own = self._tasks
        found = (store.tasks, store.obs_dim, store.action_dim, store.episode_steps)
        if found != (own.tasks, own.obs_dim, own.action_dim, self.episode_steps):
            raise DataError(
                f"{store.path}: found obs {store.obs_dim}, action {store.action_dim} and {store.episode_steps} steps "
                f"an episode of {printable(', '.join(store.tasks))}; expected {own.obs_dim}, {own.action_dim} and "
                f"{self.episode_steps} of {', '.join(own.tasks)}, in this order: scripts/import_data.py joins stores "
                "into such a one."
            )

    def _extend(self, block: EpisodeBlock, first: int) -> None:
        from tensordict import TensorDict

        count, rows = len(block.task), self.episode_steps
        content = {
            "obs": torch.from_numpy(block.obs).flatten(0, 1),
            "action": torch.from_numpy(block.action).flatten(0, 1),
            "reward": torch.from_numpy(block.reward).flatten()[:, None],
            "task": torch.from_numpy(block.task).repeat_interleave(rows),
            "episode": torch.arange(first, first + count).repeat_interleave(rows),
        }
        self._buffer.extend(TensorDict(content, batch_size=[count * rows]))

    def batch(self, step: int) -> Batch:
        """The batch of update `step`, counted from 0, on the CPU; there must be an episode."""
        # One stream for each update: nothing of the generator has to be kept for a run to go on.
        self._generator.manual_seed((self._seed * 0x9E3779B97F4A7C15 + step) % 2**63)
        rows = self._buffer.sample().reshape(self._shape)
        self._drawn.append((step, rows["episode"][:, 0]))
        obs, action, reward = (rows[name].transpose(0, 1) for name in ("obs", "action", "reward"))
        parts = (obs, action[1:], reward[1:], rows["task"][:, 0])
        return Batch(*(part.contiguous() for part in parts))

    def drawn(self, step: int) -> str:
        """The episodes of the run that update `step` drew from, in words."""
        for drawn_at, episodes in self._drawn:
            if drawn_at == step:
                return f"episodes {', '.join(map(str, sorted(set(episodes.tolist()))))} of the run"
        return "episodes of the replay"


def _blocks(stores: Sequence[EpisodeStore], start: int, stop: int) -> Iterator[tuple[int, EpisodeBlock]]:
    """Episodes, numbered through all stores, in parts, each with the number of its first."""
    before = 0
    for store in stores:
        for first in range(max(start - before, 0), min(stop - before, len(store)), _READ_EPISODES):
            yield before + first, store.read_episodes(first, min(first + _READ_EPISODES, stop - before, len(store)))
        before += len(store)
