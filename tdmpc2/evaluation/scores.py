"""Scores of evaluated episodes and how sure one can be of them.

An episode's return lies in 0..1000. A task's score is its mean episode return; the normalised score is the
mean over tasks of score / 10, so 0..100, as TD-MPC2 reports it. Intervals are 95% percentile bootstraps
with their own seeded generator, so the same returns always give the same interval. With n episodes a
bootstrap is about sqrt((n - 1) / n) as wide as it should be: 5% narrow for ten episodes, 30% for two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tdmpc2.errors import UserError

DRAWS = 10_000
"""Bootstrap resamples behind an interval."""

LEVEL = 0.95
"""Probability that an interval is meant to cover."""

RETURN_TO_SCORE = 0.1
"""Normalised points per unit of episode return."""

SAME_WITHIN = 3.0
"""Normalised points that two scores may be apart and still count as the same, as the documents use the word."""

Over = Literal["episodes", "tasks"]
"""What is resampled: episodes within each task (new episodes), or whole tasks (other tasks like these)."""

EpisodeKey = tuple[str, int, int]
"""(task, episode index, seed): episodes with the same key started from the same state."""

_CHUNK = 2_000_000  # resampled numbers held in memory at once


@dataclass(frozen=True)
class Interval:
    """A 95% interval, in the units of the figure it belongs to."""

    low: float
    high: float


@dataclass(frozen=True)
class TaskStatistics:
    """Episode returns (0..1000) of one task. `standard_error` is that of the mean; None for one episode."""

    mean: float
    standard_error: float | None
    episodes: int


@dataclass(frozen=True)
class NormalisedScore:
    """Normalised score (0..100). `interval_note` says why there is no interval, or what it leaves out."""

    value: float
    interval: Interval | None
    interval_note: str
    over: Over


@dataclass(frozen=True)
class TaskDifference:
    """Second minus first evaluation on one task's paired episodes, in units of return (0..1000).

    `interval` resamples the pairs; None where there is one pair only.
    """

    pairs: int
    mean_first: float
    mean_second: float
    difference: float
    interval: Interval | None


@dataclass(frozen=True)
class PairedDifference:
    """Second minus first evaluation: each task in units of return, overall in normalised points (0..100)."""

    tasks: dict[str, TaskDifference]
    pairs: int
    difference: float
    interval: Interval | None
    interval_note: str
    over: Over


def task_statistics(returns: Mapping[str, Sequence[float]]) -> dict[str, TaskStatistics]:
    """Mean return, its standard error (ddof = 1) and the number of episodes, per task."""
    statistics: dict[str, TaskStatistics] = {}
    for task, values in _arrays(returns).items():
        n = values.size
        error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else None
        statistics[task] = TaskStatistics(mean=float(values.mean()), standard_error=error, episodes=n)
    return statistics


def normalised_score(returns: Mapping[str, Sequence[float]]) -> float:
    """Mean over tasks of mean return / 10 (0..100): tasks count the same whatever their episodes."""
    means = [values.mean() for values in _arrays(returns).values()]
    return float(np.mean(means) * RETURN_TO_SCORE)


def score_with_interval(
    returns: Mapping[str, Sequence[float]], over: Over = "episodes", draws: int = DRAWS, seed: int = 0
) -> NormalisedScore:
    """The normalised score with a 95% bootstrap interval.

    One episode a task (or one task, when resampling tasks) leaves nothing to resample: the interval is then
    None and the note says so. An interval of zero width would pretend a certainty that is not there.
    """
    values = _arrays(returns)
    interval, note = _interval(values, over, draws, seed, "episode")
    return NormalisedScore(
        value=normalised_score(returns),
        interval=_scaled(interval, RETURN_TO_SCORE),
        interval_note=note,
        over=over,
    )


def paired_difference(
    first: Mapping[EpisodeKey, float],
    second: Mapping[EpisodeKey, float],
    over: Over | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> PairedDifference:
    """Second minus first on the episodes both have: same task, episode index and seed.

    `over` None resamples pairs within tasks, or whole tasks where some task has a single pair; the note
    says when it was tasks. Raises a `UserError` when the two have no episode in common.
    """
    common = [key for key in first if key in second]
    if not common:
        raise UserError(
            "the two evaluations have no (task, episode, seed) in common, so nothing can be paired; "
            "evaluate both with the same tasks and the same seed."
        )
    firsts: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for key in common:
        firsts.setdefault(key[0], []).append(first[key])
        seconds.setdefault(key[0], []).append(second[key])
    differences = {t: np.asarray(seconds[t], np.float64) - np.asarray(firsts[t], np.float64) for t in firsts}
    single = [task for task, d in differences.items() if d.size == 1]
    chosen: Over = over or ("tasks" if single else "episodes")
    overall, note = _interval(differences, chosen, draws, seed, "pair")
    if over is None and single and overall is not None:
        note = f"this is an interval over tasks, not over episodes: one pair only for {_named(single)}"
    tasks: dict[str, TaskDifference] = {}
    for index, (task, difference) in enumerate(differences.items()):
        interval, _ = _interval({task: difference}, "episodes", draws, seed + 1 + index, "pair")
        tasks[task] = TaskDifference(
            pairs=difference.size,
            mean_first=float(np.mean(firsts[task])),
            mean_second=float(np.mean(seconds[task])),
            difference=float(difference.mean()),
            interval=interval,
        )
    return PairedDifference(
        tasks=tasks,
        pairs=len(common),
        difference=float(np.mean([d.mean() for d in differences.values()]) * RETURN_TO_SCORE),
        interval=_scaled(overall, RETURN_TO_SCORE),
        interval_note=note,
        over=chosen,
    )


def verdict(difference: PairedDifference, margin: float = SAME_WITHIN) -> Literal["same", "different", "undecided"]:
    """Whether two evaluations have the same score: `same` where the 95% interval of their paired difference lies within
    ± margin, `different` where it lies beyond 0 and not within, else `undecided`.

    The interval is first widened to what it would be without a bootstrap's narrowness over few pairs (see above).
    """
    if difference.interval is None:
        return "undecided"
    fewest = min(d.pairs for d in difference.tasks.values()) if difference.over == "episodes" else len(difference.tasks)
    widening = math.sqrt(fewest / (fewest - 1)) if fewest > 1 else 1.0
    middle = difference.difference
    low = middle + widening * (difference.interval.low - middle)
    high = middle + widening * (difference.interval.high - middle)
    if -margin <= low and high <= margin:
        return "same"
    return "different" if low > 0 or high < 0 else "undecided"


def _arrays(returns: Mapping[str, Sequence[float]]) -> dict[str, NDArray[np.float64]]:
    if not returns:
        raise UserError("no tasks to score; evaluate at least one episode.")
    arrays = {task: np.asarray(values, dtype=np.float64) for task, values in returns.items()}
    for task, values in arrays.items():
        if values.ndim != 1 or not values.size:
            raise UserError(f"task '{task}' has no episodes to score; evaluate at least one.")
    return arrays


def _interval(
    values: Mapping[str, NDArray[np.float64]], over: Over, draws: int, seed: int, unit: str
) -> tuple[Interval | None, str]:
    """Bootstrap interval of the mean over tasks of the task means, and a note on what it leaves out."""
    if over not in ("episodes", "tasks"):
        raise UserError(f"cannot resample over '{over}'; choose 'episodes' or 'tasks'.")
    broken = [task for task, array in values.items() if not np.isfinite(array).all()]
    if broken:
        return None, f"no interval: {_named(broken)} returned something that is not a finite number"
    rng = np.random.default_rng(seed)
    if over == "tasks":
        if len(values) < 2:
            return None, "no interval: one task cannot be resampled over tasks"
        means = np.array([array.mean() for array in values.values()])
        return _percentiles(_resampled_means(means, draws, rng)), ""
    fixed = [task for task, array in values.items() if array.size == 1]
    if len(fixed) == len(values):
        return None, f"no interval: one {unit} a task leaves nothing to resample within a task"
    total = np.zeros(draws)
    for array in values.values():
        # A task with one episode stays where it is, and the note says that the interval leaves it out.
        total += _resampled_means(array, draws, rng) if array.size > 1 else array[0]
    note = f"the interval leaves out the spread of {_named(fixed)}: one {unit} each" if fixed else ""
    return _percentiles(total / len(values)), note


def _resampled_means(values: NDArray[np.float64], draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """float64 [draws]: means of `values` [n] drawn n times with replacement."""
    n = values.size
    means = np.empty(draws)
    step = max(1, _CHUNK // n)
    for start in range(0, draws, step):
        part = means[start : start + step]
        part[:] = values[rng.integers(0, n, size=(part.size, n))].mean(axis=1)
    return means


def _percentiles(means: NDArray[np.float64]) -> Interval:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _scaled(interval: Interval | None, factor: float) -> Interval | None:
    return None if interval is None else Interval(interval.low * factor, interval.high * factor)


def _named(tasks: Sequence[str]) -> str:
    """At most three names; more are counted, so that a note stays a line."""
    shown = ", ".join(tasks[:3])
    return shown if len(tasks) <= 3 else f"{shown} and {len(tasks) - 3} more tasks"
