"""Signals that ask a long job to stop, so that it ends at a moment of its own choosing."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ASKING = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupt:
    """Set by SIGINT, SIGTERM or SIGHUP (a terminal that is closed), so that a run stops between two updates."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt  # asked twice: do not wait for the update to end
        self.signal = number

    @contextmanager
    def watching(self) -> Iterator[Interrupt]:
        """Handles the signals within the block, where this thread may; SIGHUP stays ignored if it is (by nohup)."""
        numbers = [getattr(signal, name) for name in _ASKING if hasattr(signal, name)]
        ignored = [n for n in numbers if n == getattr(signal, "SIGHUP", None) and signal.getsignal(n) == signal.SIG_IGN]
        try:
            old = {number: signal.signal(number, self._on_signal) for number in numbers if number not in ignored}
        except ValueError:  # not the main thread: whoever runs this one handles signals
            yield self
            return
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
