"""A folder that one process writes at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from tdmpc2.errors import UserError
from tdmpc2.fileio import missing_folders, remove_folders, write_error

if sys.platform != "win32":
    import fcntl

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_ATTEMPTS = 5


def without_locks(error: Exception) -> bool:
    """Whether a lock failed because its file system has none."""
    return isinstance(error, NotImplementedError) or (isinstance(error, OSError) and error.errno in NO_LOCKS)


class InUse(Exception):
    """Another process, or another lock of this one, holds the folder."""


class FolderLock:
    """Holds a folder for one writer; the system lets go of it when the process ends, however it ends.

    It is a lock on a file in the folder and, where the system can (Linux and macOS on a local disk), on the folder
    itself as well: that one stays when the file is deleted. Where folders cannot be locked, the file's holds alone.
    Readers take none.

    Args:
        folder: made, with its parents, if missing.
        name: of the lock's file.
        advice: what to do where the file system has no locks.
    """

    def __init__(self, folder: Path, name: str, advice: str = "choose a folder elsewhere") -> None:
        self.folder = folder
        self.path = folder / name
        self._advice = advice
        # A lock that is only a file would outlive a killed process.
        self._file = FileLock(self.path, fallback_to_soft=False)
        self._descriptor: int | None = None
        self._made: list[Path] = []

    def acquire(self) -> None:
        """Takes the lock at once or not at all; on an error nothing is left that was not there.

        Raises:
            InUse: when it is held already.
            UserError: when the folder cannot be written or its file system has no locks.
        """
        for _ in range(_ATTEMPTS):  # another process may be removing the folder that its failed start had made
            try:
                self._make_folder()
                self._descriptor = _locked_folder(self.folder)
                self._file.acquire(timeout=0)
            except FileNotFoundError:
                self._let_go()
            except (Timeout, BlockingIOError):
                self._let_go()
                raise InUse(str(self.folder)) from None
            except (OSError, NotImplementedError) as error:
                self._tidy()
                self._let_go()
                if isinstance(error, OSError) and not without_locks(error):
                    raise write_error(self.path, error) from error
                raise UserError(
                    f"cannot lock {self.path}: its file system has no file locks; {self._advice}."
                ) from error
            else:
                if self._is_there():
                    return
                self._let_go()
            time.sleep(0.01)
        raise InUse(str(self.folder))

    @property
    def descriptor(self) -> int | None:
        """Of the folder, while it is locked itself: a process that inherits it holds the lock as well."""
        return self._descriptor

    def release(self) -> None:
        """Lets go; a folder that holds nothing but the lock is emptied, and removed if it was made for it."""
        self._tidy()
        self._let_go()

    def _make_folder(self) -> None:
        missing = missing_folders(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # also where the folder was there, and is gone again
            if self.folder.exists() and not self.folder.is_dir():
                raise
            raise FileNotFoundError(str(self.folder)) from None
        self._made = missing or self._made

    def _is_there(self) -> bool:
        """Whether the folder that is locked is still the one of that name."""
        if self._descriptor is None:
            return True
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.folder.stat())
        except FileNotFoundError:
            return False

    def _tidy(self) -> None:
        with contextlib.suppress(OSError):
            if [entry.name for entry in self.folder.iterdir()] == [self.path.name]:
                self.path.unlink()
            remove_folders(self._made)

    def _let_go(self) -> None:
        self._file.release()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _locked_folder(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock, or None where folders have none; `BlockingIOError` if it is held."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # it may be written but not listed
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # network file systems lock only what is open for writing
        os.close(descriptor)
        return None
    return descriptor
