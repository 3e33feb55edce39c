"""How far a long job is: one line on standard error with rate and time left."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import TextIO

_TTY_SECONDS = 0.1  # between redraws of the line on a terminal
_LINE_SECONDS = 5.0  # between lines in a log file, which keeps every one of them


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, e.g. 1:02:03; `-` when unknown (infinite, NaN or negative)."""
    if not 0 <= seconds < float("inf"):
        return "-"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Progress:
    """Counts `unit`s up to `total`. A terminal's line is rewritten; elsewhere a line comes every few seconds.

    Use it as a context manager, or call `close`, so that the last state is shown and the line ended. Counts are
    shown divided by `scale`: 10**6 for bytes in the unit "MB".
    """

    def __init__(
        self, total: int, label: str, unit: str = "steps", stream: TextIO | None = None, scale: int = 1
    ) -> None:
        if total < 0:
            raise ValueError(f"total must not be negative, got {total}")
        self.total = total
        self.label = label
        self.unit = unit
        self.scale = scale
        self.done = 0
        self._note = ""
        self._stream = stream if stream is not None else sys.stderr
        self._tty = self._stream.isatty()
        self._start = self._shown_at = time.monotonic()
        self._width = 0
        self._closed = False

    def update(self, count: int = 1, note: str = "") -> None:
        """Adds `count` finished units; `note` is shown at the line's end until the next one."""
        self.done += count
        self._note = note
        now = time.monotonic()
        if now - self._shown_at >= (_TTY_SECONDS if self._tty else _LINE_SECONDS):
            self._show(now)

    def line(self, elapsed: float) -> str:
        """The text after `elapsed` seconds."""
        fraction = self.done / self.total if self.total else 1.0
        rate = self.done / elapsed if elapsed > 0 else 0.0
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        shown_rate = rate / self.scale
        text = (
            f"{self.label}: {self.done / self.scale:,.0f}/{self.total / self.scale:,.0f} {self.unit}  "
            f"{100 * fraction:.0f}%  {shown_rate:.{0 if shown_rate >= 100 else 1}f}/s  "
        )
        text += f"took {duration(elapsed)}" if self.done >= self.total else f"left {duration(left)}"
        return f"{text}  {self._note}" if self._note else text

    def close(self) -> None:
        """Shows the last state and ends the line; more calls do nothing."""
        if self._closed:
            return
        self._closed = True
        self._show(time.monotonic())
        if self._tty:
            self._stream.write("\n")
            self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _show(self, now: float) -> None:
        self._shown_at = now
        text = self.line(now - self._start)
        if self._tty:
            # A line wider than the terminal would wrap, and could then not be rewritten.
            text = text[: shutil.get_terminal_size().columns - 1]
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
