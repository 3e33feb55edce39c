"""Standard output and error as a convenience: what a program shows never ends what it does."""

from __future__ import annotations

import io
import os
import re
from typing import TextIO

from termcolor import colored


class _LenientOutput(io.FileIO):
    """A descriptor whose writes cannot fail: once one does (a pipe that was closed, a full disk), all go nowhere.

    What a program shows is a convenience; what it does must not end with it.
    """

    _gone = False

    def write(self, data: object) -> int:
        if not self._gone:
            try:
                return super().write(data) or 0  # type: ignore[arg-type]  # its own type is not public
            except OSError:
                self._gone = True
        return memoryview(data).nbytes  # type: ignore[arg-type]


class _PrintableText(io.TextIOWrapper):
    """Shows control characters by their numbers: paths and names that a user or a file gives may hold any.

    Line ends and tabs pass, and on a terminal what colours text and moves the cursor, as libraries do.
    """

    def write(self, text: str) -> int:
        control = _CONTROL_ON_TERMINAL if self.isatty() else _CONTROL
        return super().write(control.sub(lambda found: f"\\x{ord(found[0]):02x}", text))


class _NamedText(_PrintableText):
    """Begins every line with a name; no terminal, whose lines are rewritten: several processes share this one."""

    name_of_lines = ""
    _within = False

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            super().write(line if self._within else f"{self.name_of_lines}{line}")
            self._within = not line.endswith("\n")
        return len(text)


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_CONTROL_ON_TERMINAL = re.compile(r"\x1b(?!\[[0-9;]*[A-Za-z])|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]")


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """Text in a colour of termcolor's on a terminal; as it is elsewhere, and where NO_COLOR or TERM=dumb asks so."""
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return text if plain or not stream.isatty() else colored(text, colour, force_color=True)  # of any stream


def lenient(descriptor: int, given: TextIO | None, name: str = "") -> io.TextIOWrapper:
    """Standard output or error whose writes cannot fail; characters that its encoding lacks are shown by their numbers.

    Args:
        descriptor: 1 or 2.
        given: the stream so far, for its encoding.
        name: begins every line, where several processes write to one console.
    """
    raw = _LenientOutput(descriptor, "w", closefd=False)
    text = (_NamedText if name else _PrintableText)(
        io.BufferedWriter(raw),
        encoding=getattr(given, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=bool(name) or descriptor == 2 or raw.isatty(),
    )
    if isinstance(text, _NamedText):
        text.name_of_lines = name
    return text
