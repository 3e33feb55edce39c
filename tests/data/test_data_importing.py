"""Importing published files: whole or not at all, once, and with the fault's place named."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_fixtures import (
    SHARED_CHUNK,
    FakeStorage,
    FakeTensor,
    make_episodes,
    needs_shared_chunk,
    pickled,
    published_tensors,
    run_script,
    save_published,
    save_zip,
)

from tdmpc2.data import importing
from tdmpc2.data.importing import FileProgress, import_files, open_or_create, summary
from tdmpc2.data.published import PublishedFile
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import DataError, UserError
from tdmpc2.tasks import task_set

MT30 = task_set("mt30")
STEPS = 501


def chunk(path: Path, ids: list[int], shift: float = 0.0) -> Path:
    """A published file of these tasks; `shift` makes another content of it."""
    tensors = published_tensors(make_episodes(MT30, ids, STEPS, 24, 6))
    tensors["reward"] += shift
    return save_published(path, tensors)


def assert_equal(store: EpisodeStore, first: int, path: Path) -> None:
    """The store's episodes from `first` on are those of the file."""
    file = PublishedFile.open(path)
    (block,) = file.blocks(len(file))
    for index in range(len(file)):
        episode = store.episode(first + index)
        own = {"obs": episode["obs"].shape[1], "action": episode["action"].shape[1]}
        for key in ("obs", "action", "reward"):
            np.testing.assert_array_equal(episode[key], getattr(block, key)[index][..., : own.get(key)])
        assert episode["task"] == MT30.tasks[block.task[index, 0]]


def test_imports_in_blocks_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [chunk(tmp_path / "chunk_0.pt", [0, 7, 29]), chunk(tmp_path / "chunk_1.pt", [3, 3])]
    store = open_or_create(tmp_path / "s", MT30, notes="a note")
    monkeypatch.setattr(importing, "_BLOCK_BYTES", 2 * store.header.episode_bytes())
    seen: list[FileProgress] = []
    import_files(files, store, seen.append)
    assert [(p.file, p.episodes, p.total_episodes) for p in seen] == [
        (1, 0, 3), (1, 2, 3), (1, 3, 3), (2, 0, 2), (2, 2, 2)
    ]  # fmt: skip
    assert_equal(store, 0, files[0])
    assert_equal(store, 3, files[1])
    store = EpisodeStore.open(tmp_path / "s")
    assert store.task_ids.tolist() == [0, 7, 29, 3, 3] and store.notes == "a note"
    assert [segment.details["file"] for segment in store.segments] == ["chunk_0.pt", "chunk_1.pt"]
    assert store.segments[0].details["dtypes"]["task"] == "int32"
    assert store.verify()


@needs_shared_chunk
def test_imports_the_shared_chunk(tmp_path: Path) -> None:
    store = open_or_create(tmp_path / "s", MT30)
    import_files([SHARED_CHUNK], store)
    assert len(store) == 60 and store.num_transitions == 60 * STEPS
    assert np.bincount(store.task_ids).tolist() == [2] * 30
    assert_equal(store, 0, SHARED_CHUNK)
    expected = torch.load(SHARED_CHUNK, weights_only=False)["reward"][:, 1:].double().sum(dim=1)
    np.testing.assert_allclose(store.returns(), expected, rtol=1e-6)


def test_a_file_is_imported_once_whatever_its_name(tmp_path: Path) -> None:
    first = chunk(tmp_path / "chunk_0.pt", [0, 7])
    copy = Path(shutil.copy(first, tmp_path / "copy.pt"))
    store = open_or_create(tmp_path / "s", MT30)
    seen: list[FileProgress] = []
    import_files([first, copy, first], store, seen.append)
    assert [p.skipped for p in seen if p.episodes] == [False, True, True] and len(store) == 2
    chunk(first, [0, 7], shift=1)
    import_files([copy, first], open_or_create(tmp_path / "s", MT30), seen.append)
    assert [p.skipped for p in seen if p.episodes][3:] == [True, False]
    assert len(EpisodeStore.open(tmp_path / "s")) == 4


