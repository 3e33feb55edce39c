"""Where the files lie that come along with the package: at the root of a clone, inside the package where installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
INSTALLED = (PACKAGE / "config").is_dir()
"""Whether a wheel brought this package: its `config/` and `checkpoints/` are inside (pyproject.toml puts them there).

They are looked for nowhere else then: beside an installed package may lie some other project's `config`.
"""
ROOT = PACKAGE if INSTALLED else PACKAGE.parent
CONFIG_DIR = ROOT / "config"
"""The Hydra tree."""
CHECKPOINTS = ROOT / "checkpoints"
"""The bundled checkpoints, which make the embedded data."""
