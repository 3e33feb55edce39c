"""Scores against numbers worked out by hand, and intervals against what they promise."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tdmpc2.errors import UserError
from tdmpc2.evaluation.scores import (
    EpisodeKey,
    normalised_score,
    paired_difference,
    score_with_interval,
    task_statistics,
    verdict,
)

ROOT = Path(__file__).resolve().parents[2]


def test_statistics_by_hand() -> None:
    stats = task_statistics({"a": [100.0, 200.0, 300.0], "b": [50.0]})
    assert stats["a"].mean == 200 and stats["a"].episodes == 3
    assert stats["a"].standard_error == pytest.approx(100 / math.sqrt(3))  # deviation 100 with ddof 1
    assert (stats["b"].mean, stats["b"].standard_error, stats["b"].episodes) == (50, None, 1)


def test_every_task_counts_the_same() -> None:
    # (200 + 50) / 2 / 10, not the mean over all four episodes (162.5 / 10).
    assert normalised_score({"a": [100.0, 200.0, 300.0], "b": [50.0]}) == pytest.approx(12.5)


def test_interval_is_that_of_the_exact_bootstrap_distribution() -> None:
    # Two episodes 0 and 1000: resampled means are 0, 500, 1000 with probability 1/4, 1/2, 1/4.
    score = score_with_interval({"a": [0.0, 1000.0]})
    assert score.value == 50 and score.interval is not None
    assert (score.interval.low, score.interval.high) == (0, 100)
    # The mean of many is close to normal: mean +- 1.96 standard errors (of ddof 0).
    returns = np.random.default_rng(3).uniform(0, 1000, 400)
    wide = score_with_interval({"a": returns.tolist()}).interval
    error = returns.std() / math.sqrt(400) / 10
    assert wide is not None
    assert wide.low == pytest.approx(returns.mean() / 10 - 1.96 * error, abs=0.15 * error)
    assert wide.high == pytest.approx(returns.mean() / 10 + 1.96 * error, abs=0.15 * error)


def test_interval_depends_on_returns_and_seed_only() -> None:
    returns = {task: np.random.default_rng(i).uniform(0, 900, 8).tolist() for i, task in enumerate("ab")}
    assert score_with_interval(returns) == score_with_interval(returns)
    assert score_with_interval(returns, seed=1).interval != score_with_interval(returns).interval


def test_resampling_is_within_tasks() -> None:
    # Tasks far apart, episodes of each alike: the spread between tasks must not show over episodes.
    returns = {"a": [0.0, 2.0, 1.0], "b": [998.0, 1000.0, 999.0]}
    episodes = score_with_interval(returns).interval
    tasks = score_with_interval(returns, over="tasks").interval
    assert episodes is not None and 49.9 <= episodes.low <= episodes.high <= 50.1
    assert tasks is not None and (tasks.low, tasks.high) == pytest.approx((0.1, 99.9))


def test_many_episodes_are_resampled_in_chunks() -> None:
    returns = np.random.default_rng(0).normal(500, 100, 3000)
    interval = score_with_interval({"a": returns.tolist()}, draws=2000).interval
    error = returns.std() / math.sqrt(3000) / 10
    assert interval is not None
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_one_episode_a_task_has_no_interval() -> None:
    score = score_with_interval({"a": [10.0], "b": [20.0]})
    assert score.value == 1.5 and score.interval is None
    assert "one episode a task" in score.interval_note
    assert score_with_interval({"a": [10.0], "b": [20.0]}, over="tasks").interval is not None


def test_some_tasks_with_one_episode_are_named() -> None:
    score = score_with_interval({"a": [10.0, 30.0], "b": [20.0]})
    assert score.interval is not None
    assert (score.interval.low, score.interval.high) == pytest.approx((1.5, 2.5))
    assert "leaves out the spread of b" in score.interval_note
    many = score_with_interval({f"t{i}": [1.0] for i in range(9)} | {"a": [1.0, 2.0]})
    assert "t0, t1, t2 and 6 more tasks" in many.interval_note


def test_one_task_cannot_be_resampled_over_tasks() -> None:
    score = score_with_interval({"a": [10.0, 30.0]}, over="tasks")
    assert score.interval is None and "one task" in score.interval_note


def test_returns_that_are_not_finite_show() -> None:
    score = score_with_interval({"a": [1.0, math.nan], "b": [1.0, 2.0]})
    assert math.isnan(score.value) and score.interval is None
    assert "a returned something that is not a finite number" in score.interval_note


def test_nothing_to_score() -> None:
    with pytest.raises(UserError, match="no tasks"):
        normalised_score({})
    with pytest.raises(UserError, match="'b' has no episodes"):
        task_statistics({"a": [1.0], "b": []})
    with pytest.raises(UserError, match="'seeds'"):
        score_with_interval({"a": [1.0, 2.0]}, over="seeds")  # type: ignore[arg-type]


def test_intervals_cover() -> None:
    # 300 evaluations of 3 tasks with 10 episodes: the true score lies in about 95% of the intervals, a little
    # less as the bootstrap is narrow for ten. Binomial error at 300: 1.3 points.
    rng = np.random.default_rng(11)
    truth = {"a": 100.0, "b": 500.0, "c": 700.0}
    hits = 0
    for _ in range(300):
        returns = {task: rng.normal(mean, 80, 10).tolist() for task, mean in truth.items()}
        interval = score_with_interval(returns, draws=1000).interval
        assert interval is not None
        hits += interval.low <= 130 / 3 <= interval.high
    assert 0.88 <= hits / 300 <= 0.97


def _keyed(task: str, returns: list[float], seed: int = 1) -> dict[EpisodeKey, float]:
    return {(task, episode, seed): value for episode, value in enumerate(returns)}


def test_paired_difference_by_hand() -> None:
    first = _keyed("a", [100.0, 200.0]) | _keyed("b", [10.0, 20.0, 30.0])
    second = _keyed("a", [110.0, 230.0]) | _keyed("b", [10.0, 20.0, 0.0])
    result = paired_difference(first, second)
    a, b = result.tasks["a"], result.tasks["b"]
    assert (a.pairs, a.mean_first, a.mean_second, a.difference) == (2, 150, 170, 20)
    assert (b.pairs, b.difference) == (3, -10)
    assert a.interval is not None and (a.interval.low, a.interval.high) == (10, 30)
    assert result.difference == pytest.approx(0.5) and result.pairs == 5  # (20 - 10) / 2 / 10
    assert result.over == "episodes" and result.interval_note == ""


def test_pairing_takes_the_common_luck_out() -> None:
    # Start states matter a hundred times more than the agent: unpaired nothing is seen, paired it is clear.
    luck = np.random.default_rng(0).uniform(0, 900, 20)
    first, second = _keyed("a", luck.tolist()), _keyed("a", (luck + 9).tolist())
    interval = paired_difference(first, second).interval
    assert interval is not None and (interval.low, interval.high) == pytest.approx((0.9, 0.9))
    alone = score_with_interval({"a": luck.tolist()}).interval
    assert alone is not None and alone.high - alone.low > 10


def test_pairs_need_task_episode_and_seed() -> None:
    first = _keyed("a", [1.0, 2.0], seed=1) | _keyed("b", [5.0, 5.0], seed=1)
    second = _keyed("a", [4.0, 4.0, 4.0], seed=1) | _keyed("b", [9.0, 9.0], seed=2)
    result = paired_difference(first, second)
    assert list(result.tasks) == ["a"] and result.pairs == 2
    with pytest.raises(UserError, match="in common"):
        paired_difference(_keyed("b", [1.0], seed=1), _keyed("b", [1.0], seed=2))


def test_single_pairs_are_resampled_over_tasks_and_said_so() -> None:
    first = _keyed("a", [0.0]) | _keyed("b", [0.0])
    second = _keyed("a", [100.0]) | _keyed("b", [300.0])
    result = paired_difference(first, second)
    assert result.over == "tasks" and "over tasks, not over episodes" in result.interval_note
    assert result.interval is not None
    assert (result.interval.low, result.interval.high) == (10, 30)
    assert result.tasks["a"].interval is None
    strict = paired_difference(first, second, over="episodes")
    assert strict.interval is None and "one pair a task" in strict.interval_note


def test_over_tasks_may_be_asked_for() -> None:
    first = _keyed("a", [0.0, 0.0]) | _keyed("b", [0.0, 0.0])
    second = _keyed("a", [100.0, 100.0]) | _keyed("b", [300.0, 300.0])
    assert paired_difference(first, second).interval == paired_difference(first, second, "episodes").interval
    over_tasks = paired_difference(first, second, "tasks").interval
    assert over_tasks is not None and (over_tasks.low, over_tasks.high) == (10, 30)


def test_scores_and_reporting_import_nothing_heavy() -> None:
    modules = ["scores", "results", "comparison"]
    code = "".join(f"import tdmpc2.evaluation.{module}\n" for module in modules)
    code += "import tdmpc2.reporting.metrics, tdmpc2.reporting.plots, sys\n"
    code += "print([m for m in ('torch', 'wandb', 'matplotlib', 'mujoco', 'hydra') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([1.0, 3.0], "same"),  # of return: 0.1 to 0.3 points
        ([-20.0, 30.0], "undecided"),  # a bootstrap's -2 to 3 points are -3 to 4 with two pairs
        ([-200.0, 150.0], "undecided"),
        ([60.0, 90.0], "different"),
        ([-60.0, -90.0], "different"),
        ([50.0], "undecided"),  # one pair says nothing of others
    ],
)
def test_verdict(differences: list[float], said: str) -> None:
    result = paired_difference(_keyed("a", [0.0] * len(differences)), _keyed("a", differences))
    assert verdict(result) == said
    assert verdict(result, margin=100.0) == ("undecided" if len(differences) == 1 else "same")


def test_a_verdict_over_tasks_counts_tasks() -> None:
    first = _keyed("a", [0.0]) | _keyed("b", [0.0])
    second = _keyed("a", [22.0]) | _keyed("b", [29.0])
    assert verdict(paired_difference(first, second)) == "different"  # 2.2 to 2.9, widened beyond 3
