"""Scores of arms over seeds and tasks, and differences paired by seed. The resampling is scipy's.

A run's score on a task is its mean episode return over 10, so 0 to 100.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from tdmpc2.errors import UserError
from tdmpc2.evaluation.results import EvaluationResult
from tdmpc2.evaluation.scores import DRAWS, LEVEL, RETURN_TO_SCORE, Interval, paired_difference, score_with_interval

Over = Literal["seeds by task", "seeds", "episodes", "nothing"]
"""What an interval says something about."""


@dataclass(frozen=True)
class ArmScore:
    """An arm's score.

    Attributes:
        mean: over tasks and seeds.
        iqm: interquartile mean over all (task, seed).
        interval: 95%.
        over: what the interval is over: seeds within each task (a stratified bootstrap), or for one seed its episodes.
        wider: 95% over seeds and tasks resampled together: how the mean would move with other tasks like these too;
            None for one seed or one task.
        seeds: of the runs.
        tasks: mean score by task.
    """

    mean: float
    iqm: float
    interval: Interval | None
    over: Over
    wider: Interval | None
    seeds: tuple[int, ...]
    tasks: Mapping[str, float]


@dataclass(frozen=True)
class ArmDifference:
    """One arm minus another, on the seeds that both have.

    Attributes:
        mean: of the differences of the seeds' scores.
        interval: 95%, Student's t over the seeds, which is wide for few; for one seed a bootstrap over its episodes.
        over: what the interval is over.
        wider: 95% over seeds and tasks resampled together, as of `ArmScore`.
        seeds: that both have.
        each: the difference by seed.
        tasks: mean difference by task, with an interval likewise.
    """

    mean: float
    interval: Interval | None
    over: Over
    wider: Interval | None
    seeds: tuple[int, ...]
    each: tuple[float, ...]
    tasks: Mapping[str, tuple[float, Interval | None]]


def arm_score(runs: Mapping[int, EvaluationResult]) -> ArmScore | None:
    """Of the evaluations by seed, on the tasks that all have; None without any. No interval where a return is not
    finite."""
    tasks, seeds = _common(runs.values()), tuple(sorted(runs))
    if not tasks:
        return None
    values = np.array([[_task_score(runs[seed], task) for seed in seeds] for task in tasks])  # [tasks, seeds]
    mean, iqm = float(values.mean()), float(stats.trim_mean(values.ravel(), 0.25))
    interval: Interval | None
    if len(seeds) == 1:
        interval = score_with_interval(runs[seeds[0]].returns()).interval
        over: Over = "episodes" if interval is not None else "nothing"
    elif not np.isfinite(values).all():
        interval, over = None, "nothing"
    elif not np.ptp(values, axis=1).any():
        interval, over = Interval(mean, mean), "seeds by task"
    else:

        def mean_over_tasks(*strata: NDArray[np.float64], axis: int) -> Any:
            return np.mean([stratum.mean(axis=axis) for stratum in strata], axis=0)

        found = stats.bootstrap(
            tuple(values), mean_over_tasks, n_resamples=DRAWS, confidence_level=LEVEL, method="percentile", rng=0
        ).confidence_interval
        interval, over = Interval(float(found.low), float(found.high)), "seeds by task"
    by_task = dict(zip(tasks, values.mean(axis=1).tolist(), strict=True))
    return ArmScore(mean, iqm, interval, over, _over_seeds_and_tasks(values), seeds, by_task)


def arm_difference(
    first: Mapping[int, EvaluationResult], second: Mapping[int, EvaluationResult]
) -> ArmDifference | None:
    """Second minus first, paired by seed: same data order, first weights and episodes; None without a common seed
    and task."""
    seeds = tuple(sorted(first.keys() & second.keys()))
    tasks = _common([first[seed] for seed in seeds] + [second[seed] for seed in seeds])
    if not tasks:
        return None
    values = np.array(
        [[_task_score(second[seed], t) - _task_score(first[seed], t) for seed in seeds] for t in tasks]
    )  # [tasks, seeds]
    each = values.mean(axis=0)
    over: Over
    if len(seeds) == 1:
        interval, spans = _over_episodes(first[seeds[0]], second[seeds[0]])
        over = "episodes" if interval is not None else "nothing"
    else:
        interval, spans = _students_t(each), {t: _students_t(row) for t, row in zip(tasks, values, strict=True)}
        over = "seeds" if interval is not None else "nothing"
    by_task = {task: (float(row.mean()), spans.get(task)) for task, row in zip(tasks, values, strict=True)}
    wider = _over_seeds_and_tasks(values)
    return ArmDifference(float(each.mean()), interval, over, wider, seeds, tuple(each.tolist()), by_task)


def detectable_difference(spread: float, seeds: int, power: float = 0.8) -> float:
    """The least true difference that a two-sided t-test at 5% over so many seeds finds with this probability.

    Args:
        spread: standard deviation of one seed's difference.
        seeds: two at least.
        power: the probability.
    """
    degrees, root = seeds - 1, math.sqrt(seeds)
    limit = stats.t.ppf((1 + LEVEL) / 2, degrees)

    def missing(effect: float) -> float:
        found = float(stats.nct.sf(limit, degrees, effect * root))  # in the other tail next to nothing
        return (1.0 if math.isnan(found) else found) - power  # scipy's overflows for effects that none misses

    return spread * float(optimize.brentq(missing, 1e-6, 100.0))


def _over_seeds_and_tasks(values: NDArray[np.float64]) -> Interval | None:
    """Of the mean of [tasks, seeds], both drawn anew with replacement: a run is a seed in all tasks."""
    tasks, seeds = values.shape
    if tasks < 2 or seeds < 2 or not np.isfinite(values).all():
        return None
    rng = np.random.default_rng(0)
    some_tasks = rng.integers(0, tasks, (DRAWS, tasks, 1))
    some_seeds = rng.integers(0, seeds, (DRAWS, 1, seeds))
    means = values[some_tasks, some_seeds].mean(axis=(1, 2))
    low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(low), float(high))


def _over_episodes(
    first: EvaluationResult, second: EvaluationResult
) -> tuple[Interval | None, dict[str, Interval | None]]:
    """Intervals of a single pair of runs, overall and by task, in points; none where they share no episode."""
    try:
        paired = paired_difference(first.returns_by_key(), second.returns_by_key())
    except UserError:
        return None, {}
    spans = {
        task: None
        if d.interval is None
        else Interval(d.interval.low * RETURN_TO_SCORE, d.interval.high * RETURN_TO_SCORE)
        for task, d in paired.tasks.items()
    }
    return paired.interval if paired.over == "episodes" else None, spans


def _students_t(values: NDArray[np.float64]) -> Interval | None:
    if not np.isfinite(values).all():
        return None
    if not np.ptp(values):
        return Interval(float(values[0]), float(values[0]))
    found = stats.ttest_1samp(values, 0).confidence_interval(LEVEL)
    return Interval(float(found.low), float(found.high))


def _common(results: Any) -> list[str]:
    """Tasks that all have, in the first's order."""
    every: Sequence[EvaluationResult] = list(results)
    if not every:
        return []
    return [task for task in every[0].tasks if all(task in result.tasks for result in every)]


def _task_score(result: EvaluationResult, task: str) -> float:
    return float(np.mean(result.returns()[task])) * RETURN_TO_SCORE
