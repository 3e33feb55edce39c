"""The one family of errors that a user can cause, and how programs end on them: one line, no traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

TRACEBACK = "TDMPC2_TRACEBACK"
"""Environment variable: when it is set, errors of the system and of the memory keep their traceback."""


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


def first_line(error: BaseException) -> str:
    """The first line that an error says, or its type's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


_REASONS: dict[int, str] = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "the file is larger than the file system or the process may hold; choose another folder",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "permission denied; choose a folder you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EISDIR: "a folder of that name is in the way; choose another name",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
    errno.EEXIST: "a part of the path is a file, not a folder; choose another path",
    errno.ENAMETOOLONG: "the name is too long for the file system; choose a shorter one",
    errno.ENOENT: "no such file or folder; choose a path that exists, or a file system that takes new folders",
    errno.ELOOP: "its symbolic links lead in a circle; choose another path",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n 1024)",
    errno.ENFILE: "too many files are open on this machine; end other programs",
    errno.ENOMEM: "the memory is used up; end other programs, or lower batch_size, num_envs or num_samples",
    errno.EAGAIN: "no more processes or threads may be started; end other programs or raise the limit (ulimit -u)",
}


def system_reason(error: OSError) -> str:
    """What a failed system call means to a user, and the way out; without the path."""
    return _REASONS.get(error.errno or 0, f"{error.strerror or error}; choose another path")


def as_user_error(error: Exception) -> UserError | None:
    """What a user can cause, told as a `UserError`: a file, the system's limits, the memory; None for all else."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        places = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return UserError(f"{' -> '.join(places) or type(error).__name__}: {system_reason(error)}.")
    said = first_line(error)
    if isinstance(error, MemoryError) or any(word in said for word in _OF_MEMORY):
        reason = f"{said.rstrip('.')}." if str(error).strip() else "out of memory."
        return UserError(f"{reason} Lower batch_size, num_envs or num_samples, or choose a smaller model.")
    if isinstance(error, RuntimeError) and "can't start new thread" in said:
        return UserError(f"{said}: end other programs or raise the limit (ulimit -u).")
    return None


# torch has no error of its own for a CPU's memory.
_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "Storage size calculation overflowed")


def run_program(main: Callable[[], Result], on_interrupt: str = "interrupted") -> Result:
    """Runs a program's main function: what a user can cause ends it with one line and exit code 2, Ctrl-C with 130.

    What a KeyboardInterrupt says, which is mostly nothing, follows `on_interrupt`.
    """
    try:
        return main()
    except KeyboardInterrupt as interrupt:
        said = printable(interrupt, limit=20_000)
        print(f"{on_interrupt}: {said}" if said else on_interrupt, file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        told = as_user_error(error)
        if told is None or (TRACEBACK in os.environ and told is not error):
            raise
        print(f"error: {printable(told, limit=20_000)}", file=sys.stderr)
        raise SystemExit(2) from None
