"""How a function of a configuration becomes a program: Hydra composes, keys are checked, sweeps go on past failures."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tdmpc2.errors import UserError, as_user_error, printable
from tdmpc2.settings.schema import IN_PATH, NOT_IN_NAMES, SCHEMAS, TEXT_KEYS, register_schemas

_IN_CLONE = Path(__file__).resolve().parents[2] / "config"
_IN_PACKAGE = Path(__file__).resolve().parents[1] / "config"
# Beside an installed package may lie some other project's `config`.
CONFIG_DIR = _IN_CLONE if (_IN_CLONE.parent / "pyproject.toml").is_file() else _IN_PACKAGE
"""The Hydra tree: the clone's, or the one that an installed package brings along."""
_QUOTING = "quote a value that holds spaces, commas, '=', brackets or letters beyond ASCII: \"key='value'\""


def hydra_entry(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Makes a function of a configuration into a program's main function.

    It raises a UserError for a configuration that does not compose or has a key that the program does not know.
    In a sweep a job that fails does not end the others: its error is shown when it comes, and again at the end.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def main() -> None:
            register_schemas()
            if not CONFIG_DIR.is_dir():
                raise UserError(f"{CONFIG_DIR} is missing: run from a clone of the repository, or install the package.")
            _check_hydra_keys(sys.argv[1:])
            command = _Command(sys.argv[1:])
            sys.argv[1:] = command.arguments
            jobs = _Jobs(config_name, function, command.varied)
            wants_traceback = "HYDRA_FULL_ERROR" in os.environ
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # or Hydra prints errors itself, in many lines
            try:
                hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(jobs)()
            except Exception as error:  # of Hydra: those of jobs are kept by `jobs`
                if isinstance(error, OSError) and isinstance(error.filename, str):  # a job's folder, made in part
                    _remove_empty(Path(error.filename).absolute().parent)
                told = as_user_error(error)
                if wants_traceback or told is error:
                    raise
                raise told or UserError(one_line(error, tuple(_keys(_schema(config_name))))) from None
            jobs.finish()

        return main

    return decorate


class _Jobs:
    """What Hydra calls for every job: keeps a job's error from Hydra, which would add lines of its own."""

    def __init__(self, program: str, function: Callable[[DictConfig], Any], varied: frozenset[str]) -> None:
        self._program = program
        self._function = function
        self._varied = varied
        self._error: Exception | None = None
        self._failed: list[str] = []
        self._folders: set[str] = set()
        self._count = 0

    def __call__(self, config: DictConfig) -> None:
        self._count += 1
        try:
            check_known(config, self._program)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                self._claim(HydraConfig.get().runtime.output_dir)
            self._function(config)
        except Exception as raised:
            error = raised
            if isinstance(raised, OmegaConfBaseException):  # a value that needs another one that is not there
                error = UserError(one_line(raised))
            _remove_empty(Path(HydraConfig.get().runtime.output_dir))
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                self._error = error
                return
            told = as_user_error(error)
            if told is None:
                traceback.print_exc()
            chosen = [o for o in HydraConfig.get().overrides.task if o.partition("=")[0] in self._varied]
            name = f"job {HydraConfig.get().job.num} ({' '.join(chosen)})"
            self._failed.append(printable(f"{name}: {told or type(error).__name__}", limit=2_000))
            print(f"error: {self._failed[-1]}", file=sys.stderr)

    def _claim(self, folder: str) -> None:
        """Refuses a folder of a sweep to all but one job; programs without folders for jobs run in the working one."""
        if folder in self._folders and Path(folder) != Path.cwd():
            raise UserError(f"{folder}: another job of this sweep has this folder; vary exp_name or task.name with it.")
        self._folders.add(folder)

    def finish(self) -> None:
        """Raises what a single run ended with, or a `UserError` that names a sweep's failed jobs."""
        if self._error is not None:
            raise self._error
        if self._failed:
            print("\n".join(self._failed), file=sys.stderr)
            raise UserError(f"{len(self._failed)} of {self._count} jobs failed; the same command goes on with them.")


def _remove_empty(folder: Path) -> None:
    """Removes the folder that Hydra made for a job that failed before it wrote anything, and empty ones above it."""
    here = Path.cwd()
    while folder not in (here, *here.parents):
        try:
            folder.rmdir()
        except OSError:  # it holds something, or is not this process's to remove
            return
        folder = folder.parent


# -- keys --------------------------------------------------------------------------------------------------------------


def _schema(program: str) -> DictConfig:
    schema = OmegaConf.structured(SCHEMAS[program])
    assert isinstance(schema, DictConfig)
    return schema


def _keys(schema: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all that can be set."""
    for key in map(str, schema):
        node = schema._get_node(key)
        if isinstance(node, DictConfig):
            yield from _keys(node, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def check_known(config: DictConfig, program: str) -> None:
    """Raises a `UserError` for a key that was added to (`+key`) or taken from (`~key`) what the program knows."""
    schema = _schema(program)
    known = set(_keys(schema))
    found = set(_keys(config))
    strange = sorted(found - known)
    if strange:
        key = strange[0]
        raise UserError(f"+{printable(key)}: this program has no such key{_nearest(key, sorted(known))}")
    removed = sorted(known - found)
    if removed:
        raise UserError(f"~{removed[0]}: the program needs this key; set another value instead of removing it.")
    empty = sorted(OmegaConf.missing_keys(config) - OmegaConf.missing_keys(schema))
    if empty:
        raise UserError(f"{empty[0]} has no value: give {empty[0]}=… on the command line.")


def _check_hydra_keys(arguments: Sequence[str]) -> None:
    """Raises a `UserError` for a setting that Hydra itself does not know: with a + it takes any."""
    for argument in arguments:
        first, *parts = argument.partition("=")[0].lstrip("+").split(".")
        if not argument.startswith("+") or first != "hydra":
            continue
        kind: Any = HydraConf
        for part in parts:
            if not is_dataclass(kind):  # what plug-ins define
                break
            types = {field.name: field.type for field in fields(kind)}
            if part not in types:
                raise UserError(f"{printable(argument)}: Hydra has no such setting; --hydra-help tells what it has.")
            kind = types[part]


def _nearest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:  # 'foo.lr' for 'lr', 'random' for 'teacher.random_weights'
        close = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return f"; did you mean {close[0]}?" if close else "; --help shows all keys."


def one_line(error: Exception, known: Sequence[str] = ()) -> str:
    """What Hydra or OmegaConf say about a configuration, without the lines about their insides.

    `known` are the keys to offer where one is not known.
    """
    said = str(error).partition("Config search path:")[0].splitlines()
    if isinstance(error.__cause__, OmegaConfBaseException):
        said += str(error.__cause__).splitlines()
    key = next((line.split(":", 1)[1].strip() for line in said if line.strip().startswith("full_key:")), "")
    # Typed configurations take no key that is not theirs, so "+key" is no advice here.
    insides = ("To append to your config", "full_key:", "object_type=", "reference_type=", "See https://")
    said = [line for line in said if line.strip() and not line.strip().startswith(insides)]
    options = [line.strip() for line in said if line.startswith("\t")]
    text = [line.strip().rstrip(".") for line in said if not line.startswith("\t")]
    line = ": ".join(dict.fromkeys(text)).replace("::", ":") + (" " + ", ".join(options) if options else "")
    if not isinstance(error, HydraException | OmegaConfBaseException):
        line = f"{type(error).__name__}: {line}" if line else type(error).__name__
    if "Could not override '" in line and known:
        wrong = line.partition("Could not override '")[2].partition("'")[0]
        line += _nearest(wrong, known)
    if isinstance(error, OverrideParseException):
        line += f"; {_QUOTING}"
    return line if key in line else f"{key}: {line}"


# -- paths -------------------------------------------------------------------------------------------------------------


class _Command:
    """A command line as Hydra is to get it.

    Paths and names get quotes where Hydra's grammar would not take them, or not as text: they hold `=`, commas, spaces
    and letters beyond ASCII, and a shell has removed the quotes that a user wrote. In a sweep a comma means a choice,
    and such a path must be quoted for Hydra.

    Attributes:
        varied: keys that have several values, in a sweep; they are in the names of its folders.
        arguments: the command line.
    """

    def __init__(self, given: Sequence[str]) -> None:
        sweeps = any(argument in ("-m", "--multirun", "hydra.mode=MULTIRUN") for argument in given)
        given = [_rows(argument, sweeps) for argument in given]
        parser = OverridesParser.create()
        self.arguments = [_quoted(argument, parser, sweeps) for argument in given]
        self.varied = frozenset(_varied(self.arguments, parser)) if sweeps else frozenset()
        if sweeps:
            left_out = ",".join([*IN_PATH, *(key for key in NOT_IN_NAMES if key not in self.varied)])
            self.arguments.append(f"hydra.job.config.override_dirname.exclude_keys=[{left_out}]")


def _rows(argument: str, sweeps: bool) -> str:
    """`experiment=table1` as the choice of all rows of that table: the files in its folder of the Hydra tree."""
    key, _, value = argument.partition("=")
    folder = CONFIG_DIR / key / value
    if key != "experiment" or not value or not folder.is_dir():
        return argument
    rows = sorted(f"{value}/{path.stem}" for path in folder.glob("*.yaml"))
    if not sweeps:
        raise UserError(f"experiment={value} has {len(rows)} rows: add -m to run them all, or choose one: {rows[0]}, …")
    return f"{key}={','.join(rows)}"


def _varied(arguments: Sequence[str], parser: OverridesParser) -> Iterator[str]:
    """Keys that have several values on the command line of a sweep."""
    for argument in arguments:
        try:
            override = parser.parse_override(argument)
        except HydraException:  # an option of Hydra's, or a mistake that Hydra tells
            continue
        if override.is_sweep_override():
            yield override.get_key_element()


def _quoted(argument: str, parser: OverridesParser, sweeps: bool) -> str:
    key, equals, value = argument.partition("=")
    if not equals or key.lstrip("+") not in TEXT_KEYS or not value:
        return argument
    try:
        override = parser.parse_override(argument)
        plain = not isinstance(override.value(), list | dict) and (sweeps or not override.is_sweep_override())
    except HydraException:
        plain = sweeps and "," in value  # perhaps a choice: Hydra says what is wrong with it
    if plain:
        return argument
    escaped = value.replace("\\", "\\\\").replace("'", "\\'") if "'" in value else value
    return f"{key}='{escaped}'"


def set_matmul_precision(name: str) -> None:
    """How float32 products are computed: highest (float32), high (TF32) or medium (bfloat16), as torch names them."""
    if name not in ("highest", "high", "medium"):
        raise UserError(f"matmul_precision={name} is unknown; choose highest, high or medium.")
    torch.set_float32_matmul_precision(name)
