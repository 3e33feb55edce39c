"""One process trains in a run folder at a time."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tdmpc2.errors import UserError
from tdmpc2.fileio import write_error

LOCK_NAME = "run.lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Holds the folder's lock within the block; the system lets go of it when the process ends, however it ends.

    The folder is made if missing, and goes again if the block leaves nothing in it. Reading a run (evaluation, plots)
    takes no lock.

    Raises:
        UserError: when another process holds it, or the folder's file system cannot be written or has no locks.
    """
    path = run_dir / LOCK_NAME
    made = not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # A lock that is only a file would outlive a killed process.
        lock = FileLock(path, fallback_to_soft=False)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{run_dir}: another process trains in this run folder; wait until it has ended, stop it, "
            "or choose another exp_name or seed."
        ) from None
    except (OSError, NotImplementedError) as error:
        _forget(run_dir, path, made)
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise write_error(path, error) from error
        raise UserError(
            f"cannot lock {path}: its file system has no file locks; choose a run folder elsewhere (hydra.run.dir=…)."
        ) from error
    try:
        for folder in (run_dir, run_dir / "state", run_dir / "checkpoints"):
            for leftover in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink(missing_ok=True)
        yield
    finally:
        _forget(run_dir, path, made)
        lock.release()


def _forget(run_dir: Path, lock_path: Path, made: bool) -> None:
    """Removes a lock in a folder that holds nothing else, and the folder too if it was made for it."""
    with contextlib.suppress(OSError):
        if [entry.name for entry in run_dir.iterdir()] == [LOCK_NAME]:
            lock_path.unlink()
        if made:
            run_dir.rmdir()  # refused by the system unless it is empty
