"""The report of the quickstart, from results as evaluations leave them; the whole path is slow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_fixtures import ROOT, run_program

from tdmpc2.embedded import TEACHER
from tdmpc2.evaluation.results import EpisodeResult, EvaluationResult, Machine
from tdmpc2.programs.quickstart import REWARDS, ROWS, SCRATCH, SMALLER, VALUES, Plan, Scored, facts_of, write_report
from tdmpc2.settings.entry import CONFIG_DIR

LABELS = ("teacher", SCRATCH, REWARDS, VALUES, *SMALLER)
HALF = next(iter(SMALLER))
PLAN = Plan(steps=20, batch_size=16, episodes=2, d_coef=0.4, seed=1)


def result(label: str, *returns: float) -> EvaluationResult:
    episodes = tuple(EpisodeResult("cup-spin", i, 1, value, 500) for i, value in enumerate(returns))
    machine = Machine("a processor", 2, "cpu")
    return EvaluationResult(label, "quickstart", ("cup-spin",), episodes, {}, machine, 1.0, 500, {"torch": "2.13.0"})


def test_the_report(tmp_path: Path) -> None:
    agents = {
        label: Scored(
            TEACHER,
            result(label, 100.0 * i, 100.0 * i + 50),
            None if label in SMALLER else result(label, 10.0 * i, 10.0 * i),
        )
        for i, label in enumerate(LABELS)
    }
    curves = {SCRATCH: [(2, 1.0), (4, float("nan"))], VALUES: [(2, 2.0), (4, 3.0)]}
    printed = write_report(tmp_path, PLAN, torch.device("cpu"), agents, curves, 3.14)
    assert printed.splitlines()[0].startswith("agent  ") and "prior alone" in printed.splitlines()[0]
    names = {"learning.svg", "report.html", "report.json", "report.md", "scores.svg"}
    assert {path.name for path in tmp_path.iterdir()} == names

    lines = (tmp_path / "report.md").read_text().splitlines()
    assert lines[0] == "# Quickstart report" and lines[2].startswith("1 tasks, 2 episodes each, the same episodes")
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.strip("|").split("|")] for line in lines if "|" in line
    }
    assert rows["agent"][1:5] == ["parameters", "file (MiB)", "cup-spin", "planned"]
    assert rows[SCRATCH] == [SCRATCH, "3,377,907", "6.45", "125", "12.5", "10.0 to 15.0", "1.0", "1.0 to 1.0"]
    assert rows[HALF][-2:] == ["-", "-"]
    assert f"## {VALUES} against scratch, planned, episode by episode" in lines
    assert "![Score of the policy prior while training](learning.svg)" in lines and "![Scores](scores.svg)" in lines
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2 and page.count("<table") == 3
    assert lines[-1] == "3.1 minutes on a processor, 2 cores, device cpu; torch 2.13.0."

    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["scores"][SCRATCH]["planned"]["value"] == 12.5 and figures["scores"][HALF]["prior"] is None
    assert figures["returns"][SCRATCH] == {"cup-spin": [100.0, 150.0]}
    assert figures["against_scratch"].keys() == {REWARDS, VALUES}
    assert figures["learning_curves"][SCRATCH] == [[2, 1.0], [4, None]]


def test_its_students_are_experiments() -> None:
    assert all((CONFIG_DIR / "experiment" / f"{row}.yaml").is_file() for row in ROWS.values())


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
    places = ("--out", "out", "--data", "data")
    command = [sys.executable, str(ROOT / "scripts" / "quickstart.py"), *budget, *places]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    assert tuple(figures["scores"]) == LABELS
    report = (tmp_path / "out" / "report.md").read_text()
    assert all(f"| {label} " in report for label in LABELS)
    for scheme, mib in (("fp16", 3), ("int8", 1.5)):
        (smaller,) = (tmp_path / "out" / "runs").rglob(f"final-{scheme}.safetensors")
        assert smaller.stat().st_size < mib * 2**20
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (
        again.returncode == 0
        and json.loads((tmp_path / "out" / "report.json").read_text())["scores"] == figures["scores"]
    )
