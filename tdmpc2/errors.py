"""The one family of errors that a user can cause, and how programs end on them: one line, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input or environment: the message names the file or key, what was found and what to do next."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, foreign, or made for another size or task set."""


class DataError(UserError):
    """A dataset file or store that is missing, damaged, or holds values it must not hold."""


class RenderError(UserError):
    """No headless OpenGL back end could draw a frame."""


def printable(text: object, limit: int = 300) -> str:
    """A name or a reason that comes out of a file, as part of one line that any terminal can show."""
    shown = str(text)[: limit + 1]
    if not shown.isprintable():
        shown = shown.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= limit else f"{shown[:limit]}…"


def run_program(main: Callable[[], object], on_interrupt: str = "interrupted") -> None:
    """Runs a program's main function: a UserError ends it with one line and exit code 2, Ctrl-C with 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(on_interrupt, file=sys.stderr)
        raise SystemExit(130) from None
