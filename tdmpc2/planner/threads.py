"""Plans of several environments on a CPU's cores: a core to each is faster than all cores to one after another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Given = TypeVar("Given")
Found = TypeVar("Found")


class PlanThreads:
    """Threads that divide what torch may use: `workers` of them, each with a few threads for an operation.

    torch holds the number of threads of an operation for each thread apart; this one's is left as it is.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.total = torch.get_num_threads()
        ready = threading.Barrier(workers + 1)

        def begin() -> None:
            torch.set_num_threads(max(1, self.total // workers))
            ready.wait()

        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="plan")
        for _ in range(workers):
            self._pool.submit(begin)
        ready.wait()
        torch.set_num_threads(self.total)  # what a thread that starts later begins with

    def map(self, function: Callable[[Given], Found], given: Iterable[Given]) -> list[Found]:
        """`function` of each, in order; `given` is gone through in this thread while the others work."""
        waiting = [self._pool.submit(function, one) for one in given]
        try:
            return [one.result() for one in waiting]
        finally:  # after an error or Ctrl-C, nothing more is begun
            for one in waiting:
                one.cancel()
