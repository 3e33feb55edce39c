"""The page about a store, as a user makes it."""

from __future__ import annotations

import json
from pathlib import Path

from run_fixtures import DUO, TASKS, files_in, run_program, store_path

from tdmpc2.data.importing import open_or_create
from tdmpc2.data.store import EpisodeStore

CARD = "scripts/data_card.py"


def test_a_page_about_a_store(tmp_path: Path) -> None:
    store = EpisodeStore.open(store_path())
    done = run_program(CARD, str(store_path()), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "data_card" / "store"
    assert files_in(folder) == ["order.svg", "report.html", "report.json", "report.md", "returns.svg"]
    figures = json.loads((folder / "report.json").read_text())
    assert (figures["fingerprint"], figures["episodes"]) == (store.fingerprint, 4)
    assert [task["name"] for task in figures["tasks"]] == list(TASKS)
    markdown, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    for text in (store.fingerprint, "2,004", "seed 1; first 0", *TASKS):
        assert text in markdown and text in page
    assert page.count("<svg") == 2 and "![Returns by task](returns.svg)" in markdown


def test_what_is_no_store_or_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    open_or_create(tmp_path / "empty", DUO)
    for place, message in (
        ("nowhere", "nowhere/store.json: found no such file, expected an episode store's; check the store's folder."),
        ("folder", "folder/store.json: found no such file, expected an episode store's; check the store's folder."),
        ("empty", "empty: the store holds no episodes yet; collect or import some first."),
    ):
        done = run_program(CARD, place, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (2, f"error: {message}\n")
    assert not (tmp_path / "results").exists()
