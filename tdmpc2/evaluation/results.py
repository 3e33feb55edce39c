"""What one evaluation found, episode by episode, and how to read it again years later.

A results file is JSON: {"format", "schema", "label", "task_set", "tasks", "episodes": [{"task", "episode",
"seed", "episode_return", "length"}], "configuration", "versions", "machine", "wall_seconds", "decisions",
"summary"}. The summary is for human readers: it is worked out again from the episodes on loading. A number
that is not finite is null, since JSON has no other word for it.
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tdmpc2.errors import UserError, printable
from tdmpc2.evaluation.scores import EpisodeKey, NormalisedScore, score_with_interval, task_statistics
from tdmpc2.fileio import atomic_file, atomic_write_text
from tdmpc2.jsontext import parse_json
from tdmpc2.reporting.tables import Style, format_table
from tdmpc2.tasks import TASK_SETS
from tdmpc2.versions import package_versions

FORMAT = "tdmpc2-evaluation"
SCHEMA = 1
"""Raised by one whenever older programs could no longer read the file."""
_LARGEST = 1e300
_LARGEST_WHOLE = 1 << 127


@dataclass(frozen=True)
class EpisodeResult:
    """One evaluated episode: `episode` counts from 0 within its task, `length` is in decisions."""

    task: str
    episode: int
    seed: int
    episode_return: float
    length: int


@dataclass(frozen=True)
class Machine:
    """Where an evaluation ran."""

    cpu: str
    cores: int
    device: str


@dataclass(frozen=True)
class EvaluationResult:
    """One evaluation of one agent on a task set.

    `tasks` are in the order of the set; every task has at least one episode and no episode is there twice,
    else a `UserError`. `wall_seconds` is the time of the episodes alone, `decisions` their number over all
    episodes.
    """

    label: str
    task_set: str
    tasks: tuple[str, ...]
    episodes: tuple[EpisodeResult, ...]
    configuration: Mapping[str, Any]
    machine: Machine
    wall_seconds: float
    decisions: int
    versions: Mapping[str, str] = field(default_factory=package_versions)

    def __post_init__(self) -> None:
        seen: set[EpisodeKey] = set()
        for episode in self.episodes:
            key = (episode.task, episode.episode, episode.seed)
            if episode.task not in self.tasks:
                raise UserError(f"an episode is of task '{printable(episode.task)}', which 'tasks' does not name.")
            if key in seen:
                raise UserError(f"episode {key[1]} (seed {key[2]}) of task '{printable(key[0])}' is there twice.")
            seen.add(key)
        empty = set(self.tasks) - {episode.task for episode in self.episodes}
        if empty or not self.tasks:
            raise UserError(f"no episode of {printable(', '.join(sorted(empty)) or 'any task')}; every task needs one.")
        if len(set(self.tasks)) != len(self.tasks):
            raise UserError(f"'tasks' names a task twice: {printable(', '.join(self.tasks))}.")

    def returns(self) -> dict[str, list[float]]:
        """Episode returns (0..1000) by task, tasks in the order of the set."""
        returns: dict[str, list[float]] = {task: [] for task in self.tasks}
        for episode in self.episodes:
            returns[episode.task].append(episode.episode_return)
        return returns

    def returns_by_key(self) -> dict[EpisodeKey, float]:
        """Episode returns by (task, episode, seed), to pair with another evaluation's."""
        return {(e.task, e.episode, e.seed): e.episode_return for e in self.episodes}

    def score(self) -> NormalisedScore:
        """Normalised score (0..100) with its 95% bootstrap interval over episodes."""
        return score_with_interval(self.returns())

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Writes the results file, whole or not at all."""
        score = self.score()
        content = {
            "format": FORMAT,
            "schema": SCHEMA,
            **asdict(self),
            "summary": {
                "normalised_score": score.value,
                "interval_95": [score.interval.low, score.interval.high] if score.interval else None,
                "interval_note": score.interval_note,
                "tasks": {task: asdict(stats) for task, stats in task_statistics(self.returns()).items()},
            },
        }
        atomic_write_text(path, json.dumps(finite_or_null(content), indent=1, allow_nan=False) + "\n")

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes one row per episode, whole or not at all."""
        with atomic_file(path, "w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([column.name for column in fields(EpisodeResult)])
            writer.writerows([e.task, e.episode, e.seed, e.episode_return, e.length] for e in self.episodes)


def load_json(path: str | os.PathLike[str]) -> EvaluationResult:
    """Reads a results file. Raises a `UserError` naming the file and the first key that is not as it should
    be."""
    name = os.fspath(path)
    content = _read(name)
    if content.get("format") != FORMAT:
        found = reprlib.repr(content.get("format"))
        raise UserError(f"{name} is not a results file of this program: 'format' is {found}, expected '{FORMAT}'.")
    if content.get("schema") != SCHEMA:
        raise UserError(
            f"{name} has schema {reprlib.repr(content.get('schema'))}, this program reads schema {SCHEMA}; "
            "evaluate again or use the version of tdmpc2 that wrote it."
        )
    reader = _Reader(name, content, "")
    episodes = []
    for index, item in enumerate(reader.take("episodes", list)):
        entry = _Reader(name, item, f"episodes[{index}].")
        episodes.append(
            EpisodeResult(
                task=entry.take("task", str),
                episode=entry.count("episode"),
                seed=entry.take("seed", int),
                episode_return=entry.number("episode_return"),
                length=entry.count("length"),
            )
        )
        entry.done()
    machine = _Reader(name, reader.take("machine", dict), "machine.")
    parts: dict[str, Any] = {
        "label": reader.take("label", str),
        "task_set": reader.take("task_set", str),
        "tasks": tuple(reader.strings("tasks")),
        "episodes": tuple(episodes),
        "configuration": reader.take("configuration", dict),
        "versions": reader.texts("versions"),
        "machine": Machine(machine.take("cpu", str), machine.count("cores"), machine.take("device", str)),
        "wall_seconds": reader.number("wall_seconds"),
        "decisions": reader.count("decisions"),
    }
    machine.done()
    reader.done(ignored={"format", "schema", "summary"})
    try:
        return EvaluationResult(**parts)
    except UserError as error:
        raise UserError(f"{name}: {printable(error)}") from None


def joined(results: Sequence[EvaluationResult], label: str) -> EvaluationResult:
    """One evaluation from several of the same agent, each of other tasks or other episodes.

    Tasks come in the order of their set, and wall times are added up, as if the parts had run one after another.

    Raises:
        UserError: when there is nothing to join, the parts differ in what they evaluated, or an episode is there twice.
    """
    if not results:
        raise UserError("no results files to join; name at least one.")
    first = results[0]
    shared = _shared_configuration(first)
    for other in results[1:]:
        differing = ["task_set"] if other.task_set != first.task_set else []
        differing += _differing_keys(first.versions, other.versions)
        differing += _differing_keys(shared, _shared_configuration(other))
        if differing:
            names = printable(", ".join(differing))
            labels = f"'{printable(first.label)}' and '{printable(other.label)}'"
            raise UserError(f"{labels} differ in {names}; join parts of one evaluation.")
    found = tuple(dict.fromkeys(task for result in results for task in result.tasks))
    known = TASK_SETS.get(first.task_set, found)
    tasks = tuple(sorted(found, key=lambda task: known.index(task) if task in known else len(known)))
    episodes = [episode for result in results for episode in result.episodes]
    episodes.sort(key=lambda episode: (episode.episode, tasks.index(episode.task)))
    return EvaluationResult(
        label=label,
        task_set=first.task_set,
        tasks=tasks,
        episodes=tuple(episodes),
        configuration=shared,
        machine=first.machine,
        wall_seconds=sum(result.wall_seconds for result in results),
        decisions=sum(result.decisions for result in results),
        versions=first.versions,
    )


# What may differ between parts of one evaluation: which episodes, and how they were run and written.
_OF_A_PART = frozenset(
    (
        *("tasks", "eval_episodes", "seed", "label", "output", "reference", "save_video"),
        *("num_envs", "num_workers", "compile", "cudagraphs"),
    )
)


def _shared_configuration(result: EvaluationResult) -> dict[str, Any]:
    return {key: value for key, value in result.configuration.items() if key not in _OF_A_PART}


def _differing_keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    # Results of earlier versions do not say which weights they are of.
    return [
        key
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and (key != "weights" or (key in a and key in b))
    ]


def check_replaceable(path: Path, configuration: Mapping[str, Any]) -> None:
    """Raises a `UserError` if a results file at `path` is of another configuration: it would be lost."""
    if not path.exists():
        return
    earlier = load_json(path).configuration
    now = finite_or_null(dict(configuration))
    if differing := _differing_keys(earlier, now):
        raise UserError(
            f"{path} holds an evaluation with another {printable(', '.join(differing))}; "
            "name another folder with output=…, or remove it."
        )


def results_table(
    result: EvaluationResult,
    reference: Mapping[str, float] | None = None,
    reference_score: float | None = None,
    reference_label: str = "reference",
    style: Style = "plain",
) -> str:
    """Per task: mean return, its standard error and episodes; below them the normalised score with its
    interval.

    `reference` holds returns (0..1000) of tasks from elsewhere, `reference_score` a normalised score
    (0..100); a column shows them when either is given. Ends with a line on the interval.
    """
    with_reference = reference is not None or reference_score is not None
    headers = ["task", "mean return", "std error", "episodes", *([reference_label] if with_reference else [])]
    rows: list[list[str] | None] = []
    for task, stats in task_statistics(result.returns()).items():
        error = "-" if stats.standard_error is None else f"{stats.standard_error:.1f}"
        row = [task, f"{stats.mean:.1f}", error, str(stats.episodes)]
        if with_reference:
            row.append(f"{reference[task]:.1f}" if reference and task in reference else "-")
        rows.append(row)
    score = result.score()
    last = ["normalised score", f"{score.value:.2f}", "", str(len(result.episodes))]
    if with_reference:
        last.append("-" if reference_score is None else f"{reference_score:.2f}")
    table = format_table(headers, [*rows, None, last], style=style)
    return f"{table}\n{interval_text(score)}"


def score_text(score: NormalisedScore) -> str:
    """One line: the normalised score, its interval, and what the interval is not."""
    return f"normalised score {score.value:.2f}; {interval_text(score)}"


def interval_text(score: NormalisedScore) -> str:
    """The interval in words, or why there is none."""
    if score.interval is None:
        return score.interval_note
    low, high = score.interval.low, score.interval.high
    text = f"95% interval {low:.2f} to {high:.2f} (bootstrap over {score.over})"
    return f"{text}; {score.interval_note}" if score.interval_note else text


def this_machine(device: str) -> Machine:
    """This machine's processor and usable cores, with the caller's words for the device that ran the
    model."""
    cpu = platform.processor() or platform.machine() or "unknown"
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cpu=cpu, cores=cores, device=device)


