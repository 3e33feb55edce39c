"""What a teacher says of every batch, for the objectives of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, cast

import torch
from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.distillation.committee import Committee
from tdmpc2.distillation.teacher import Draws, Teacher
from tdmpc2.errors import UserError
from tdmpc2.objectives import Knowledge, Objective


class Source(Protocol):
    """Who is asked: a `Teacher`, or one whose rewards are known already."""

    def view(self, batch: Batch, observations: int, draws: Draws) -> Knowledge: ...


@dataclass(frozen=True)
class _KnownRewards:
    """A view of a batch that knows rewards alone; `Lessons` asks it nothing else."""

    batch: Batch
    values: Tensor

    def rewards(self, steps: int) -> Tensor:
        return self.values[:steps]


class LabelledRewards:
    """A teacher's rewards as a column of labels holds them: the teacher itself is not there."""

    name = "labels"

    def view(self, batch: Batch, observations: int, draws: Draws) -> Knowledge:
        assert batch.labels is not None
        return cast(Knowledge, _KnownRewards(batch, batch.labels))


class DatasetRewards:
    """The control: the dataset's own rewards in the teacher's place.

    Rewards of these tasks are a function of state and action that the data holds, so what a student gains by them is
    not the teacher's knowledge.
    """

    name = "dataset"

    def view(self, batch: Batch, observations: int, draws: Draws) -> Knowledge:
        return cast(Knowledge, _KnownRewards(batch, batch.reward))


AnyTeacher: TypeAlias = Teacher | Committee | DatasetRewards
"""What teaches a run."""


class Lessons:
    """Asks for what the objectives of a run need, and for nothing else.

    Args:
        source: who is asked, or several who share a batch out among them.
        objectives: of the run.
        seed: of the actions that are drawn for questions.
        batch_size: of all processes together.
        part: this process's slices of it.

    Raises:
        UserError: for an objective that asks more of known rewards than rewards.
    """

    def __init__(
        self, source: Source | Committee, objectives: Sequence[Objective], seed: int, batch_size: int, part: slice
    ) -> None:
        known = source.name if isinstance(source, LabelledRewards | DatasetRewards) else None
        for objective in objectives:
            if known is not None and not objective.rewards_suffice:
                raise UserError(
                    f"{objective.name} asks more of a teacher than the rewards that teacher={known} has: give the "
                    f"teacher itself (such as teacher=317M with teacher.checkpoint=…), or {objective.name}=0."
                )
            if isinstance(source, Committee) and objective.one_latent:
                raise UserError(
                    f"{objective.name} compares latents with one teacher's, and every one of several has latents of "
                    f"its own: set {objective.name}=0, or give one teacher (teacher.checkpoint=…)."
                )
        self._source = source
        self._objectives = objectives
        self._seed, self._size, self._part = seed, batch_size, part

    @torch.no_grad()
    def of(self, batch: Batch, step: int) -> Batch:
        """The batch of the update after `step`, with what is said of it."""
        if not self._objectives:
            return batch
        draws = self._draws(step)
        if not isinstance(self._source, Committee):
            return replace(batch, targets=self._asked(self._source, batch, draws))
        parts = [
            (positions, self._asked(member, batch.slices(positions), draws.of(positions)))
            for member, positions in self._source.shares(batch)
        ]
        return replace(batch, targets=_joined(parts, len(batch.task)))

    def _asked(self, source: Source, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """What one says, for every objective."""
        view = self._view(source, batch, draws)
        targets: dict[str, Tensor] = {}
        # Those that ask about most steps come first: the others' answers are then part of theirs.
        horizon = batch.action.shape[0]
        for objective in sorted(self._objectives, key=lambda o: -o.observations(horizon)):
            draws.by(objective.name)
            targets |= {f"{objective.name}.{what}": values for what, values in objective.ask(view).items()}
        return targets

    @property
    def fits(self) -> str:
        """The name of an objective that wants to see batches before the first update; empty where none does."""
        return next((objective.name for objective in self._objectives if objective.fit_batches), "")

    @torch.no_grad()
    def fit(self, batches: Iterator[Batch]) -> None:
        """Lets objectives see batches before the first update, those that want to."""
        source = self._source
        for objective in self._objectives:
            if objective.fit_batches:
                assert not isinstance(source, Committee)  # its latents are refused
                shown = (self._view(source, next(batches), self._draws(step)) for step in range(objective.fit_batches))
                objective.fit(shown)

    def _view(self, source: Source, batch: Batch, draws: Draws) -> Knowledge:
        horizon = batch.action.shape[0]
        return source.view(batch, max(objective.observations(horizon) for objective in self._objectives), draws)

    def _draws(self, step: int) -> Draws:
        return Draws(self._seed, step, self._size, self._part)


def _joined(parts: Sequence[tuple[Tensor, Mapping[str, Tensor]]], size: int) -> dict[str, Tensor]:
    """Targets of a whole batch of `size` slices from those of its parts, whose positions [b] are given."""
    joined: dict[str, Tensor] = {}
    for positions, targets in parts:
        for name, values in targets.items():
            if name not in joined:
                joined[name] = values.new_empty(*values.shape[:-2], size, values.shape[-1])
            joined[name].index_copy_(-2, positions, values.to(joined[name].dtype))
    return joined
