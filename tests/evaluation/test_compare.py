"""The comparison of two results files, through the script as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tdmpc2.evaluation.comparison import compare, comparison_text
from tdmpc2.evaluation.results import EpisodeResult, EvaluationResult, Machine, load_json

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "compare.py"


def make(label: str, returns: dict[str, list[float]], seed: int = 1, **changes: Any) -> EvaluationResult:
    values: dict[str, Any] = {
        "label": label,
        "task_set": "mine",
        "tasks": tuple(returns),
        "episodes": tuple(
            EpisodeResult(task, i, seed, value, 500) for task, row in returns.items() for i, value in enumerate(row)
        ),
        "configuration": {"planner": {"samples": 512}, "checkpoint": "a.pt"},
        "machine": Machine("some processor", 4, "cpu"),
        "wall_seconds": 1.0,
        "decisions": 500,
        "versions": {"mujoco": "3.17.0", "torch": "2.13.0"},
    }
    return EvaluationResult(**(values | changes))


FIRST = {"walker-run": [100.0, 200.0], "cup-spin": [500.0, 700.0]}
SECOND = {"walker-run": [110.0, 230.0], "cup-spin": [500.0, 700.0, 100.0]}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *(str(argument) for argument in arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_script_compares(tmp_path: Path) -> None:
    make("before", FIRST).save_json(tmp_path / "a.json")
    make("after", SECOND).save_json(tmp_path / "b.json")
    done = run(tmp_path / "a.json", tmp_path / "b.json", "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["a: before", "b: after"]
    walker = next(line for line in lines if line.startswith("walker-run"))
    assert walker.split() == ["walker-run", "150.0", "170.0", "+20.0", "+10.0", "to", "+30.0", "2"]
    overall = next(line for line in lines if line.startswith("normalised score"))
    # Tasks: +20 and 0; (20 + 0) / 2 / 10. The third cup-spin episode has no partner.
    assert overall.split() == ["normalised", "score", "37.50", "38.50", "+1.00", "+0.50", "to", "+1.50", "4"]
    assert "4 pairs of episodes on 2 tasks; without a partner and left out: 0 of a, 1 of b." in lines
    assert "The same score: the interval, widened for few episodes, lies within 3 points of 0." in lines
    assert "Warning" not in done.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["paired"]["difference"] == pytest.approx(1.0) and written["paired"]["over"] == "episodes"


def test_script_over_tasks_and_markdown(tmp_path: Path) -> None:
    make("before", FIRST).save_json(tmp_path / "a.json")
    make("after", SECOND).save_json(tmp_path / "b.json")
    done = run(tmp_path / "a.json", tmp_path / "b.json", "--over", "tasks", "--markdown")
    assert done.returncode == 0
    assert "95% bootstrap interval over tasks" in done.stdout
    assert "| +0.00 to +2.00 |" in done.stdout


def test_script_refuses_bad_input(tmp_path: Path) -> None:
    make("before", FIRST).save_json(tmp_path / "a.json")
    make("other seed", FIRST, seed=2).save_json(tmp_path / "b.json")
    (tmp_path / "broken.json").write_text("{")
    for other, message in (
        ("b.json", "cannot compare 'before' with 'other seed'"),
        ("broken.json", "broken.json is not valid JSON"),
        ("none.json", "no results file"),
    ):
        done = run(tmp_path / "a.json", tmp_path / other)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("error: ") and message in done.stderr and "Traceback" not in done.stderr
    assert run(tmp_path / "a.json").returncode == 2
    done = run(tmp_path / "a.json", tmp_path / "a.json", "--json", tmp_path / "a.json" / "out.json")
    assert done.returncode == 2 and "cannot write" in done.stderr


def test_differences_in_setup_are_named() -> None:
    second = make(
        "after",
        {"walker-run": [100.0, 100.0], "fish-swim": [1.0]},
        task_set="other",
        configuration={
            "agent": {"planner": {"samples": 64}},
            "planner": {"samples": 128},
            "checkpoint": "b.pt",
        },
        versions={"mujoco": "3.3.0", "torch": "2.12.0"},
        machine=Machine("some processor", 4, "cuda"),
    )
    comparison = compare(make("before", FIRST), second)
    text = comparison_text(comparison)
    assert comparison.warnings == (
        "task sets differ ('mine' and 'other'): only in a: cup-spin; only in b: fish-swim",
        "simulator versions differ: mujoco 3.17.0 -> 3.3.0",
        "planner settings differ: agent.planner.samples absent -> 64, planner.samples 512 -> 128",
    )
    assert comparison.notes == (
        "other versions differ: torch 2.13.0 -> 2.12.0",
        "other settings differ: checkpoint",
        "devices differ: cpu -> cuda",
    )
    assert all(f"Warning: {warning}." in text for warning in comparison.warnings)
    assert "2 pairs of episodes on 1 task; without a partner and left out: 2 of a, 1 of b." in text


def test_another_order_of_tasks_is_a_difference() -> None:
    second = make("after", dict(reversed(FIRST.items())))
    assert compare(make("before", FIRST), second).warnings == ("task sets differ ('mine' and 'mine'): another order",)


def test_single_pairs() -> None:
    a, b = (
        make("a", {"walker-run": [1.0], "cup-spin": [2.0]}),
        make("b", {"walker-run": [2.0], "cup-spin": [5.0]}),
    )
    text = comparison_text(compare(a, b))
    assert "Note: this is an interval over tasks, not over episodes: one pair only for walker-run, cup-spin." in text
    assert "2 pairs of episodes on 2 tasks." in text
    alone = comparison_text(compare(make("a", {"cup-spin": [2.0]}), make("b", {"cup-spin": [5.0]})))
    assert "1 pair of episodes on 1 task." in alone and "Note: no interval" in alone


def test_the_planner_fields_are_those_of_the_settings() -> None:
    from dataclasses import fields

    from tdmpc2.evaluation.comparison import PLANNER_FIELDS
    from tdmpc2.planner import PlannerSettings

    assert {f.name for f in fields(PlannerSettings)} == PLANNER_FIELDS


def test_join_script(tmp_path: Path) -> None:
    make("one", {"walker-run": [100.0, 200.0]}).save_json(tmp_path / "a.json")
    make("two", {"cup-spin": [500.0]}).save_json(tmp_path / "b.json")
    command = [sys.executable, str(ROOT / "scripts" / "join.py"), str(tmp_path / "a.json")]

    def run_join(*arguments: object) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
        )

    out = tmp_path / "both" / "evaluation.json"
    done = run_join(tmp_path / "b.json", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "normalised score" in done.stdout
    whole = load_json(out)
    assert (whole.label, whole.tasks, len(whole.episodes)) == ("both", ("walker-run", "cup-spin"), 3)
    again = run_join(tmp_path / "b.json", "--out", out)
    assert again.returncode == 2 and "exists; name another file" in again.stderr
    twice = run_join(tmp_path / "a.json", "--out", tmp_path / "c.json")
    assert twice.returncode == 2 and "is there twice" in twice.stderr and not (tmp_path / "c.json").exists()