def finite_or_null(value: Any) -> Any:
    """`value` with every number that is not finite replaced by None, through dicts, lists and tuples."""
    if isinstance(value, Mapping):
        return {str(key): finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _read(name: str) -> dict[str, Any]:
    try:
        content = parse_json(Path(name).read_bytes())
    except FileNotFoundError:
        raise UserError(f"no results file {name}; check the path, or write one by an evaluation.") from None
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{name} is not valid JSON: {printable(error)}. Evaluate again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{name} holds a JSON {type(content).__name__}, expected an object.")
    return content


_KINDS: dict[type, str] = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


class _Reader:
    """Takes keys from one JSON object, each with its type, and complains by name about all that is amiss."""

    def __init__(self, file: str, content: Any, where: str) -> None:
        if not isinstance(content, dict):
            found = type(content).__name__
            raise UserError(f"{file}: '{where.rstrip('.')}' is a {found}, expected an object.")
        self.file, self.content, self.where = file, content, where
        self.taken: set[str] = set()

    def take(self, key: str, kind: type) -> Any:
        value = self._value(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self._wrong(key, value, _KINDS[kind])
        if isinstance(value, int) and abs(value) > _LARGEST_WHOLE:
            raise self._wrong(key, value, _KINDS[kind])
        return value

    def count(self, key: str) -> int:
        """A whole number that is not negative."""
        value: int = self.take(key, int)
        if value < 0:
            raise self._wrong(key, value, "a whole number from 0 on")
        return value

    def number(self, key: str) -> float:
        value = self._value(key)
        if value is None:
            return math.nan
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _LARGEST:
            raise self._wrong(key, value, "a number or null")
        return float(value)

    def strings(self, key: str) -> list[str]:
        values = self.take(key, list)
        for value in values:
            if not isinstance(value, str):
                raise self._wrong(key, value, "a list of names")
        return values

    def texts(self, key: str) -> dict[str, str]:
        values = self.take(key, dict)
        for name, value in values.items():
            if not isinstance(value, str):
                raise self._wrong(f"{key}.{name}", value, "text")
        return values

    def done(self, ignored: Iterable[str] = ()) -> None:
        unknown = sorted(set(self.content) - self.taken - set(ignored))
        if unknown:
            raise UserError(f"{self.file}: unknown key '{self.where}{printable(unknown[0])}'; remove it.")

    def _value(self, key: str) -> Any:
        self.taken.add(key)
        if key not in self.content:
            raise UserError(f"{self.file}: key '{self.where}{key}' is missing; evaluate again.")
        return self.content[key]

    def _wrong(self, key: str, value: Any, expected: str) -> UserError:
        return UserError(f"{self.file}: '{self.where}{printable(key)}' is {reprlib.repr(value)}, expected {expected}.")
