"""How a function of a configuration becomes a program: Hydra composes, keys are checked, sweeps go on past failures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tdmpc2.errors import UserError, as_user_error
from tdmpc2.places import CONFIG_DIR
from tdmpc2.settings.checks import check_hydra_keys, check_known, keys_of, one_line, schema_of
from tdmpc2.settings.jobs import Jobs, OnSweep, remove_empty
from tdmpc2.settings.launchers import register_launchers
from tdmpc2.settings.schema import IN_PATH, NOT_IN_NAMES, TEXT_KEYS, register_schemas


def hydra_entry(config_name: str) -> Callable[[Callable[[DictConfig], float | None]], Callable[[], None]]:
    """Makes a function of a configuration into a program's main function.

    It raises a UserError for a configuration that does not compose or has a key that the program does not know.
    In a sweep a job that fails does not end the others: its error is shown when it comes, and again at the end. What
    the function returns, a score, is for Hydra's sweepers.
    """

    def decorate(function: Callable[[DictConfig], float | None]) -> Callable[[], None]:
        def main() -> None:
            register_schemas()
            if not CONFIG_DIR.is_dir():
                raise UserError(f"{CONFIG_DIR} is missing: run from a clone of the repository, or install the package.")
            check_hydra_keys(sys.argv[1:])
            command = _Command(sys.argv[1:])
            sys.argv[1:] = command.arguments
            jobs = Jobs.current = Jobs(config_name, function, command.varied)
            wants_traceback = "HYDRA_FULL_ERROR" in os.environ
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # or Hydra prints errors itself, in many lines
            ended: BaseException | None = None
            try:
                hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(jobs)()
            except (Exception, KeyboardInterrupt, SystemExit) as error:  # of Hydra: those of jobs are kept by `jobs`
                ended = error
            try:
                jobs.finish(ended)
            except Exception as error:
                if error is not ended:
                    raise
                if isinstance(error, OSError) and isinstance(error.filename, str):  # a job's folder, made in part
                    remove_empty(Path(error.filename).absolute().parent)
                told = as_user_error(error)
                if wants_traceback or told is error:
                    raise
                raise told or UserError(one_line(error, tuple(keys_of(schema_of(config_name))))) from None

        return main

    return decorate


def composed(program: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration that a program gets from a command line, for a program that starts it, or asks.

    Raises:
        UserError: where the program would not take it.
    """
    register_schemas()
    try:
        within = GlobalHydra.instance().is_initialized()  # in a program of `hydra_entry`, which has this tree open
        tree = nullcontext() if within else hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR))
        with tree:
            config = hydra.compose(config_name=program, overrides=_Command(overrides).arguments)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error, tuple(keys_of(schema_of(program))))) from None
    check_known(config, program)
    return config


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
        parser = OverridesParser.create()
        self.arguments = [_quoted(_rows(argument, sweeps), parser, sweeps) for argument in given]
        self.varied = frozenset(_varied(self.arguments, parser)) if sweeps else frozenset()
        if sweeps:
            left_out = ",".join([*IN_PATH, *(key for key in NOT_IN_NAMES if key not in self.varied)])
            self.arguments.append(f"hydra.job.config.override_dirname.exclude_keys=[{left_out}]")
            self.arguments.append(f"+hydra.callbacks.jobs._target_={OnSweep.__module__}.{OnSweep.__name__}")
            register_launchers(given)


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


def be_deterministic(chosen: bool) -> None:
    """Deterministic operations alone from now on, or any; before CUDA starts.

    An operation that has no deterministic form is told in a warning, by its name, and runs all the same.
    """
    if chosen:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(chosen, warn_only=chosen)  # a sweep may hold jobs of both kinds


def set_matmul_precision(name: str) -> None:
    """How float32 products are computed: highest (float32), high (TF32) or medium (bfloat16), as torch names them."""
    if name not in ("highest", "high", "medium"):
        raise UserError(f"matmul_precision={name} is unknown; choose highest, high or medium.")
    torch.set_float32_matmul_precision(name)