def test_an_interrupted_import_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [chunk(tmp_path / "a.pt", [0, 7, 29, 4, 4, 11, 2]), chunk(tmp_path / "b.pt", [3, 3, 9])]
    whole = open_or_create(tmp_path / "whole", MT30)
    monkeypatch.setattr(importing, "_SEGMENT_BYTES", 2 * whole.header.episode_bytes())
    monkeypatch.setattr(importing, "_BLOCK_BYTES", 1)
    import_files(files, whole)
    assert [(s.details["file"], s.details["first"], s.details["stop"]) for s in whole.segments] == [
        ("a.pt", 0, 2), ("a.pt", 2, 4), ("a.pt", 4, 6), ("a.pt", 6, 7), ("b.pt", 0, 2), ("b.pt", 2, 3)
    ]  # fmt: skip
    for after in range(1, 10):
        seen: list[FileProgress] = []

        def stop(progress: FileProgress, seen: list[FileProgress] = seen, after: int = after) -> None:
            seen.append(progress)
            if len(seen) == after:
                raise KeyboardInterrupt

        path = tmp_path / f"parts{after}"
        with pytest.raises(KeyboardInterrupt):
            import_files(files, open_or_create(path, MT30), stop)
        import_files(files, open_or_create(path, MT30))
        for name in ("rows.bin", "tasks.bin", "returns.bin"):
            assert (path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (after, name)
        assert EpisodeStore.open(path).fingerprint == whole.fingerprint


def test_a_changed_byte_in_the_file_is_found_before_anything_is_imported(tmp_path: Path) -> None:
    path = chunk(tmp_path / "a.pt", [0, 7])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # within a tensor: the value stays a number
    path.write_bytes(content)
    store = open_or_create(tmp_path / "s", MT30)
    with pytest.raises(DataError, match=r"a\.pt: member 'data/\d' has CRC-32 .*: the file is damaged. Get it again"):
        import_files([path], store)
    assert len(store) == 0


def test_the_type_of_a_store_is_kept(tmp_path: Path) -> None:
    path = chunk(tmp_path / "a.pt", [28, 29])
    import_files([path], open_or_create(tmp_path / "s", MT30, dtype="float16"))
    assert open_or_create(tmp_path / "s", MT30).header.dtype == "float16"
    with pytest.raises(DataError, match="found a store of float16, not float32; choose another folder"):
        open_or_create(tmp_path / "s", MT30, dtype="float32")


def test_what_was_imported_before_a_fault_stays(tmp_path: Path) -> None:
    good, bad = chunk(tmp_path / "good.pt", [0, 7]), tmp_path / "bad.pt"
    tensors = published_tensors(make_episodes(MT30, [1, 2], STEPS, 24, 6))
    tensors["obs"][1, 400, 3] = torch.nan
    save_published(bad, tensors)
    store = open_or_create(tmp_path / "s", MT30)
    with pytest.raises(DataError, match=r"bad\.pt: episode 1, step 400, key 'obs': found nan"):
        import_files([good, bad], store)
    store = open_or_create(tmp_path / "s", MT30)
    assert_equal(store, 0, good)
    tensors["obs"][1, 400, 3] = 0
    import_files([good, save_published(bad, tensors)], store)
    assert store.task_ids.tolist() == [0, 7, 1, 2]


def test_nothing_is_read_when_one_file_does_not_fit(tmp_path: Path) -> None:
    good, short = chunk(tmp_path / "good.pt", [0]), tmp_path / "short.pt"
    save_published(short, published_tensors(make_episodes(MT30, [1], 101, 24, 6)))
    store = open_or_create(tmp_path / "s", MT30)
    with pytest.raises(DataError, match=r"short\.pt: found obs \[1, 101, 24\].*expected obs \[episodes, 501, 24\]"):
        import_files([good, short], store)
    assert len(EpisodeStore.open(tmp_path / "s")) == 0


def test_another_width_is_refused_with_both(tmp_path: Path) -> None:
    store = open_or_create(tmp_path / "s", MT30)
    tensors = published_tensors(make_episodes(MT30, [7], STEPS, 39, 4))
    with pytest.raises(DataError, match=r"39\], action \[1, 501, 4\].*expected.*24\], action \[episodes, 501, 6\]"):
        import_files([save_published(tmp_path / "a.pt", tensors)], store)


def add_episodes(store: EpisodeStore, ids: list[int]) -> None:
    store.append(**make_episodes(task_set("own", store.tasks), ids, STEPS, store.obs_dim, store.action_dim))


def made_store(path: Path, tasks: list[str], ids: list[int]) -> EpisodeStore:
    store = open_or_create(path, task_set("own", tasks))
    add_episodes(store, ids)
    return store


def test_stores_of_some_tasks_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made_store(tmp_path / "one", ["pendulum-spin"], [0, 0, 0])
    two = made_store(tmp_path / "two", ["walker-walk", "pendulum-swingup"], [1, 0])
    store = open_or_create(tmp_path / "s", task_set("three", ["pendulum-swingup", "pendulum-spin", "walker-walk"]))
    monkeypatch.setattr(importing, "_BLOCK_BYTES", 1)
    import_files([one.path, two.path], store)
    assert [store.tasks[task] for task in store.task_ids] == [
        *["pendulum-spin"] * 3, "pendulum-swingup", "walker-walk"
    ]  # fmt: skip
    for index, (source, number) in enumerate([(one, 0), (one, 1), (one, 2), (two, 0), (two, 1)]):
        found, expected = store.episode(index), source.episode(number)
        for key in ("obs", "action", "reward"):
            np.testing.assert_array_equal(found[key], expected[key])
    # What a source has gained since is taken, what was taken is not taken again.
    add_episodes(one, [0, 0])
    seen: list[FileProgress] = []
    import_files([one.path, two.path, two.path], EpisodeStore.open(store.path), seen.append)
    assert [(p.file, p.episodes, p.skipped) for p in seen] == [
        (1, 3, False), (1, 4, False), (1, 5, False), (2, 2, True), (3, 2, True)
    ]  # fmt: skip
    store = EpisodeStore.open(store.path)
    assert len(store) == 7 and store.verify()
    np.testing.assert_array_equal(store.episode(6)["obs"], EpisodeStore.open(one.path).episode(4)["obs"])


def test_episodes_of_other_tasks_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = made_store(tmp_path / "wide", ["walker-walk", "pendulum-swingup"], [1, 0, 0, 1, 0])
    monkeypatch.setattr(importing, "_BLOCK_BYTES", 1)
    for _ in range(2):
        store = open_or_create(tmp_path / "s", task_set("pendulum-swingup"))
        import_files([wide.path], store)
    assert len(store) == 2 and store.verify()
    for index, number in enumerate((0, 3)):
        for key in ("obs", "action", "reward"):
            np.testing.assert_array_equal(store.episode(index)[key], wide.episode(number)[key])


def test_a_store_of_another_task_is_refused(tmp_path: Path) -> None:
    other = made_store(tmp_path / "other", ["walker-walk"], [0])
    store = open_or_create(tmp_path / "s", task_set("pendulum-spin"))
    with pytest.raises(DataError, match=r"other: found episodes of walker-walk, expected some of pendulum-spin"):
        import_files([other.path], store)
    with pytest.raises(DataError, match="is the store itself"):
        import_files([store.path], store)
    with pytest.raises(DataError, match=r"empty.store\.json"):
        (tmp_path / "empty").mkdir()
        import_files([tmp_path / "empty"], store)


FAULTS = {
    "task change": r"episode 1, step 30, key 'task': found 7 after 29",
    "task range": r"episode 1, key 'task': found 30, expected 0 to 29",
    "overflow": r"episode 0, step 2, key 'reward': found inf",
    "late nan": r"episode 2, step 1, key 'action': found nan",
    "padding": r"episode 1, step 9, key 'obs': found 2.0 in column 3, expected 0: pendulum-spin is 3 wide",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_values_are_named_by_place(tmp_path: Path, fault: str) -> None:
    tensors = published_tensors(make_episodes(MT30, [0, 29, 5], STEPS, 24, 6))
    match fault:
        case "task change":
            tensors["task"][1, 30] = 7
        case "task range":
            tensors["task"][1] = 30
        case "overflow":
            tensors["reward"] = tensors["reward"].double()
            tensors["reward"][0, 2] = 1e39
        case "late nan":
            tensors["action"][2, 1, 0] = torch.nan
        case "padding":
            tensors["obs"][1, 9, 3] = 2
    store = open_or_create(tmp_path / "s", MT30)
    with pytest.raises(DataError, match=FAULTS[fault]):
        import_files([save_published(tmp_path / "a.pt", tensors)], store)


def test_a_store_of_another_kind_is_refused(tmp_path: Path) -> None:
    open_or_create(tmp_path / "s", task_set("four", ("cartpole-swingup", "reacher-easy", "cup-spin", "pendulum-spin")))
    with pytest.raises(DataError, match=r"store of 4 tasks .*, obs 8.*, expected 30 tasks"):
        open_or_create(tmp_path / "s", MT30)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        open_or_create(tmp_path / "file", MT30)


def test_a_disk_too_small_is_refused_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = chunk(tmp_path / "a.pt", [0, 7, 29]), open_or_create(tmp_path / "s", MT30)
    monkeypatch.setattr("tdmpc2.data.store.shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"found .* free, expected at least .* for 3 episodes"):
        import_files([path], store)
    assert len(store) == 0


def test_a_small_file_of_many_episodes_is_refused(tmp_path: Path) -> None:
    """A billion episodes that all share the bytes of one: a small file, 35 TB as a store."""
    count = 10**9
    tensors = {
        "obs": FakeTensor(FakeStorage(torch.FloatStorage, "0", STEPS * 24), 0, (count, STEPS, 24), (0, 24, 1)),
        "action": FakeTensor(FakeStorage(torch.FloatStorage, "0", STEPS * 24), 0, (count, STEPS, 6), (0, 6, 1)),
        "reward": FakeTensor(FakeStorage(torch.FloatStorage, "0", STEPS * 24), 0, (count, STEPS), (0, 1)),
        "task": FakeTensor(FakeStorage(torch.IntStorage, "0", STEPS * 24), 0, (count, STEPS), (0, 1)),
    }
    path = save_zip(tmp_path / "a.pt", pickled(tensors), {"data/0": bytes(STEPS * 24 * 4)})
    with pytest.raises(DataError, match=r"expected at least \d+\.\d GB for 1,000,000,000 episodes"):
        import_files([path], open_or_create(tmp_path / "s", MT30))


def test_the_summary_counts_by_task(tmp_path: Path) -> None:
    store = open_or_create(tmp_path / "s", MT30, notes="a note")
    import_files([chunk(tmp_path / "a.pt", [0, 0, 29])], store)
    text = summary(store)
    assert re.search(r"^walker-stand +2 +1,002 +[\d.]+ +[\d.]+$", text, re.M)
    assert re.search(r"^walker-walk +0 +0 +- +-$", text, re.M)
    assert re.search(r"^all +3 +1,503$", text, re.M)
    assert "notes: a note" in text and re.search(r"^3 episodes from .*a\.pt$", text, re.M)


def test_the_script(tmp_path: Path) -> None:
    path = chunk(tmp_path / "chunk_0.pt", [0, 7, 29])
    result = run_script("import_data.py", path, "--store", tmp_path / "s", "--verify")
    assert result.returncode == 0, result.stderr
    assert re.search(r"^walker-stand +1 +501 ", result.stdout, re.M)
    assert "every checksum is right" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("[1/1] chunk_0.pt: 3/3 episodes  100%")
    again = run_script("import_data.py", path, "--store", tmp_path / "s")
    assert again.stderr == "[1/1] chunk_0.pt: already in the store, skipped\n"
    assert run_script("import_data.py", "--store", tmp_path / "s", "--summary").stdout == again.stdout
    (tmp_path / "s" / "rows.bin").unlink()
    broken = run_script("import_data.py", "--store", tmp_path / "s", "--summary")
    assert broken.returncode == 2 and broken.stderr.startswith("error: ") and "Traceback" not in broken.stderr
    unknown = run_script("import_data.py", path, "--store", tmp_path / "t", "--task", "mt31")
    assert unknown.returncode == 2 and "unknown task 'mt31'" in unknown.stderr


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path) -> None:
    """A 1 GB file becomes a 1.2 GB store in a process that may hold a third of it."""
    count = 20_000
    storage = FakeStorage(torch.FloatStorage, "0", count * STEPS * 24)
    small = FakeStorage(torch.FloatStorage, "1", STEPS * 6)
    tensors = {
        "obs": FakeTensor(storage, 0, (count, STEPS, 24), (STEPS * 24, 24, 1)),
        "action": FakeTensor(small, 0, (count, STEPS, 6), (0, 6, 1)),
        "reward": FakeTensor(small, 0, (count, STEPS), (0, 1)),
        "task": FakeTensor(FakeStorage(torch.IntStorage, "2", 1), 0, (count, STEPS), (0, 0)),
    }
    members = {"data/0": bytes(storage.numel * 4), "data/1": bytes(STEPS * 24), "data/2": bytes(4)}
    path = save_zip(tmp_path / "a.pt", pickled(tensors), members)
    del members
    code = f"import resource, runpy, sys; sys.argv = ['x', {str(path)!r}, '--store', {str(tmp_path / 's')!r}]\n"
    code += "runpy.run_path('scripts/import_data.py', run_name='__main__')\n"
    code += "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    (tmp_path / "run.py").write_text(code)
    result = run_script(os.path.relpath(tmp_path / "run.py", Path(__file__).parent.parent / "scripts"))
    assert result.returncode == 0, result.stderr
    peak = int(re.findall(r"peak (\d+)", result.stderr)[0]) * 1024
    assert peak < 450e6, f"{peak / 1e6:.0f} MB"
