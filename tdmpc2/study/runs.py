"""Runs as their folders hold them: settings, what started them, evaluations; no logging service is asked."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tdmpc2.errors import UserError, printable, system_reason
from tdmpc2.evaluation.results import EvaluationResult, load_json
from tdmpc2.jsontext import parse_json
from tdmpc2.reporting.sinks import JSONL_NAME, metric_series, read_metrics
from tdmpc2.training.ending import EVALUATION_NAME
from tdmpc2.training.outputs import CONFIG_NAME
from tdmpc2.training.provenance import RUN_NAME
from tdmpc2.training.resuming import CHECKPOINTS

_STEM = EVALUATION_NAME.removesuffix(".json")
_PRIOR = "-prior"
_ADDED = "hydra.job.config.override_dirname.exclude_keys="
"""An argument that the program gives itself (settings/entry.py): no part of what a user typed."""


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
        training_minutes: from the last start to the last update; None where it has not ended.
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
    training_minutes: float | None
    evaluations: Mapping[tuple[str, bool], EvaluationResult]
    notes: tuple[str, ...] = field(default=())

    def bytes_of(self, scheme: str | None) -> int | None:
        """Of the final student's file, by a scheme; None where it is not there."""
        name = "final" if scheme is None else f"final-{scheme}"
        try:
            return (self.folder / CHECKPOINTS / f"{name}.safetensors").stat().st_size
        except OSError:
            return None

    def series(self, metric: str, category: Any = "train") -> list[tuple[int, float]]:
        """(step, value) of a logged metric; empty where the log cannot be read."""
        try:
            return metric_series(read_metrics(self.folder), metric, category)
        except (UserError, OSError):
            return []


@dataclass(frozen=True)
class Gathering:
    """The runs found, and what of the folders could not be taken: lines that name each file."""

    runs: tuple[Run, ...]
    notes: tuple[str, ...]


def gather(folders: Iterable[Path]) -> Gathering:
    """Every run in the folders and below them, in the order of their paths.

    Of several runs that are the same by task set, scale, variant, arm and seed, one with a final evaluation is taken,
    and a note names the others.

    Raises:
        UserError: when there is none, or a folder is missing.
    """
    found: dict[Path, Run] = {}
    notes: list[str] = []
    given = list(folders)
    for folder in given:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give folders of runs, such as logs/quickstart.")
        for path in sorted(folder.rglob(CONFIG_NAME)):
            try:
                run = read_run(path.parent)
            except UserError as error:
                notes.append(f"left out: {error}")
                continue
            if run is not None:
                found[run.folder.resolve()] = run
    if not found:
        shown = ", ".join(map(str, given))
        more = f" {notes[0]}" if notes else ""
        raise UserError(
            f"{shown}: no runs here (folders with {CONFIG_NAME}); train some first, or check the path.{more}"
        )
    runs, twice = _each_once(list(found.values()))
    return Gathering(tuple(runs), tuple(dict.fromkeys(notes + twice)))


def _each_once(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """One run for each place in a study, and notes on the others."""
    kept: dict[tuple[object, ...], Run] = {}
    notes = []
    for run in runs:
        place = (run.task_set, run.scale, run.variant, run.arm, run.seed)
        held = kept.setdefault(place, run)
        if held is run:
            continue
        if _FINAL not in held.evaluations and _FINAL in run.evaluations:
            kept[place], run, held = run, held, run
        notes.append(f"left out: {run.folder} is the same arm and seed as {held.folder}; remove or rename one.")
    return list(kept.values()), notes


_FINAL = ("final", True)


def read_run(folder: Path) -> Run | None:
    """The run in a folder; None where its configuration is not that of a run.

    Raises:
        UserError: for a configuration that cannot be read.
    """
    notes: list[str] = []
    config = _json(folder / CONFIG_NAME)
    task = config.get("task") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(task, dict) or type(config.get("seed")) is not int:
        if (folder / RUN_NAME).is_file():
            raise UserError(f"{folder / CONFIG_NAME} is not a run's configuration: it needs 'seed' and 'task'.")
        return None
    scale, _, arm = str(config.get("exp_name", folder.name)).rpartition("/")
    evaluations: dict[tuple[str, bool], EvaluationResult] = {}
    for path in sorted(folder.glob(f"{_STEM}*.json")):
        what = path.stem.removeprefix(_STEM).removeprefix("-")
        planned = not f"-{what}".endswith(_PRIOR)
        what = f"-{what}".removesuffix(_PRIOR).strip("-") or "final"
        try:
            evaluations[what, planned] = load_json(path)
        except UserError as error:
            notes.append(str(error))
    record: Any = None
    try:
        record = _json(folder / RUN_NAME)
    except UserError as error:
        notes.append(str(error))
    starts, rate, minutes = _record(record)
    final = evaluations.get(_FINAL)
    return Run(
        folder=folder,
        scale=printable(scale),
        arm=printable(arm),
        variant=printable(_variant(folder, scale, arm)),
        task_set=printable(task.get("name")),
        tasks=() if final is None else final.tasks,
        seed=config["seed"],
        steps=_count(config.get("steps")),
        batch_size=_count(config.get("batch_size")),
        configuration=config,
        starts=starts,
        updates_per_second=rate,
        training_minutes=minutes,
        evaluations=evaluations,
        notes=tuple(notes + _log_notes(folder)),
    )


def _log_notes(folder: Path) -> list[str]:
    """Whether there is a log of which no line can be read."""
    path = folder / JSONL_NAME
    try:
        if path.is_file() and path.stat().st_size and not read_metrics(folder):
            return [f"{path}: no line of it can be read; the run has no learning curve here."]
    except (UserError, OSError) as error:
        return [str(error)]
    return []


def _record(content: Any) -> tuple[tuple[Start, ...], float | None, float | None]:
    """What `run.json` says: starts, updates a second, minutes; what is not as it should be counts as not said."""
    if not isinstance(content, dict):
        return (), None, None
    given = content.get("starts")
    each = [start for start in (given if isinstance(given, list) else ()) if isinstance(start, dict)]
    ended = content.get("ended")
    if not isinstance(ended, dict):
        return tuple(map(_start, each)), None, None
    rate = ended.get("updates_per_second")
    known = float(rate) if isinstance(rate, int | float) and not isinstance(rate, bool) else None
    return tuple(map(_start, each)), known, _minutes(each, ended.get("at"))


def _minutes(starts: Sequence[Mapping[str, Any]], end: object) -> float | None:
    """From the last start to the end."""
    try:
        began, ended = (datetime.fromisoformat(str(time)) for time in (starts[-1].get("began"), end))
        minutes = (ended - began).total_seconds() / 60
    except (IndexError, ValueError, TypeError):
        return None
    return minutes if minutes >= 0 else None


def _start(given: dict[str, Any]) -> Start:
    machine, versions = ({} if not isinstance(given.get(k), dict) else given[k] for k in ("machine", "versions"))
    command = given.get("command")
    return Start(
        command=shlex.join(str(c) for c in command if not str(c).startswith(_ADDED))
        if isinstance(command, list)
        else "",
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
    """The content of a JSON file; None where there is no such file. Raises a `UserError` that names it otherwise."""
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: {system_reason(error)}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {printable(error)}.") from None
