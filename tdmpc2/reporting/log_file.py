"""What libraries log while a run goes on, kept in a file of the run's folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tdmpc2.fileio import write_error

_FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Appends log records from INFO on to a file within the block; warnings also go to standard error.

    A record that cannot be written is dropped: a log must not end a run.
    """
    root = logging.getLogger()
    try:
        file = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise write_error(path, error) from error
    file.handleError = lambda record: None  # type: ignore[method-assign]
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)
    handlers: list[logging.Handler] = [file, console]
    level = root.level
    root.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))
        root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
