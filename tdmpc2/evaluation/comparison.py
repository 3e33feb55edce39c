"""Two evaluations compared episode by episode, with what else is different between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tdmpc2.errors import UserError, printable
from tdmpc2.evaluation.results import EvaluationResult, finite_or_null
from tdmpc2.evaluation.scores import SAME_WITHIN, Interval, Over, PairedDifference, paired_difference, verdict
from tdmpc2.reporting.tables import Style, format_table

# The fields of PlannerSettings, which lives beside torch; comparing two files should not load it.
PLANNER_FIELDS = frozenset(
    (
        *("horizon", "iterations", "num_samples", "num_elites", "num_pi_trajs"),
        *("min_std", "max_std", "temperature", "warm_start"),
    )
)
_LONGEST = 4000  # characters of a warning or a note
_VERDICTS = {
    "same": f"The same score: the interval, widened for few episodes, lies within {SAME_WITHIN:g} points of 0",
    "different": "Different scores: the interval, widened for few episodes, does not hold 0",
    "undecided": f"Undecided: the interval, widened for few episodes, holds 0 and more than {SAME_WITHIN:g} points",
}
SIMULATORS = ("mujoco", "dm_control", "gymnasium")
"""Packages whose version changes what an environment does."""


@dataclass(frozen=True)
class Comparison:
    """`second` minus `first`. `warnings` name what makes the comparison unfair, `notes` other differences."""

    first: str
    second: str
    paired: PairedDifference
    unpaired_first: int
    unpaired_second: int
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file; a number that is not finite is null."""
        return finite_or_null(asdict(self))


def compare(first: EvaluationResult, second: EvaluationResult, over: Over | None = None) -> Comparison:
    """Pairs the two by (task, episode, seed) and looks for differences in setup (see `paired_difference`).

    Raises a `UserError` when they have no episode in common.
    """
    a, b = first.returns_by_key(), second.returns_by_key()
    try:
        paired = paired_difference(a, b, over=over)
    except UserError as error:
        names = f"'{printable(first.label)}' with '{printable(second.label)}'"
        raise UserError(f"cannot compare {names}: {printable(error)}") from None
    warnings, notes = _setup_differences(first, second)
    return Comparison(
        first=first.label,
        second=second.label,
        paired=paired,
        unpaired_first=len(a) - paired.pairs,
        unpaired_second=len(b) - paired.pairs,
        warnings=tuple(warnings),
        notes=tuple(notes),
    )


def comparison_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headers, a row of each task, and a last one of the normalised score."""
    paired = comparison.paired
    rows = [
        [
            task,
            f"{d.mean_first:.1f}",
            f"{d.mean_second:.1f}",
            f"{d.difference:+.1f}",
            _interval_text(d.interval, 1),
            str(d.pairs),
        ]
        for task, d in paired.tasks.items()
    ]
    means = [[d.mean_first for d in paired.tasks.values()], [d.mean_second for d in paired.tasks.values()]]
    scores = [f"{sum(values) / len(values) / 10:.2f}" for values in means]
    overall = _interval_text(paired.interval, 2)
    last = ["normalised score", *scores, f"{paired.difference:+.2f}", overall, str(paired.pairs)]
    return ["task", "a", "b", "b - a", "95% interval", "pairs"], [*rows, last]


def comparison_notes(comparison: Comparison) -> list[str]:
    """How many pairs there are, the verdict, and what the reader has to know: a sentence each."""
    paired = comparison.paired
    tasks = len(paired.tasks)
    pairs = f"{paired.pairs} pair{'s' * (paired.pairs != 1)} of episodes on {tasks} task{'s' * (tasks != 1)}"
    if comparison.unpaired_first or comparison.unpaired_second:
        pairs += (
            f"; without a partner and left out: {comparison.unpaired_first} of a, {comparison.unpaired_second} of b"
        )
    lines = [f"{pairs}."]
    if paired.interval is not None:
        lines.append(f"Normalised score: 95% bootstrap interval over {paired.over}.")
        lines.append(f"{_VERDICTS[verdict(paired)]}.")
    if paired.interval_note:
        lines.append(f"Note: {paired.interval_note}.")
    lines += [f"Warning: {printable(warning, _LONGEST)}." for warning in comparison.warnings]
    return lines + [f"Note: {printable(note, _LONGEST)}." for note in comparison.notes]


def comparison_text(comparison: Comparison, style: Style = "plain") -> str:
    """The comparison as a table of tasks, a last line for the normalised score, and notes."""
    headers, rows = comparison_table(comparison)
    table = format_table(headers, [*rows[:-1], None, rows[-1]], style=style)
    names = [f"a: {printable(comparison.first)}", f"b: {printable(comparison.second)}"]
    return "\n".join([*names, "", table, "", *comparison_notes(comparison)])


def _setup_differences(first: EvaluationResult, second: EvaluationResult) -> tuple[list[str], list[str]]:
    warnings: list[str] = []
    notes: list[str] = []
    if first.tasks != second.tasks:
        only_a = [task for task in first.tasks if task not in second.tasks]
        only_b = [task for task in second.tasks if task not in first.tasks]
        details = "; ".join(
            f"only in {side}: {', '.join(tasks)}" for side, tasks in (("a", only_a), ("b", only_b)) if tasks
        )
        warnings.append(f"task sets differ ('{first.task_set}' and '{second.task_set}'): {details or 'another order'}")
    versions = _differing(first.versions, second.versions)
    simulators = [text for key, text in versions.items() if key in SIMULATORS]
    others = [text for key, text in versions.items() if key not in SIMULATORS]
    settings = _differing(_flat(first.configuration), _flat(second.configuration))
    planner = [text for key, text in settings.items() if _is_of_planner(key)]
    rest = [key for key in settings if not _is_of_planner(key)]
    if simulators:
        warnings.append(f"simulator versions differ: {', '.join(simulators)}")
    if planner:
        warnings.append(f"planner settings differ: {', '.join(planner)}")
    if others:
        notes.append(f"other versions differ: {', '.join(others)}")
    if rest:
        notes.append(f"other settings differ: {', '.join(rest)}")
    if first.machine.device != second.machine.device:
        notes.append(f"devices differ: {first.machine.device} -> {second.machine.device}")
    return warnings, notes


def _is_of_planner(key: str) -> bool:
    """Whether a dotted key decides how actions are planned, in whichever folder of a configuration it stands."""
    *folders, name = key.split(".")
    return "planner" in folders or name in PLANNER_FIELDS or name in ("mpc", "greedy")


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, str]:
    """Keys whose values differ, each with a text that shows both."""
    differing: dict[str, str] = {}
    for key in sorted(first.keys() | second.keys()):
        a, b = first.get(key, "absent"), second.get(key, "absent")
        if a != b:
            differing[key] = f"{key} {a} -> {b}"
    return differing


def _flat(configuration: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in configuration.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _interval_text(interval: Interval | None, digits: int) -> str:
    return "-" if interval is None else f"{interval.low:+.{digits}f} to {interval.high:+.{digits}f}"
