"""Files written whole or not at all: a reader sees the old content or the new, never half of either."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from tdmpc2.errors import UserError, system_reason

_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_error(path: str | os.PathLike[str], error: OSError) -> UserError:
    """The clear form of a failed write to `path`: names the file, the reason and the way out."""
    return UserError(f"cannot write {os.fspath(path)}: {system_reason(error)}.")


def human_bytes(count: float) -> str:
    """A number of bytes in the unit that says something: 512 B, 3.4 kB, 1.2 GB."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path` that takes its place when the block ends without an error.

    `mode` is "wb" or "w" (UTF-8, line ends as written). Missing parent folders are made. The content is on
    the disk before the name changes; after any error the old file is as it was and the temporary one is gone.
    Raises a `UserError` naming the file when the disk is full or the place cannot be written.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode must be 'wb' or 'w', got {mode!r}")
    target = Path(path)
    try:
        if target.is_symlink():
            target = target.resolve()  # replace what the link names, not the link itself
        _require_name(target)
        permissions = target.stat().st_mode & 0o777 if target.exists() else None
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    file: IO[Any] | None = None
    try:  # from before the file is there: a Ctrl-C may come at any moment
        try:
            file = temporary.open("x", encoding="utf-8", newline="") if mode == "w" else temporary.open("xb")
        except OSError as error:
            raise write_error(path, error) from error
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        try:
            if permissions is not None:
                temporary.chmod(permissions)
            temporary.replace(target)
        except OSError as error:
            raise write_error(path, error) from error
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        full = None if isinstance(error, UserError) else _out_of_space(error)
        if full is None:
            raise
        raise write_error(path, full) from error
    _sync_folder(target.parent)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all (see `atomic_file`)."""
    with atomic_file(path, "wb") as file:
        file.write(data)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` to `path` in UTF-8, whole or not at all (see `atomic_file`)."""
    with atomic_file(path, "w") as file:
        file.write(text)


def safe_name(name: str, limit: int = 120) -> str:
    """A folder's name that needs no quotes anywhere, different for different names.

    Characters other than letters, digits and `._+-` become `-`; where that or the length loses something, eight
    hexadecimal digits of the whole name's checksum end it.
    """
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._+-") else "-" for c in name)
    if kept == name and len(kept) <= limit:
        return kept
    return f"{kept[: limit - 9]}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:8]}"


def missing_folders(path: Path) -> list[Path]:
    """Those that `mkdir(parents=True)` would make, innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_folders(folders: list[Path]) -> None:
    """Removes these, innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises now the `UserError` that writing a file at `path` would end in later; leaves nothing behind.

    For programs that work for hours before they write: the file system may still change until then.
    """
    target = Path(path)
    made: list[Path] = []
    try:
        _require_name(target)
        made = missing_folders(target.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        probe = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        remove_folders(made)


def write_or_rescue(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Lets `write` write a file at `path`; where it cannot, into a folder for temporary files instead.

    For results that took long: the `UserError` then says why, and where they are.
    """
    try:
        write(Path(path))
    except UserError as error:
        rescued = Path(tempfile.mkdtemp(prefix="tdmpc2-")) / Path(path).name[:100]
        write(rescued)
        raise UserError(f"{error} What it was to hold is in {rescued}.") from None


def _require_name(target: Path) -> None:
    """Raises an OSError where no file can have this path: a folder has it, or its name is too long."""
    if not target.name or target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    with contextlib.suppress(FileNotFoundError):
        target.lstat()


def _out_of_space(error: BaseException | None) -> OSError | None:
    """The failed write behind `error`, if that is what it is: libraries hide it under an error of their own.

    An error that names a file is about that file, and keeps its own message.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OUT_OF_SPACE and error.filename is None:
            return error
        error = error.__cause__ or error.__context__
    return None


def _sync_folder(folder: Path) -> None:
    """Makes the new name itself durable where the platform can; the content is already safe."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):  # some network file systems refuse to sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
