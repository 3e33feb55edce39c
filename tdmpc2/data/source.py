"""Where an update's batches come from."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol

from tdmpc2.data.batch import Batch


class Interrupted(Exception):
    """Ends what a run does between two updates, acting or an evaluation, when a signal asks it to stop."""


class BatchSource(Protocol):
    """An iterator over batches on the training device: a store's sampler, or a replay that grows.

    As a context it ends what it started: threads, workers.
    """

    def __enter__(self) -> BatchSource: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __next__(self) -> Batch:
        """The next update's batch; a `DataError` where the data is not what it was."""

    def drawn(self, step: int) -> str:
        """What the batch of update `step`, counted from 0, was drawn from, in words: "episodes 3, 7"."""

    def state(self) -> dict[str, Any]:
        """What it goes on from beside the number of updates, for the training state; what that needs is kept."""

    def news(self) -> list[dict[str, float]]:
        """What happened since this was last asked, as rows of the log: episodes that ended."""

    def standing(self) -> dict[str, float]:
        """Where it stands, to be logged beside losses and scores: decisions taken."""
