"""How this process's memory is kept between uses. Only programs call this: it changes the whole process."""

from __future__ import annotations

import ctypes
import os
import sys

# malloc.h, and the largest block that is kept when it is freed.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _KEPT_BLOCK = -1, -3, 256 << 20


def keep_freed_memory() -> None:
    """Lets this process keep large blocks that it frees for the next ones, on Linux with glibc; elsewhere does nothing.

    torch's CPU tensors come from the C library, which gives large blocks back to the system: a temporary of a megabyte
    is then mapped and cleared page by page every time. MALLOC_… variables of the environment are left in force.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT_BLOCK)
