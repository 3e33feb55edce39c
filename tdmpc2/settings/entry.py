"""How the command-line programs start: compose the configuration, run, and print errors of the user's as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from tdmpc2.errors import UserError
from tdmpc2.settings.schema import register_schemas

CONFIG_DIR = Path(__file__).resolve().parents[2] / "config"


def hydra_entry(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Makes a function of a configuration into a program; a UserError ends it with one line and exit code 2."""

    def decorate(function: Callable[[DictConfig], None]) -> Callable[[], None]:
        def guarded(config: DictConfig) -> None:
            try:
                function(config)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                raise SystemExit(2) from None

        def program() -> None:
            register_schemas()
            if not CONFIG_DIR.is_dir():
                print(f"error: {CONFIG_DIR} is missing: run from a clone of the repository.", file=sys.stderr)
                raise SystemExit(2)
            hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(guarded)()

        return program

    return decorate


def set_matmul_precision(name: str) -> None:
    """How float32 products are computed: highest (float32), high (TF32) or medium (bfloat16), as torch names them."""
    if name not in ("highest", "high", "medium"):
        raise UserError(f"matmul_precision={name} is unknown; choose highest, high or medium.")
    torch.set_float32_matmul_precision(name)
