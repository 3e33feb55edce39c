"""Imports point one way: a package knows those before it in this order, and none behind it."""

from __future__ import annotations

import ast
from pathlib import Path

import tdmpc2

PACKAGE = Path(tdmpc2.__file__).parent
# As the table in docs/architecture.md; those of one line know nothing of each other.
ORDER: tuple[tuple[str, ...], ...] = (
    ("errors", "places"),
    ("ranges", "versions", "allocation", "console"),
    ("fileio", "jsontext", "archive"),
    ("memory", "locks", "keys"),
    ("tasks",),
    ("execution",),
    ("envs", "model"),
    ("quantisation",),
    ("checkpointing",),
    ("data",),
    ("calibration",),
    ("reporting",),
    ("planner", "pretrained"),
    ("agent",),
    ("objectives",),
    ("losses", "extraction"),
    ("distillation", "rollout"),
    ("evaluation", "play"),
    ("online",),
    ("training", "embedded"),
    ("export", "study"),
    ("settings",),
    ("programs",),
    ("launch",),
    ("train", "evaluate"),
)
PLACE = {name: place for place, names in enumerate(ORDER) for name in names}


def imported(path: Path) -> set[str]:
    """The packages of this project that a file imports, wherever in it, but for types alone."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            names = [node.module] if node.module != "tdmpc2" else [f"tdmpc2.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if id(node) not in for_types:
            found |= {name.split(".")[1] for name in names if name.startswith("tdmpc2.")}
    return found


def test_imports_point_one_way() -> None:
    climbs = []
    for path in sorted(PACKAGE.rglob("*.py")):
        package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if package in ("__init__", "config"):  # the second stands in for the folder config/
            continue
        assert package in PLACE, f"{package} has no place in the order; add it to docs/architecture.md and here"
        for other in imported(path) - {package}:
            if PLACE[other] >= PLACE[package]:
                climbs.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not climbs, climbs


def test_the_order_is_that_of_the_packages() -> None:
    there = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    there -= {"__init__", "__pycache__", "config", "checkpoints", "py.typed"}
    assert there <= PLACE.keys()
