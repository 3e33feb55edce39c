"""A file mapped into memory, which another program may shorten meanwhile."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tdmpc2.errors import DataError


class MappedFile:
    """The first `size` bytes of a file, mapped read-only.

    Reading a mapped page that the file no longer has ends the process with SIGBUS, which Python cannot catch: call
    `check` before (and, since a page's rest reads as zeros, after) what is read is used.

    Raises:
        DataError: when the file cannot be mapped.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be mapped ({error}); check the file and its permissions.") from error
        self._size = size

    def values(self, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """All of it, 1-D."""
        return np.frombuffer(self._mapping, dtype=dtype)

    def check(self) -> None:
        """Raises a `DataError` when the file has become shorter than what is mapped."""
        held = self._mapping.size()  # of the file that is mapped, whatever has its name now
        if held < self._size:
            raise DataError(
                f"{self.path}: found {held:,} bytes, expected {self._size:,}: it was shortened while in use. Copy the "
                "file again from where it came, or make it anew."
            )

    def expect_random_reads(self) -> None:
        """Else a value that is not in memory brings megabytes of others along."""
        if hasattr(mmap, "MADV_RANDOM"):
            self._mapping.madvise(mmap.MADV_RANDOM)

    def will_read(self, starts: npt.NDArray[np.int64], size: int) -> None:
        """Tells the system to fetch `size` bytes from each of `starts` on, all at once, in the background."""
        if not hasattr(mmap, "MADV_WILLNEED") or not size:
            return
        pages = starts - starts % mmap.PAGESIZE
        sizes = starts - pages + size
        advise = self._mapping.madvise
        for page, length in zip(pages.tolist(), sizes.tolist(), strict=True):
            advise(mmap.MADV_WILLNEED, page, length)
