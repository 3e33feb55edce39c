"""From a task name to its dm_control environment. dm_control is imported here, on the first call, and not
before.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from tdmpc2.envs.rendering import environment
from tdmpc2.tasks import check_task_names

# Domains and tasks whose names here differ from dm_control's.
_DOMAINS = {"cup": "ball_in_cup"}


def build(task: str, seed: int | None = None) -> Any:
    """A fresh `dm_control.rl.control.Environment` of a task, its random state started from `seed`.

    Raises `UserError` for an unknown task.
    """
    check_task_names([task])
    suite, custom_tasks = _load()
    with _without_remarks():
        if task in custom_tasks.BUILDERS:
            return custom_tasks.BUILDERS[task](seed)
        domain, name = task.split("-", maxsplit=1)
        return suite.load(_DOMAINS.get(domain, domain), name.replace("-", "_"), task_kwargs={"random": seed})


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Keeps from the log what MuJoCo remarks on dm_control's own cheetah each time that it is built."""

    def concerns_us(record: logging.LogRecord) -> bool:
        return "settotalmass" not in record.getMessage()

    log = logging.getLogger("absl")
    log.addFilter(concerns_us)
    try:
        yield
    finally:
        log.removeFilter(concerns_us)


def physics_error() -> type[Exception]:
    """The class that dm_control raises when a simulation diverges; for use where an environment exists
    already.
    """
    from dm_control.rl.control import PhysicsError

    return PhysicsError


def _load() -> tuple[Any, Any]:
    """dm_control's suite and the custom tasks, imported without OpenGL.

    dm_control and mujoco choose an OpenGL back end when they are imported, and fail or warn where there is
    none. Physics needs none, and `rendering` loads one when a frame is wanted, so both are told to load none
    unless the program has imported them already.
    """
    loaded = "dm_control.mujoco" in sys.modules
    with contextlib.nullcontext() if loaded else environment(MUJOCO_GL="disabled"):
        from dm_control import suite
    from tdmpc2.envs import custom_tasks

    return suite, custom_tasks
