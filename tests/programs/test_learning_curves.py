"""The returns of online runs, as a table and a chart."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tdmpc2.errors import UserError
from tdmpc2.programs import learning_curves
from tdmpc2.reporting.metrics import LoggingSettings, MetricLogger


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    with MetricLogger(tmp_path / "seed1", LoggingSettings(console=False), 10) as logger:
        logger.log(1, {"seed_return/cup-catch": 3.0, "decisions": 500, "environment_steps": 1000}, "episode")
        logger.log(5, {"total_loss": 1.0, "decisions": 700, "environment_steps": 1400})
        logger.log(9, {"planner_return/cup-catch": 800.0, "decisions": 1000, "environment_steps": 2000}, "episode")
        logger.log(9, {"normalised_score": 90.0, "return/cup-catch": 900.0, "environment_steps": 2000}, "eval")
    return tmp_path / "seed1"


def drawn(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["learning_curves.py", *map(str, arguments)])
    learning_curves.main()


def test_rows_and_chart(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = tmp_path / "published.json"
    steps = {"0": [0, 1, 2], "1500": [850, 900, 950], "4000": [900, 950, 990], "9000": [1, 2, 3], "seeds": 3}
    published.write_text(json.dumps({"tasks": {"cup-catch": steps}}))
    drawn(monkeypatch, run_dir, "--out", tmp_path / "out", "--published", published)
    with (tmp_path / "out" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["kind"], r["environment_steps"], r["return"]) for r in rows] == [
        ("seed", "1000", "3.0"),
        ("planner", "2000", "800.0"),
        ("evaluation", "2000", "900.0"),
    ]
    assert "cup-catch" in (tmp_path / "out" / "curves.svg").read_text()
    points = learning_curves.published_points(published, "cup-catch", 2000)
    assert [(p.x, p.low, p.y, p.high) for p in points] == [(0, 0, 1, 2), (1500, 850, 900, 950), (4000, 900, 950, 990)]
    assert learning_curves.published_points(published, "cup-spin", 2000) == []


def test_what_is_no_online_run(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="holds no metrics"):
        drawn(monkeypatch, tmp_path / "nothing", "--out", tmp_path)
    with MetricLogger(tmp_path / "offline", LoggingSettings(console=False), 10) as logger:
        logger.log(1, {"return/cup-catch": 3.0}, "eval")
    with pytest.raises(UserError, match="give a run of mode=online"):
        drawn(monkeypatch, tmp_path / "offline", "--out", tmp_path)
    (tmp_path / "odd.json").write_text('{"tasks": []}')
    with pytest.raises(UserError, match="is no file of published curves"):
        drawn(monkeypatch, run_dir, "--out", tmp_path, "--published", tmp_path / "odd.json")
