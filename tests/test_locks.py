"""One writer a folder: whatever is deleted, whoever comes at the same moment."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from data_fixtures import ROOT, make_store

from tdmpc2.data.labels import LabelFacts, LabelWriter
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import UserError
from tdmpc2.locks import FolderLock, InUse
from tdmpc2.tasks import task_set
from tdmpc2.training.run_lock import run_lock

fcntl = pytest.importorskip("fcntl")

TASKS = task_set("two", ("cartpole-swingup", "reacher-easy"))
FACTS = LabelFacts("0" * 16, TASKS.tasks, 4, 5, "1M", "0" * 16, 1, "float32")

HOLDERS = {
    "run.lock": "from tdmpc2.training.run_lock import run_lock\nholder = run_lock(path)",
    "store.lock": "from tdmpc2.data.store import EpisodeStore\nholder = EpisodeStore.open(path).writer()",
    "labels.lock": (
        "from tdmpc2.data.labels import LabelFacts, LabelWriter\n"
        f"holder = LabelWriter(path, LabelFacts(*{(*FACTS.__dict__.values(),)!r}))"
    ),
}


def started(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def held(name: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    program = f"import sys\nfrom pathlib import Path\npath = Path(sys.argv[1])\n{HOLDERS[name]}\n"
    process = started(f"{program}with holder:\n    print('held', flush=True)\n    sys.stdin.read()", path)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def take(name: str, path: Path) -> None:
    if name == "run.lock":
        with run_lock(path):
            pass
    elif name == "store.lock":
        with EpisodeStore.open(path).writer():
            pass
    else:
        with LabelWriter(path, FACTS):
            pass


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="folders have no locks elsewhere")
@pytest.mark.parametrize("name", HOLDERS)
def test_a_lock_holds_when_its_file_is_deleted(tmp_path: Path, name: str) -> None:
    path = tmp_path / "folder"
    if name == "store.lock":
        make_store(path, TASKS, [0, 1])
    with held(name, path):
        for _ in range(2):
            with pytest.raises(UserError, match=r"another (process|writer|program)"):
                take(name, path)
            (path / name).unlink(missing_ok=True)
        (path / name).write_text("")  # and when it is made anew
        with pytest.raises(UserError, match=r"another (process|writer|program)"):
            take(name, path)
    take(name, path)  # killed: the system has let go


def test_where_folders_cannot_be_locked_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if Path(f"/dev/fd/{descriptor}").is_dir():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # as NFS says of a folder
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    first, second = FolderLock(tmp_path / "f", "a.lock"), FolderLock(tmp_path / "f", "a.lock")
    first.acquire()
    with pytest.raises(InUse):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_it_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "a" / "b", "x.lock")
    lock.acquire()
    lock.release()
    assert not list(tmp_path.iterdir())
    lock.acquire()
    (tmp_path / "a" / "b" / "kept").write_text("")
    lock.release()
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {"kept", "x.lock"}


def test_one_at_a_time_even_where_the_folder_comes_and_goes(tmp_path: Path) -> None:
    """Every release removes the folder, so that others lock one that is about to vanish."""
    program = """
import os, sys
from pathlib import Path
from tdmpc2.locks import FolderLock, InUse
folder, marker = Path(sys.argv[1]), sys.argv[2]
taken = 0
print("ready", flush=True)
sys.stdin.readline()
while taken < 300:
    lock = FolderLock(folder, "x.lock")
    try:
        lock.acquire()
    except InUse:
        continue
    os.close(os.open(marker, os.O_CREAT | os.O_EXCL))  # fails where another is inside
    os.unlink(marker)
    lock.release()
    taken += 1
"""
    processes = [started(program, tmp_path / "folder", tmp_path / "marker") for _ in range(2)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=120)
    assert [process.returncode for process in processes] == [0, 0]


def test_two_that_create_a_store_at_once_both_keep_their_episodes(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
import numpy as np
from tdmpc2.data.importing import open_or_create
from tdmpc2.errors import DataError
from tdmpc2.tasks import task_set
tasks, name = task_set("two", ("cartpole-swingup", "reacher-easy")), sys.argv[2]
steps = tasks.episode_steps[0] + 1
shape = (1, steps)
print("ready", flush=True)
for line in sys.stdin:
    store = open_or_create(Path(sys.argv[1]) / line.strip(), tasks)
    while True:
        try:
            store.append(np.zeros((*shape, tasks.obs_dim)), np.zeros((*shape, tasks.action_dim)), np.zeros(shape), [0],
                         source=name)
            break
        except DataError as error:
            assert "another writer" in str(error), error
    print("done", flush=True)
"""
    processes = [started(program, tmp_path, name) for name in ("a", "b")]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for number in range(20):
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "done\n"
        store = EpisodeStore.open(tmp_path / str(number))
        assert sorted(segment.source for segment in store.segments) == ["a", "b"]
        store.verify()
    for process in processes:
        process.communicate(timeout=60)
