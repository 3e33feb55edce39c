"""How programs start: the process is made ready before torch loads, then the program runs, and ends in one line on
what a user can cause.

Each function below starts the program of its name, `tdmpc2/programs/<name>.py`; `tdmpc2/train.py`, `scripts/*.py` and
the installed command (`main`) call them. Nothing here is for a library: it changes the whole process.
"""

from __future__ import annotations

import ast
import difflib
import faulthandler
import functools
import os
import signal
import sys
from importlib import import_module
from types import FrameType

import tdmpc2
from tdmpc2.allocation import keep_freed_memory
from tdmpc2.console import lenient
from tdmpc2.errors import UserError, printable, run_program
from tdmpc2.places import PACKAGE

_FEWEST_FILES = 64
"""Open files that a program with a few simulators needs."""
_WANTED_FILES = 4096


def launch(program: str) -> None:
    """Runs `tdmpc2/programs/<program>.py` as a program in this process."""
    _open_standard_streams()
    sys.stdout = lenient(1, sys.stdout)
    sys.stderr = lenient(2, sys.stderr)
    faulthandler.enable(file=2)  # a mapped file that is cut off while it is read ends a process without a word else
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _ask_to_stop)  # nohup ignores SIGHUP, and so it stays
    try:
        run_program(_prepare)
        module = run_program(lambda: import_module(f"tdmpc2.programs.{program}"))  # loading may be cut off too
        run_program(module.main, on_interrupt=getattr(module, "INTERRUPTED", "interrupted"))
    finally:
        sys.stdout.flush()


def _prepare() -> None:
    _check_working_folder()
    _allow_open_files()
    wait_briefly()
    keep_freed_memory()


def wait_briefly() -> None:
    """Lets OpenMP's threads go to sleep soon where they wait for each other, unless the environment says otherwise.

    By default they spin for milliseconds, a scheduler's whole turn: beside other work, two threads then wait for one
    that has no core (docs/performance.md: plans took 28 times as long). This is long enough for a quiet machine.
    OpenMP reads it when torch loads.
    """
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        os.environ["GOMP_SPINCOUNT"] = "10000"


def _open_standard_streams() -> None:
    """Where a standard stream is closed, the null device takes its number: else the next file opened would."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115  # for as long as the process lives


def _ask_to_stop(number: int, frame: FrameType | None) -> None:
    """Ends the program so that files half written are removed."""
    sys.unraisablehook = lambda _: None  # what was being made in this moment may fail when it is freed
    raise KeyboardInterrupt


def _check_working_folder() -> None:
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        raise UserError("the working folder is not there any more; change to one that is.") from None


def _allow_open_files() -> None:
    """Raises the limit of open files as far as this process may; a `UserError` where it is far too low."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < _WANTED_FILES:
        possible = _WANTED_FILES if hard == unlimited else min(hard, _WANTED_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
        soft = possible
    if soft != unlimited and soft < _FEWEST_FILES:
        raise UserError(f"only {soft} files may be open at a time; raise the limit (ulimit -n 1024).")


train = functools.partial(launch, "train")
evaluate = functools.partial(launch, "evaluate")
collect = functools.partial(launch, "collect")
quantize = functools.partial(launch, "quantize")
label = functools.partial(launch, "label")
match_gradient = functools.partial(launch, "match_gradient")
export = functools.partial(launch, "export")
restamp = functools.partial(launch, "restamp")
compare = functools.partial(launch, "compare")
join = functools.partial(launch, "join")
download = functools.partial(launch, "download")
import_data = functools.partial(launch, "import_data")
synthesise = functools.partial(launch, "synthesise")
quickstart = functools.partial(launch, "quickstart")
picture = functools.partial(launch, "picture")
play = functools.partial(launch, "play")
document = functools.partial(launch, "document")
report = functools.partial(launch, "report")
data_card = functools.partial(launch, "data_card")
learning_curves = functools.partial(launch, "learning_curves")
search = functools.partial(launch, "search")

COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "play": play,
    "collect": collect,
    "label": label,
    "quantize": quantize,
    "export": export,
    "restamp": restamp,
    "download": download,
    "import": import_data,
    "compare": compare,
    "join": join,
    "report": report,
    "data-card": data_card,
    "learning-curves": learning_curves,
    "search": search,
    "match-gradient": match_gradient,
    "synthesise": synthesise,
    "picture": picture,
    "quickstart": quickstart,
}
"""The words of the installed command; the other program, `document`, writes the pages of a clone."""


def main() -> None:
    """The installed command: `tdmpc2 train …` starts what `python tdmpc2/train.py …` does, and so for every word."""
    command, *arguments = sys.argv
    word = arguments[0] if arguments else "--help"
    if word in ("-h", "--help"):
        print(_usage())
    elif word == "--version":
        print(f"tdmpc2 {tdmpc2.__version__}")
    elif word in COMMANDS:
        sys.argv = [f"{command} {word}", *arguments[1:]]  # as a program's own help and the record of a run name it
        COMMANDS[word]()
    else:
        run_program(lambda: _refuse(word))


def _refuse(word: str) -> None:
    close = difflib.get_close_matches(word, COMMANDS, n=1)
    advice = f"did you mean {close[0]}?" if close else "tdmpc2 --help lists the programs."
    raise UserError(f"tdmpc2 has no program '{printable(word)}'; {advice}")


def _usage() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {word:{width}}{_summary(program.args[0])}" for word, program in COMMANDS.items()]
    return "\n".join(["usage: tdmpc2 PROGRAM …; tdmpc2 PROGRAM --help tells what it takes", "", *lines])


def _summary(program: str) -> str:
    """What a program's file says of it in its first line, read without loading what it needs (torch takes seconds)."""
    tree = ast.parse((PACKAGE / "programs" / f"{program}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").splitlines()[0]
