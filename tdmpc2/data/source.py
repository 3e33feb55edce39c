"""Where an update's batches come from."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from tdmpc2.data.batch import Batch


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
