"""Runs as their folders hold them: settings, what started them, evaluations; no logging service is asked."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdmpc2.errors import UserError
from tdmpc2.evaluation.results import EvaluationResult, load_json
from tdmpc2.jsontext import parse_json
from tdmpc2.reporting.sinks import metric_series, read_metrics
from tdmpc2.training.ending import EVALUATION_NAME
from tdmpc2.training.outputs import CONFIG_NAME
from tdmpc2.training.provenance import RUN_NAME
from tdmpc2.training.resuming import CHECKPOINTS

_STEM = EVALUATION_NAME.removesuffix(".json")
_PRIOR = "-prior"


@dataclass(frozen=True)
class Start:
    """What started a run, in words; `commit` ends in + where tracked files differed from it."""

    command: str
    commit: str
    machine: str
    versions: str


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: where it lies.
        scale, arm: of its exp_name `<scale>/<arm>`; a run of another name has no scale.
        variant: what a sweep varied beside the seed; empty for none.
        task_set, tasks, seed, steps, batch_size: of its configuration.
        configuration: all of it.
        starts: what started it, each time; empty for a run of an earlier version.
        updates_per_second: of the start that ended it; None where it has not ended.
        evaluations: by (checkpoint or scheme, whether planned); the final student is `final`.
        notes: files that could not be read.
    """

    folder: Path
    scale: str
    arm: str
    variant: str
    task_set: str
    tasks: tuple[str, ...]
    seed: int
    steps: int
    batch_size: int
    configuration: Mapping[str, Any]
    starts: tuple[Start, ...]
    updates_per_second: float | None
    evaluations: Mapping[tuple[str, bool], EvaluationResult]
    notes: tuple[str, ...] = field(default=())

    def bytes_of(self, scheme: str | None) -> int | None:
        """Of the final student's file, by a scheme; None where it is not there."""
        name = "final" if scheme is None else f"final-{scheme}"
        path = self.folder / CHECKPOINTS / f"{name}.safetensors"
        return path.stat().st_size if path.is_file() else None

    def series(self, metric: str, category: Any = "train") -> list[tuple[int, float]]:
        """(step, value) of a logged metric; empty where the log cannot be read."""
        try:
            return metric_series(read_metrics(self.folder), metric, category)
        except (UserError, OSError):
            return []


def gather(folders: Iterable[Path]) -> list[Run]:
    """Every run in the folders and below them, in the order of their paths.

    Raises:
        UserError: when there is none, or a folder is missing.
    """
    found: dict[Path, Run] = {}
    given = list(folders)
    for folder in given:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give folders of runs, such as logs/quickstart.")
        for path in sorted(folder.rglob(CONFIG_NAME)):
            run = read_run(path.parent)
            if run is not None:
                found[run.folder.resolve()] = run
    if not found:
        shown = ", ".join(map(str, given))
        raise UserError(f"{shown}: no runs here (folders with {CONFIG_NAME}); train some first, or check the path.")
    return list(found.values())


def read_run(folder: Path) -> Run | None:
    """The run in a folder; None where its configuration is not that of a run."""
    config = _json(folder / CONFIG_NAME)
    task = config.get("task") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(task, dict) or not isinstance(config.get("seed"), int):
        return None
    scale, _, arm = str(config.get("exp_name", folder.name)).rpartition("/")
    evaluations: dict[tuple[str, bool], EvaluationResult] = {}
    notes = []
    for path in sorted(folder.glob(f"{_STEM}*.json")):
        what = path.stem.removeprefix(_STEM).removeprefix("-")
        planned = not f"-{what}".endswith(_PRIOR)
        what = f"-{what}".removesuffix(_PRIOR).strip("-") or "final"
        try:
            evaluations[what, planned] = load_json(path)
        except UserError as error:
            notes.append(str(error))
    starts, rate = _record(_json(folder / RUN_NAME))
    final = evaluations.get(("final", True))
    return Run(
        folder=folder,
        scale=scale,
        arm=arm,
        variant=_variant(folder, scale, arm),
        task_set=str(task.get("name")),
        tasks=() if final is None else final.tasks,
        seed=config["seed"],
        steps=_count(config.get("steps")),
        batch_size=_count(config.get("batch_size")),
        configuration=config,
        starts=starts,
        updates_per_second=rate,
        evaluations=evaluations,
        notes=tuple(notes),
    )


def _record(content: Any) -> tuple[tuple[Start, ...], float | None]:
    """What `run.json` says; whatever of it is not as it should be counts as not said."""
    if not isinstance(content, dict):
        return (), None
    given = content.get("starts")
    starts = [_start(start) for start in (given if isinstance(given, list) else ()) if isinstance(start, dict)]
    ended = content.get("ended")
    rate = ended.get("updates_per_second") if isinstance(ended, dict) else None
    return tuple(starts), float(rate) if isinstance(rate, int | float) else None


def _start(given: dict[str, Any]) -> Start:
    machine, versions = ({} if not isinstance(given.get(k), dict) else given[k] for k in ("machine", "versions"))
    command = given.get("command")
    return Start(
        command=shlex.join(map(str, command)) if isinstance(command, list) else "",
        commit=str(given.get("commit") or "")[:8] + ("+" if given.get("dirty") else ""),
        machine=f"{machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('device')}",
        versions=", ".join(f"{name} {versions.get(name)}" for name in ("torch", "mujoco", "dm_control")),
    )


def _variant(folder: Path, scale: str, arm: str) -> str:
    """What stands between the arm's folder and the seed's: a sweep's other keys."""
    parts = folder.parts[:-1]
    return "" if not parts or parts[-1] == arm or arm not in parts else parts[-1]


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _json(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
