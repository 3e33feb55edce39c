"""The report of the quickstart, from results as evaluations leave them; the whole path is slow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_fixtures import ROOT, run_program

from tdmpc2.evaluation.results import EpisodeResult, EvaluationResult, Machine, load_json
from tdmpc2.programs.quickstart import FACTS, TEACHER, Plan, facts_of, write_report

LABELS = ("teacher", "scratch", "distilled", "distilled FP16")
PLAN = Plan(steps=20, batch_size=16, episodes=2, d_coef=0.4, seed=1)


def result(label: str, *returns: float) -> EvaluationResult:
    episodes = tuple(EpisodeResult("cup-spin", i, 1, value, 500) for i, value in enumerate(returns))
    machine = Machine("a processor", 2, "cpu")
    return EvaluationResult(label, "quickstart", ("cup-spin",), episodes, {}, machine, 1.0, 500, {"torch": "2.13.0"})


def test_the_report(tmp_path: Path) -> None:
    results = {label: result(label, 100.0 * i, 100.0 * i + 50) for i, label in enumerate(LABELS)}
    facts = dict.fromkeys(LABELS, ("1,410,515", "7.49"))
    curves = {"scratch": [(2, 1.0), (4, float("nan"))], "distilled": [(2, 2.0), (4, 3.0)]}
    printed = write_report(tmp_path, PLAN, torch.device("cpu"), results, facts, curves, 60.0, 3.14)
    assert printed.splitlines()[0].split("  ")[0] == "agent" and "a: scratch\nb: distilled" in printed
    names = {"learning_curve.png", "report.json", "report.md", "scores.png"}
    assert {path.name for path in tmp_path.iterdir()} == names

    lines = (tmp_path / "report.md").read_text().splitlines()
    assert lines[0] == "# Quickstart report" and lines[2].startswith("1 tasks, 2 episodes each, the same episodes")
    header = next(line for line in lines if line.startswith("| agent"))
    columns = ["agent", *FACTS, "cup-spin", "score", "95% interval"]
    assert [cell.strip() for cell in header.strip("|").split("|")] == columns
    scratch = next(line for line in lines if line.startswith("| scratch"))
    cells = [cell.strip() for cell in scratch.strip("|").split("|")]
    assert cells == ["scratch", "1,410,515", "7.49", "125", "12.5", "10.0 to 15.0"]
    assert "![learning curves](learning_curve.png)" in lines and "![scores](scores.png)" in lines
    assert lines[-1] == "3.1 minutes on a processor, 2 cores, device cpu; torch 2.13.0."

    figures = json.loads((tmp_path / "report.json").read_text())
    assert list(figures) == [
        *("plan", "planner", "scores", "returns", "distilled_minus_scratch", "learning_curves"),
        *("minutes", "machine", "versions"),
    ]
    assert figures["scores"]["scratch"] == {"value": 12.5, "interval": {"low": 10.0, "high": 15.0}}
    assert figures["returns"]["scratch"] == {"cup-spin": [100.0, 150.0]}
    assert figures["learning_curves"]["scratch"] == [[2, 1.0], [4, None]]


def test_what_the_report_says_of_a_checkpoint() -> None:
    assert facts_of(TEACHER) == ("3,377,907", "6.45")


@pytest.mark.parametrize("argument", ["--steps=0", "--batch-size=0", "--episodes=0"])
def test_budgets_that_are_none(tmp_path: Path, argument: str) -> None:
    done = run_program("scripts/quickstart.py", argument, "--out", "out", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_whole_path(tmp_path: Path) -> None:
    budget = ("--steps", "8", "--batch-size", "8", "--episodes", "1", "--device", "cpu")
    places = ("--out", str(tmp_path / "out"), "--data", str(tmp_path / "data"))
    command = [sys.executable, str(ROOT / "scripts" / "quickstart.py"), *budget, *places]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    assert tuple(figures["scores"]) == LABELS
    report = (tmp_path / "out" / "report.md").read_text()
    for label in LABELS:
        assert load_json(tmp_path / "out" / f"{label}.json").returns() == figures["returns"][label]
        assert f"| {label} " in report
    assert (tmp_path / "out" / "student-fp16.safetensors").is_file()
