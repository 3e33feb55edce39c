"""An import killed at any moment: the store opens whole, and importing again gives the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import ROOT, make_episodes, published_tensors, save_published

from tdmpc2.data.store import EpisodeStore
from tdmpc2.tasks import task_set

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills by signal")

MT30 = task_set("mt30")
EPISODES = 24
PROGRAM = """
import os, signal, sys
from tdmpc2.data import importing, store
importing._BLOCK_BYTES, importing._SEGMENT_BYTES = 130_000, 95_000  # episodes: 2 in a block, 3 in a segment
stop_at = sys.argv[3]
calls = 0
def killing(name, inner, before):
    def call(*arguments, **named):
        global calls
        calls += name == stop_at.partition(":")[0]
        hit = f"{name}:{calls}" == stop_at
        if hit and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = inner(*arguments, **named)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
store.StoreWriter._write = killing("write", store.StoreWriter._write, before=False)
store.os.fsync = killing("sync", os.fsync, before=False)
store.atomic_write_text = killing("header", store.atomic_write_text, before=True)
store.StoreWriter._close = killing("close", store.StoreWriter._close, before=True)
from tdmpc2.tasks import task_set
into = importing.open_or_create(sys.argv[2], task_set("mt30"), dtype="float16")
importing.import_files([sys.argv[1]], into, lambda progress: print(progress.episodes, flush=True))
"""


def started(published: Path, store: Path, stop_at: str = "never") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(published), str(store), stop_at],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def imported(published: Path, store: Path) -> None:
    program = started(published, store)
    _, errors = program.communicate(timeout=120)
    assert program.returncode == 0, errors


def content(store: Path) -> dict[str, bytes]:
    """Every file's bytes, by its name."""
    return {file.name: file.read_bytes() for file in store.iterdir()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    episodes = make_episodes(MT30, [n % 30 for n in range(EPISODES)], 501, 24, 6)
    episodes["obs"] /= 1000  # within float16
    return save_published(tmp_path_factory.mktemp("published") / "chunk_0.pt", published_tensors(episodes))


@pytest.fixture(scope="module")
def uninterrupted(published: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "s"
    imported(published, path)
    store = EpisodeStore.open(path)
    assert len(store) == EPISODES and len(store.segments) > 4 and store.verify()
    return content(path)


MOMENTS = ["header:1", "sync:1", "write:1", "header:3", "close:3", "write:20", "sync:9", "header:9"]
"""In the n-th call: before the header is written or the files are closed, after a write or an fsync."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_import_goes_on_to_the_same_bytes(
    tmp_path: Path, published: Path, uninterrupted: dict[str, bytes], moment: str
) -> None:
    program = started(published, tmp_path / "s", moment)
    program.communicate(timeout=120)
    assert program.returncode == -signal.SIGKILL
    if (tmp_path / "s" / "store.json").exists():
        killed = EpisodeStore.open(tmp_path / "s")
        assert len(killed) % 3 == 0 and len(killed) < EPISODES  # whole segments only
        killed.verify()
    imported(published, tmp_path / "s")
    assert content(tmp_path / "s") == uninterrupted


@pytest.mark.slow
def test_kills_at_any_time(tmp_path: Path, published: Path, uninterrupted: dict[str, bytes]) -> None:
    """Killed again and again, a little later each time, until an import gets through."""
    for wait in delays():
        program = started(published, tmp_path / "s")
        assert program.stdout is not None
        program.stdout.readline()  # the import has begun
        time.sleep(wait)
        program.kill()
        program.communicate(timeout=120)
        if (tmp_path / "s" / "store.json").exists():
            EpisodeStore.open(tmp_path / "s").verify()
    imported(published, tmp_path / "s")
    assert content(tmp_path / "s") == uninterrupted


def delays() -> Iterator[float]:
    yield from np.random.default_rng(0).uniform(0, 0.03, size=12)
