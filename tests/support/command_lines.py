"""Random command lines over every key of every program, run in forks of one process that has imported everything.

As a program this file reads one JSON job a line, runs it in a fork, and prints the fork's id. `ProgramServer` talks to
such a process. `random_command` makes command lines; `fault` says what is wrong with how one ended.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
PROGRAMS = (
    *("train", "evaluate", "quantize", "collect", "label"),
    *("export", "compare", "join", "import_data", "download", "synthesise"),
)
WORKING_SECONDS = 4.0
"""A program that has work to do is asked to stop after so long."""
STOPPING_SECONDS = 20.0
_MEMORY = 12 << 30  # of addresses, most of them torch's libraries


@dataclass(frozen=True)
class Ended:
    """How a command line ended: exit code (minus a signal's number), what it printed, and the files it left."""

    code: int
    output: str
    errors: str
    files: tuple[str, ...]


class ProgramServer:
    """Runs programs of the package, one at a time, each in a fork with a folder of its own."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{SUPPORT.parents[1]}{os.pathsep}{SUPPORT}", "OMP_NUM_THREADS": "1"}
        # Nothing answers there: no command line reaches a network.
        environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "WANDB_MODE": "offline", "HOME": "/nonexistent"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer("ready")

    def run(self, folder: Path, program: str, arguments: Sequence[str], seconds: float = 120) -> Ended:
        """Runs `program` in `folder`; one that goes on working after `seconds` is asked to stop by SIGTERM."""
        folder.mkdir(parents=True, exist_ok=True)
        logs = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
        job = {"folder": str(folder), "program": program, "arguments": list(arguments), "logs": list(map(str, logs))}
        job["seconds"] = seconds
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        code = self._answer("ended")
        output, errors = (log.read_text(errors="replace") for log in logs)
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        return Ended(code, output, errors, tuple(files))

    def _answer(self, kind: str) -> int:
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        assert len(words) == 2 and words[0] == kind, f"the program server said {words}, expected {kind}"
        return int(words[1])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


# -- what is tried ----------------------------------------------------------------------------------------------------

_INTEGERS = (
    *("0", "-1", "1", "2", "3", "7", "1_000", "65536", "1000000", "1000000000", "1000000000000", "-1000000000000"),
    *(str(2**31), str(2**63 - 1), str(2**63), str(10**30), str(-(10**30))),
)
_NUMBERS = (
    *("0", "-1", "1", "2", "1000000000000", str(10**30), "0.5", "-0.5", "1.5", "1e-9", "1e9", "1e300", "1e400"),
    *("nan", "-nan", "inf", "-inf"),
)
_TEXTS = (
    *("", "x", "é", "a b", "a=b", "a,b", "'a,b'", '"a=b"', "[a]", "{a:1}", "{a", "(", "\\", "$", "${x}", "${seed}"),
    *("../x", "/proc/x", "/dev/null", "/dev/full", ".", "/", "~", "~nobody/x", "x" * 300, "y/" * 200, "null", "true"),
    *("\x1b[31mred", "a\nb", "a\tb", "%s", "{}", "-1", "--help", "\udcff", "cpu", "mt30", "own", "walker-walk"),
    *("choice(1,2)", "range(1,3)", "glob(*)", "interval(0,1)", "1,2", "???", "cuda", "meta", "none", "all", "${"),
    *("auto", "float32", "bfloat16", "float16", "int8", "int4", "prior", "planner", "uniform", "labels", "317M", "5M"),
)
_LISTS = (
    *("[]", "[x]", "[walker-walk]", "[walker-walk,walker-walk]", "[null]", "[1,2]", "[[a]]", "[é]", "[pendulum-spin]"),
    *("null", "cartpole-swingup", "[cartpole-swingup,pendulum-spin]"),
)
_ODD = (
    "0x10",
    "٣",
    "1,000",
    "true",
    "false",
    "null",
    "maybe",
    "yes",
    "[1]",
    "{a: 1}",
    "",
    "'1'",
    "1_",
    "--1",
    "1e",
    "+1",
)
_OPTIONS = (
    *("-m", "--multirun", "--cfg=job", "--cfg=nix", "--cfg", "--help", "--hydra-help", "--version", "--resolve"),
    *(
        "--info=config",
        "--info=nix",
        "--package=x",
        "-cn=nix",
        "--config-dir=nowhere",
        "-cd=/proc",
        "--shell-completion",
    ),
    *("hydra.run.dir=/proc/x", "hydra.run.dir=/dev/null", "hydra.run.dir=.", "hydra.mode=nix", "hydra.mode=MULTIRUN"),
    *("hydra.sweep.dir=/proc/y", "hydra/launcher=nix", "hydra/sweeper=nix", "hydra.verbose=true", "hydra.verbose=nix"),
    *("hydra.job.chdir=true", "hydra.output_subdir=x", "+hydra.foo=1", "hydra.job.name=a/b", "hydra.searchpath=[nix]"),
    *(
        "=",
        "==",
        "a",
        "=1",
        "a=",
        "+",
        "~",
        "++a=1",
        "~a",
        "@",
        "a@b=c",
        "task@x=mt30",
        "é=1",
        "a.b.c=1",
        "",
        "--",
        "-",
    ),
)
_PREFIXES = ("",) * 16 + ("+", "++", "~")


def keys_of(program: str) -> dict[str, tuple[str, ...]]:
    """Every key and group of a program that takes Hydra's overrides, with values of its type to try."""
    from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, ListConfig, OmegaConf

    from tdmpc2.settings.schema import SCHEMAS

    def keys(node: DictConfig, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        for key in map(str, node):
            held = node._get_node(key)
            if isinstance(held, DictConfig):
                yield from keys(held, f"{prefix}{key}.")
                yield f"{prefix}{key}", _TEXTS
            elif isinstance(held, IntegerNode):
                yield f"{prefix}{key}", _INTEGERS
            elif isinstance(held, FloatNode):
                yield f"{prefix}{key}", _NUMBERS
            elif isinstance(held, BooleanNode):
                yield f"{prefix}{key}", ("true", "false")
            else:
                of_lists = isinstance(held, ListConfig) or key == "tasks"
                yield f"{prefix}{key}", _LISTS if of_lists else _TEXTS

    schema = OmegaConf.structured(SCHEMAS[program])
    assert isinstance(schema, DictConfig)
    groups = dict.fromkeys(("planner", "experiment", "model", "logging"), ("fast", "best", "1M", "paper_best", "nix"))
    return {**dict(keys(schema, "")), **groups}


_FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "export": {
        "--task": _TEXTS,
        "--out": _TEXTS,
        **dict.fromkeys(("--horizon", "--iterations", "--num-samples", "--num-elites", "--num-pi-trajs"), _INTEGERS),
        **dict.fromkeys(("--min-std", "--max-std", "--temperature"), _NUMBERS),
        **dict.fromkeys(("--warm-start", "--no-warm-start"), ()),
    },
    "compare": {"--over": ("tasks", "episodes", "x"), "--json": _TEXTS, "--markdown": ()},
    "join": {"--out": _TEXTS, "--label": _TEXTS},
    "import_data": {"--store": _TEXTS, "--task": _TEXTS, "--dtype": ("float16", "x"), "--summary": (), "--verify": ()},
    "download": {"--to": _TEXTS, "--yes": (), "--chunks": _INTEGERS},
    "synthesise": {
        **dict.fromkeys(("--store", "--published", "--task"), _TEXTS),
        **dict.fromkeys(("--episodes", "--seed"), _INTEGERS),
        "--dtype": ("float16", "x"),
    },
}


@dataclass(frozen=True)
class Things:
    """What command lines name: a small store, a checkpoint of a tiny run on it, its evaluation, a published file."""

    store: Path
    checkpoint: Path
    results: Path
    published: Path
    tiny: tuple[str, ...]


def random_command(chance: random.Random, program: str, things: Things) -> list[str]:
    """A command line that works, with one to three things changed."""
    base = {
        "train": [*things.tiny, f"data_dir={things.store}", "steps=3", "device=cpu"],
        "evaluate": [f"checkpoint={things.checkpoint}", "eval_episodes=1", "mpc=false", "num_workers=0", "device=cpu"],
        "quantize": [f"checkpoint={things.checkpoint}", "evaluate=false", "device=cpu"],
        "collect": ["data_dir=mine", *things.tiny[:2], "episodes=1", "num_workers=0", "device=cpu"],
        "label": [
            *(f"data_dir={things.store}", *things.tiny[:2], "teacher=1M", "teacher.random_weights=true"),
            *("teacher.labels=labels", "device=cpu"),
        ],
        "export": [str(things.checkpoint), "--out", "exported"],
        "compare": [str(things.results), str(things.results)],
        "join": [str(things.results), "--out", "joined.json"],
        "import_data": [str(things.published), "--store", "imported"],
        "download": ["data", "mt30", "--yes"],
        "synthesise": ["--store", "made", "--episodes", "30"],
    }[program]
    line = list(base)
    for _ in range(chance.randint(1, 3)):
        line = _changed(chance, program, line, things)
    return line


def _changed(chance: random.Random, program: str, line: list[str], things: Things) -> list[str]:
    paths = tuple(map(str, (things.store, things.checkpoint, things.results, things.published, "nowhere.pt", "mine")))
    anything = (*_INTEGERS, *_NUMBERS, *_TEXTS, *_LISTS, *_ODD, *paths)
    kind = chance.choices(("key", "option", "drop", "odd"), (16, 2, 1, 1))[0]
    if kind == "drop" and line:
        gone = chance.randrange(len(line))
        return line[:gone] + line[gone + 1 :]
    if kind == "odd":
        return [*line, chance.choice(anything)]
    keys = _FLAGS[program] if program in _FLAGS else keys_of(program)
    key = chance.choice(sorted(keys))
    fitting = keys[key] if keys[key] is not _TEXTS or chance.random() < 0.6 else paths
    said = chance.choice(fitting) if fitting and chance.random() < 0.85 else chance.choice(anything)
    if program in _FLAGS:
        return [*line, key, said] if keys[key] or chance.random() < 0.1 else [*line, key]
    if kind == "option":
        return [*line, chance.choice(_OPTIONS)]
    if chance.random() < 0.04:
        key = key + chance.choice(("s", "x", ".x", "_"))
    prefix = chance.choice(_PREFIXES)
    return [*line, f"~{key}" if prefix == "~" else f"{prefix}{key}={said}"]


# -- what is right ----------------------------------------------------------------------------------------------------

_ERROR_LINE = re.compile(r"^(error: |[\w.-]+(\.py)?( \w+)?: error: )")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def fault(program: str, arguments: Sequence[str], ended: Ended) -> str | None:
    """What is wrong with how a command line ended; None if nothing is."""
    text = ended.output + ended.errors
    if "Traceback" in text:
        return "a traceback"
    if ended.code not in (0, 2, 130):
        return f"exit code {ended.code}"
    if _CONTROL.search(text):
        return "control characters"
    lines = ended.errors.splitlines()
    if ended.code == 2:
        told = [line for line in lines if _ERROR_LINE.match(line)]
        if not lines or not _ERROR_LINE.match(lines[-1]):
            return "no error line at the end"
        sweeps = "jobs failed" in lines[-1]
        if len(told) != 1 and not sweeps:
            return f"{len(told)} error lines"
        if len(lines[-1]) > 3_000:
            return "a very long error line"
        began = "step 1" in text or sweeps
        if program == "train" and not began and ended.files:
            return f"left {', '.join(ended.files[:5])}"
    return None


# -- the process that runs them ---------------------------------------------------------------------------------------


def _child(job: dict[str, object]) -> int:
    from tdmpc2.launch import launch

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    os.chdir(str(job["folder"]))
    sys.argv = [f"{job['program']}.py", *map(str, job["arguments"])]  # type: ignore[call-overload]
    try:
        launch(str(job["program"]))
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


def _serve() -> None:
    from importlib import import_module

    for program in PROGRAMS:
        import_module(f"tdmpc2.programs.{program}")
    print("ready", os.getpid(), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                for number, log in enumerate(job["logs"], start=1):
                    with open(log, "wb") as file:  # noqa: PTH123
                        os.dup2(file.fileno(), number)
                with open(os.devnull, "rb") as nothing:  # noqa: PTH123
                    os.dup2(nothing.fileno(), 0)
                sys.stdin = open(0)  # noqa: SIM115
                code = _child(job)
            except BaseException:  # whatever it is, this fork must end here
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print("ended", _ended(pid, job["seconds"]), flush=True)


def _ended(pid: int, seconds: float) -> int:
    """The exit code of a fork, which is asked to stop after a while, and ended by force if it does not."""
    began = time.monotonic()
    asked = False
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        waited = time.monotonic() - began
        if not asked and waited > seconds:
            os.kill(pid, signal.SIGTERM)
            asked = True
        if waited > seconds + STOPPING_SECONDS:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


if __name__ == "__main__":
    _serve()
