"""Experiments by name: whole tables in a sweep, one row by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_fixtures import TINY, run_program, store_path

from tdmpc2.errors import UserError
from tdmpc2.settings.entry import _Command

TINY_RUN = (*TINY, f"data_dir={store_path()}", "device=cpu", "steps=2", "final_episodes=1")


def test_a_table_s_name_stands_for_its_rows() -> None:
    command = _Command(["-m", "experiment=table3", "seed=1,2"])
    assert "experiment=table3/large_teacher,table3/small_teacher" in command.arguments
    assert command.varied == {"experiment", "seed"}
    assert "experiment=table3/large_teacher" in _Command(["experiment=table3/large_teacher"]).arguments
    with pytest.raises(UserError, match=r"experiment=table1 has 9 rows: add -m to run them all, or choose one"):
        _Command(["experiment=table1"])


def test_a_sweep_of_an_experiment_ends_with_a_report(tmp_path: Path) -> None:
    rows = "experiment=controls/scratch,controls/dataset_0.40"
    done = run_program("tdmpc2/train.py", "-m", rows, "seed=1,2", *TINY_RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    root = tmp_path / "logs" / "duo" / "full"
    runs = {path.relative_to(root).parts[0] for path in root.rglob("evaluation.json")}
    assert runs == {"scratch", "dataset_0.40"} and len(list(root.rglob("evaluation-prior.json"))) == 4
    (figures,) = json.loads((root / "report" / "report.json").read_text())["groups"]
    assert figures["differences"]["dataset_0.40 - scratch"]["planned"]["seeds"] == [1, 2]
    assert (root / "report" / "report.html").is_file()
    times = {path: path.stat().st_mtime_ns for path in root.rglob("evaluation*.json")}
    again = run_program("tdmpc2/train.py", "-m", rows, "seed=1,2", *TINY_RUN, cwd=tmp_path)
    assert again.returncode == 0 and again.stdout.count("has ended already") == 4
    assert times == {path: path.stat().st_mtime_ns for path in root.rglob("evaluation*.json")}
