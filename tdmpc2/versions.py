"""Versions of what a program's numbers depend on, read without importing any of it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "numpy", "mujoco", "dm_control", "gymnasium", "tdmpc2")


def package_versions() -> dict[str, str]:
    """Python's version and those of `PACKAGES`; "not installed" where there is none."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
