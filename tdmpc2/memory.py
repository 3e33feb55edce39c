"""Whether this machine's memory can hold what is asked for, before any work is done."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tdmpc2.errors import UserError
from tdmpc2.fileio import human_bytes

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def check_memory(what: str, needed_bytes: int, advice: str) -> None:
    """Raises a `UserError` when the machine's memory cannot hold `needed_bytes`.

    Args:
        what: needs them, as the beginning of a sentence: "a batch of batch_size=1000000".
        needed_bytes: at least so many; give a lower bound, so that nothing is refused that would fit.
        advice: what to do, naming keys.
    """
    available = available_memory()
    if available is not None and needed_bytes > available:
        raise UserError(
            f"{what} needs at least {human_bytes(needed_bytes)} of memory, found {human_bytes(available)}: {advice}."
        )


def available_memory() -> int | None:
    """Bytes that this process may still take, swap included; None where the system does not tell.

    What Linux counts as available, or what is left below its control group's limit, if that is less; elsewhere all
    of the machine's memory.
    """
    found = [size for size in (_of_the_system(), _left_in_group()) if size is not None]
    return min(found, default=None)


def _of_the_system() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return _physical()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest.split()}
    if "MemAvailable" not in kib:
        return _physical()
    return 1024 * (kib["MemAvailable"] + kib.get("SwapFree", 0))


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows; names that this system lacks
        return None


def _left_in_group() -> int | None:
    """What the limits of this process's control group and of those it is in leave, caches not counted as used."""
    left: list[int] = []
    with contextlib.suppress(OSError):
        for line in _OWN_GROUP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                root, names = _GROUP, ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                root = _GROUP / "memory"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            place = root / path.lstrip("/")
            for group in (place, *place.parents):
                if group.is_relative_to(root):
                    left.extend(_left(group, *names))
    return min(left, default=None)


def _left(group: Path, limit: str, usage: str, cache: str) -> list[int]:
    """What one group's limit leaves; nothing where there is no limit or it cannot be read."""
    try:
        most = int((group / limit).read_text())  # "max" is no number
        used = int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return [max(most - used + int(stat.get(cache, 0)), 0)]
    except (OSError, ValueError):
        return []
