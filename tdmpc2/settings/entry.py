"""How the command-line programs start: compose the configuration, run, and print a user's errors as one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import hydra
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tdmpc2.allocation import keep_freed_memory
from tdmpc2.errors import UserError, run_program
from tdmpc2.settings.schema import register_schemas


def _config_dir() -> Path:
    """A clone's own configurations, at its root; else those that an installed package brings along."""
    package = Path(__file__).resolve().parents[1]
    own = package.parent / "config"
    return (
        own if (own / "train.yaml").is_file() and (package.parent / "pyproject.toml").is_file() else package / "config"
    )


CONFIG_DIR = _config_dir()


def hydra_entry(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Makes a function of a configuration into a program.

    A UserError, or a configuration that does not compose, ends it with one line and exit code 2.
    """

    def decorate(function: Callable[[DictConfig], None]) -> Callable[[], None]:
        def guarded(config: DictConfig) -> None:
            def run() -> None:
                try:
                    function(config)
                except torch.OutOfMemoryError as error:
                    reason = str(error).splitlines()[0]
                    raise UserError(f"{reason} Lower batch_size, num_envs or num_samples.") from None

            run_program(run)  # within Hydra, which would add a line of its own

        def compose_and_run() -> None:
            keep_freed_memory()
            register_schemas()
            if not CONFIG_DIR.is_dir():
                raise UserError(f"{CONFIG_DIR} is missing: install the package anew, or run from a whole clone.")
            wants_traceback = "HYDRA_FULL_ERROR" in os.environ
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # or Hydra prints errors itself, in many lines
            try:
                hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(guarded)()
            except (HydraException, OmegaConfBaseException) as error:
                if wants_traceback:
                    raise
                raise UserError(one_line(error)) from None

        return lambda: run_program(compose_and_run)

    return decorate


def one_line(error: Exception) -> str:
    """What Hydra or OmegaConf say about a configuration, without the lines about their own insides."""
    said = str(error).partition("Config search path:")[0].splitlines()
    if isinstance(error.__cause__, OmegaConfBaseException):
        said += str(error.__cause__).splitlines()
    key = next((line.split(":", 1)[1].strip() for line in said if line.strip().startswith("full_key:")), "")
    # Typed configurations take no key that is not theirs, so "+key" is no advice here.
    insides = ("To append to your config", "full_key:", "object_type=", "reference_type=")
    said = [line for line in said if line.strip() and not line.strip().startswith(insides)]
    options = [line.strip() for line in said if line.startswith("\t")]
    text = [line.strip().rstrip(".") for line in said if not line.startswith("\t")]
    line = ": ".join(dict.fromkeys(text)).replace("::", ":") + (" " + ", ".join(options) if options else "")
    return line if key in line else f"{key}: {line}"


def set_matmul_precision(name: str) -> None:
    """How float32 products are computed: highest (float32), high (TF32) or medium (bfloat16), as torch names them."""
    if name not in ("highest", "high", "medium"):
        raise UserError(f"matmul_precision={name} is unknown; choose highest, high or medium.")
    torch.set_float32_matmul_precision(name)
