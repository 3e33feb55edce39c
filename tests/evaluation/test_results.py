"""Results files: what goes in comes out, and what is not one is refused by name."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.errors import UserError
from tdmpc2.evaluation.results import (
    EpisodeResult,
    EvaluationResult,
    Machine,
    check_replaceable,
    joined,
    load_json,
    results_table,
    this_machine,
)
from tdmpc2.versions import package_versions


def make(**changes: Any) -> EvaluationResult:
    values: dict[str, Any] = {
        "label": "student",
        "task_set": "two",
        "tasks": ("walker-run", "cup-spin"),
        "episodes": (
            EpisodeResult("walker-run", 0, 7, 100.0, 500),
            EpisodeResult("walker-run", 1, 7, 300.0, 500),
            EpisodeResult("cup-spin", 0, 7, 901.0, 500),
        ),
        "configuration": {"planner": {"samples": 512, "greedy": False}, "checkpoint": "a.pt"},
        "machine": Machine("some processor", 4, "cpu"),
        "wall_seconds": 12.5,
        "decisions": 1500,
        "versions": {"mujoco": "3.17.0"},
    }
    return EvaluationResult(**(values | changes))


def test_round_trip(tmp_path: Path) -> None:
    result = make()
    result.save_json(tmp_path / "deep" / "r.json")
    assert load_json(tmp_path / "deep" / "r.json") == result
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["r.json"]


def test_file_has_a_summary_for_readers(tmp_path: Path) -> None:
    make().save_json(tmp_path / "r.json")
    summary = json.loads((tmp_path / "r.json").read_text())["summary"]
    assert summary["normalised_score"] == pytest.approx((200 + 901.0) / 2 / 10)
    assert summary["tasks"]["walker-run"] == {"mean": 200, "standard_error": 100, "episodes": 2}
    assert len(summary["interval_95"]) == 2 and "cup-spin" in summary["interval_note"]


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    episodes = (EpisodeResult("cup-spin", 0, 7, math.nan, 500),)
    make(tasks=("cup-spin",), episodes=episodes, configuration={"x": [math.inf]}).save_json(tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    again = load_json(tmp_path / "r.json")
    assert math.isnan(again.episodes[0].episode_return) and again.configuration == {"x": [None]}
    assert "nan" in results_table(again)


def test_csv_has_a_row_an_episode(tmp_path: Path) -> None:
    make().save_csv(tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[2] == {
        "task": "cup-spin",
        "episode": "0",
        "seed": "7",
        "episode_return": "901.0",
        "length": "500",
    }
    assert len(rows) == 3


def test_table() -> None:
    lines = results_table(make(), reference={"walker-run": 107.2}, reference_score=28.45).splitlines()
    assert lines[0].split() == ["task", "mean", "return", "std", "error", "episodes", "reference"]
    assert lines[2].split() == ["walker-run", "200.0", "100.0", "2", "107.2"]
    assert lines[3].split() == ["cup-spin", "901.0", "-", "1", "-"]
    assert lines[5].split() == ["normalised", "score", "55.05", "3", "28.45"]
    assert lines[6].startswith("95% interval 50.05 to 60.05 (bootstrap over episodes); the interval leaves out")
    assert len({len(line) for line in lines[:6]}) == 1  # aligned
    assert "reference" not in results_table(make())
    assert results_table(make(), style="markdown").splitlines()[1].startswith("| -----")


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("decisions"), "key 'decisions' is missing"),
        (lambda d: d.update(decisions="many"), "'decisions' is 'many', expected a whole number"),
        (lambda d: d.update(decisions=True), "'decisions' is True"),
        (lambda d: d.update(colour="red"), "unknown key 'colour'"),
        (lambda d: d.update(schema=2), "schema 2, this program reads schema 1"),
        (lambda d: d.update(format="other"), "not a results file"),
        (lambda d: d.update(tasks=["walker-run", 3]), "'tasks' is 3, expected a list of names"),
        (lambda d: d.update(tasks=["cup-spin"]), "task 'walker-run', which 'tasks' does not name"),
        (lambda d: d["tasks"].append("fish-swim"), "no episode of fish-swim"),
        (lambda d: d["tasks"].append("cup-spin"), "names a task twice"),
        (lambda d: d.update(episodes=[], tasks=[]), "no episode of any task"),
        (lambda d: d["episodes"].append(d["episodes"][0]), "is there twice"),
        (lambda d: d["episodes"][1].pop("seed"), r"key 'episodes\[1\].seed' is missing"),
        (lambda d: d["episodes"][1].update(episode_return="x"), r"'episodes\[1\].episode_return' is 'x'"),
        (lambda d: d["episodes"][1].update(extra=1), r"unknown key 'episodes\[1\].extra'"),
        (lambda d: d["episodes"].insert(0, 5), r"'episodes\[0\]' is a int"),
        (lambda d: d["machine"].pop("cpu"), "key 'machine.cpu' is missing"),
        (lambda d: d["versions"].update(mujoco=3), "'versions.mujoco' is 3, expected text"),
    ],
)
def test_malformed_files_are_refused_by_key(tmp_path: Path, change: Change, message: str) -> None:
    path = tmp_path / "r.json"
    make().save_json(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        load_json(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"format": "tdmpc2-ev', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b'{"format": NaN}', "holds NaN, which is not JSON"),
        (b"[1, 2]", "holds a JSON list"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        load_json(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results file"):
        load_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot read"):
        load_json(tmp_path)


def test_where_it_ran() -> None:
    versions = package_versions()
    assert set(versions) == {"python", "torch", "numpy", "mujoco", "dm_control", "gymnasium", "tdmpc2"}
    assert versions["python"].startswith("3.")
    assert versions["torch"] == torch.__version__, "with its build, which a registry's package leaves out"
    assert replace(make(), versions=versions).versions == versions
    machine = this_machine("cpu")
    assert machine.cpu and machine.cores >= 1 and machine.device == "cpu"


def test_results_of_another_configuration_are_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    check_replaceable(path, {"mpc": True})
    example = make(configuration={"mpc": True, "seed": 1})
    example.save_json(path)
    check_replaceable(path, {"mpc": True, "seed": 1})
    with pytest.raises(UserError, match=r"another mpc; name another folder with output="):
        check_replaceable(path, {"mpc": False, "seed": 1})


# -- parts of one evaluation -----------------------------------------------------------------------------------------


def part(tasks: tuple[str, ...], label: str = "part", episode: int = 0, **changes: Any) -> EvaluationResult:
    episodes = tuple(EpisodeResult(task, episode, 7 + episode, 100.0 * len(task), 500) for task in tasks)
    configuration = {"checkpoint": "a.pt", "tasks": list(tasks), "output": label, "iterations": 6}
    return make(label=label, task_set="mt30", tasks=tasks, episodes=episodes, configuration=configuration, **changes)


def test_parts_are_joined_in_the_order_of_the_task_set(tmp_path: Path) -> None:
    parts = [part(("cup-spin", "fish-swim")), part(("walker-run",), "other"), part(("walker-run",), "third", episode=1)]
    whole = joined(parts, "all")
    assert whole.tasks == ("walker-run", "fish-swim", "cup-spin") and whole.label == "all"
    assert [(e.task, e.episode) for e in whole.episodes] == [
        *(("walker-run", 0), ("fish-swim", 0), ("cup-spin", 0)),
        ("walker-run", 1),
    ]
    assert whole.wall_seconds == 37.5 and whole.configuration == {"checkpoint": "a.pt", "iterations": 6}
    whole.save_json(tmp_path / "all.json")
    assert load_json(tmp_path / "all.json") == whole
    assert joined([whole], "all") == whole


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (part(("cup-spin",), "b"), "episode 0 .* of task 'cup-spin' is there twice"),
        (replace(part(("fish-swim",), "b"), task_set="mine"), "'a' and 'b' differ in task_set"),
        (part(("fish-swim",), "b", versions={"mujoco": "3.3.6"}), "differ in mujoco"),
        (replace(part(("fish-swim",), "b"), configuration={"checkpoint": "a.pt"}), "differ in iterations"),
    ],
)
def test_parts_of_different_evaluations_are_not_joined(other: EvaluationResult, said: str) -> None:
    with pytest.raises(UserError, match=said):
        joined([part(("cup-spin",), "a"), other], "x")


def test_nothing_to_join() -> None:
    with pytest.raises(UserError, match="no results files to join"):
        joined([], "x")
