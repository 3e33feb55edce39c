"""One process trains in a run folder at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tdmpc2.errors import UserError
from tdmpc2.locks import FolderLock, InUse

LOCK_NAME = "run.lock"


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Holds the folder's lock within the block (see `FolderLock`); it holds although its file is deleted.

    The folder is made if missing, and goes again if the block leaves nothing in it. Reading a run (evaluation, plots)
    takes no lock.

    Raises:
        UserError: when another process holds it, or the folder's file system cannot be written or has no locks.
    """
    lock = FolderLock(run_dir, LOCK_NAME, advice="choose a run folder elsewhere (hydra.run.dir=…)")
    try:
        lock.acquire()
    except InUse:
        raise UserError(
            f"{run_dir}: another process trains in this run folder; wait until it has ended, stop it, "
            "or choose another exp_name or seed."
        ) from None
    try:
        for folder in (run_dir, run_dir / "state", run_dir / "checkpoints"):
            for leftover in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
