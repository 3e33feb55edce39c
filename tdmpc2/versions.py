"""Versions of what a program's numbers depend on, read without importing any of it."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

PACKAGES = ("torch", "numpy", "mujoco", "dm_control", "gymnasium", "tdmpc2")


def package_versions() -> dict[str, str]:
    """Python's version and those of `PACKAGES`, torch's with its build; "not installed" where there is none."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = _torch_version() if package == "torch" else version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _torch_version() -> str:
    """As `torch.__version__`: the registry's packages leave the build (cpu, cu130) out of their own version."""
    said = Path(str(distribution("torch").locate_file("torch/version.py")))
    text = said.read_text(encoding="utf-8") if said.is_file() else ""
    found = re.search(r"^__version__ = ['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return found[1] if found else version("torch")
