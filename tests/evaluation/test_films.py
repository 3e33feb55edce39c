"""The page beside an evaluation's films."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from run_fixtures import TASKS, files_in

from tdmpc2.errors import UserError
from tdmpc2.evaluation.films import film_name, save_film_page
from tdmpc2.evaluation.results import EpisodeResult, EvaluationResult, Machine


def result(label: str = "mine") -> EvaluationResult:
    episodes = tuple(
        EpisodeResult(task, number, 1, value, 500)
        for task, values in ((TASKS[0], (400.0, 500.0)), (TASKS[1], (100.0, 200.0)))
        for number, value in enumerate(values)
    )
    return EvaluationResult(label, "duo", TASKS, episodes, {}, Machine("a processor", 2, "cpu"), 1.0, 2000)


def test_the_page_has_each_film_with_its_return_and_score(tmp_path: Path) -> None:
    for task in TASKS:
        (tmp_path / film_name(task)).write_bytes(b"a film")
    path = save_film_page(result("<mine>"), tmp_path)
    page = path.read_text()
    assert path == tmp_path / "index.html"
    assert re.findall(r'<video src="([^"]*)"', page) == [f"{task}.mp4" for task in TASKS]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert captions == [f"{TASKS[0]}: return 400; score 45.0 (2 episodes)",
                        f"{TASKS[1]}: return 100; score 15.0 (2 episodes)"]  # fmt: skip
    assert "Score 30.0 of 100 (95%: 25.0 to 35.0): 2 tasks of" in page and "4 episodes." in page
    assert "<h1>&lt;mine&gt;</h1>" in page and "<mine>" not in page
    assert "http" not in page and "<script" not in page, "it needs nothing else"


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / film_name(TASKS[0])).write_bytes(b"a film")
    with pytest.raises(UserError, match=rf"{TASKS[1]}\.mp4: no such film; evaluate with save_video=true"):
        save_film_page(result(), tmp_path)
    (tmp_path / film_name(TASKS[1])).write_bytes(b"a film")
    (tmp_path / "index.html").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*index\.html: a folder of that name is in the way"):
        save_film_page(result(), tmp_path)
    assert files_in(tmp_path) == sorted(map(film_name, TASKS))
