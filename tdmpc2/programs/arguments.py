"""The command lines of programs that take options."""

from __future__ import annotations

import argparse
from typing import NoReturn

from tdmpc2.errors import printable


class ProgramParser(argparse.ArgumentParser):
    """Tells a mistake in one line, whatever letters were typed."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message, limit=2_000))
