"""The picture of scores by size, drawn by the script as a user runs it, and the one that the documents show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_fixtures import ROOT, run_program

from tdmpc2.errors import UserError
from tdmpc2.evaluation.results import EpisodeResult, EvaluationResult, Machine
from tdmpc2.programs.picture import main, points_table, read_points

POINT = {"label": "a", "bytes": 1 << 20, "published": 28.45}


def description(folder: Path, *points: Any, **changes: Any) -> Path:
    path = folder / "picture.json"
    path.write_text(json.dumps({"title": "Scores", "points": list(points), **changes}))
    return path


def results(folder: Path, *returns: float) -> None:
    episodes = tuple(EpisodeResult("cup-spin", i, 1, value, 500) for i, value in enumerate(returns))
    machine = Machine("a processor", 2, "cpu")
    EvaluationResult("r", "mine", ("cup-spin",), episodes, {}, machine, 1.0, 500).save_json(folder / "r.json")


def test_the_script_draws_and_prints(tmp_path: Path) -> None:
    results(tmp_path, 300.0, 400.0)
    measured = {"label": "a", "bytes": 1 << 20, "results": "r.json", "side": "above"}
    path = description(tmp_path, POINT, measured, {"label": "b", "bytes": 3 << 19, "published": 5})
    out = tmp_path / "new" / "picture.svg"
    done = run_program("scripts/picture.py", str(path), "--out", str(out), cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[2] == ["a", "1.00", "28.45", "35.00", "(30.00", "to", "40.00)"]
    assert lines[3] == ["b", "1.50", "5.00", "-"]
    assert "<!-- a 35.00 -->" in out.read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": ""}, r"'points\[1\].label' is '', expected printable text"),
        ({"label": "a\nb"}, r"'points\[1\].label' is 'a\\nb', expected printable text"),
        ({"bytes": 0.5}, r"'points\[1\].bytes' is 0.5, expected a whole number"),
        ({"published": 200}, r"'points\[1\].published' is 200, expected a score from 0 to 100"),
        ({"published": None}, r"'points\[1\]' needs one of 'published' and 'results'"),
        ({"results": "r.json"}, r"'points\[1\]' needs one of 'published' and 'results'"),
        ({"published": None, "results": 3}, r"'points\[1\].results' is 3, expected the path"),
        ({"published": None, "results": "none.json"}, "no results file .*none.json"),
        ({"side": "up"}, r"'points\[1\].side' is 'up', expected one of left, right, above, below"),
        ({"score": 3}, r"'points\[1\]' has the unknown key 'score'"),
    ],
)
def test_wrong_points_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = description(tmp_path, POINT, {**POINT, **changes})
    with pytest.raises(UserError, match=message):
        main([str(path), "--out", str(tmp_path / "p.svg")])
    assert not (tmp_path / "p.svg").exists()


def test_wrong_files_are_named(tmp_path: Path) -> None:
    path = description(tmp_path, POINT, 3)
    with pytest.raises(UserError, match=r"'points\[1\]' is 3, expected an object"):
        read_points(path)
    for changes, message in (
        ({"title": 3}, "'title' is 3"),
        ({"points": []}, "'points' is missing or empty"),
        ({"points": [POINT] * 101}, "'points' has 101 entries, expected at most 100"),
    ):
        path.write_text(json.dumps({"title": "Scores", "points": [POINT], **changes}))
        with pytest.raises(UserError, match=message):
            read_points(path)
    path.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_points(path)
    with pytest.raises(UserError, match=r"no file .*absent\.json"):
        read_points(tmp_path / "absent.json")


def test_the_committed_picture_is_of_its_figures(tmp_path: Path) -> None:
    """Whoever changes docs/picture.json or a results file draws the picture anew."""
    main([str(ROOT / "docs" / "picture.json"), "--out", str(tmp_path / "p.svg")])

    def texts(path: Path) -> list[str]:
        return [line.strip() for line in path.read_text().splitlines() if line.strip().startswith("<!--")]

    assert texts(tmp_path / "p.svg") == texts(ROOT / "docs" / "score_by_size.svg")


def test_the_readme_shows_these_figures() -> None:
    _, points = read_points(ROOT / "docs" / "picture.json")
    assert points_table(points, style="markdown") in (ROOT / "README.md").read_text()
