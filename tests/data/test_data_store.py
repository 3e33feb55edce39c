"""The episode store: what goes in comes out, bad episodes stay out, no interruption leaves half a store."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_fixtures import ROOT, make_episodes, make_store, padded

from tdmpc2.data.store import EpisodeStore, StoreWriter
from tdmpc2.errors import DataError, UserError
from tdmpc2.tasks import task_set

TASKS = task_set("four", ("cartpole-swingup", "reacher-easy", "cup-spin", "pendulum-spin"))
IDS = [0, 1, 2, 3, 1]


def episodes(ids: list[int] | None = None, steps: int = 21) -> dict[str, np.ndarray]:
    return make_episodes(TASKS, IDS if ids is None else ids, steps, TASKS.obs_dim, TASKS.action_dim)


def assert_holds(store: EpisodeStore, data: dict[str, np.ndarray]) -> None:
    assert len(store) == len(data["task"])
    np.testing.assert_array_equal(store.task_ids, data["task"])
    block = store.read_episodes(0, len(store))
    for key in ("obs", "action", "reward", "task"):
        np.testing.assert_array_equal(getattr(block, key), data[key])
    for index in range(len(store)):
        episode = store.episode(index)
        whole = padded(episode, store.obs_dim, store.action_dim)
        for key in ("obs", "action", "reward"):
            np.testing.assert_array_equal(whole[key], data[key][index])
        assert episode["task"] == store.tasks[data["task"][index]]


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    data = episodes()
    store = EpisodeStore.create(tmp_path / "s", TASKS.tasks, 8, 2, 21, notes="a note")
    assert len(store) == 0 and store.num_transitions == 0 and store.returns().shape == (0,)
    store.append(**data, source="here", details={"seed": 1})
    for opened in (store, EpisodeStore.open(tmp_path / "s")):
        assert_holds(opened, data)
        assert opened.num_transitions == 5 * 21
        assert opened.tasks == TASKS.tasks and opened.notes == "a note"
        assert (opened.obs_dim, opened.action_dim, opened.episode_steps) == (8, 2, 21)
        assert opened.segments[0].source == "here" and opened.segments[0].details == {"seed": 1}
        np.testing.assert_allclose(opened.returns(), data["reward"][:, 1:].sum(axis=1), rtol=1e-6)
        assert opened.task_ids.dtype == np.int16 and opened.returns().dtype == np.float32
        assert opened.verify() == 21 * (7 + 9 + 11 + 5 + 9) * 4 + 5 * (2 + 4)


def test_the_layout_on_disk_is_the_documented_one(tmp_path: Path) -> None:
    data = episodes()
    make_store(tmp_path / "s", TASKS, IDS, segments=2)
    rows, at = np.fromfile(tmp_path / "s" / "rows.bin", dtype="<f4"), 0
    for episode, task in enumerate(IDS):
        o, a = TASKS.obs_dims[task], TASKS.action_dims[task]
        own = rows[at : at + 21 * (o + a + 1)].reshape(21, o + a + 1)
        np.testing.assert_array_equal(own[:, :o], data["obs"][episode, :, :o])
        np.testing.assert_array_equal(own[:, o:-1], data["action"][episode, :, :a])
        np.testing.assert_array_equal(own[:, -1], data["reward"][episode])
        at += own.size
    assert at == len(rows)
    assert np.fromfile(tmp_path / "s" / "tasks.bin", dtype="<i2").tolist() == IDS
    names = {"store.json", "store.lock", "rows.bin", "tasks.bin", "returns.bin"}
    assert {p.name for p in (tmp_path / "s").iterdir()} == names


def test_half_precision_rounds_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    data = episodes()
    store = make_store(tmp_path / "s", TASKS, IDS, dtype="float16")
    assert store.num_bytes * 2 == make_store(tmp_path / "t", TASKS, IDS).num_bytes
    rounded = {key: value.astype(np.float16).astype(np.float32) for key, value in data.items() if key != "task"}
    assert_holds(store, {**rounded, "task": data["task"]})
    data["reward"][3, 9] = 1e5
    with pytest.raises(DataError, match="episode 3, step 9, key 'reward': found a value beyond the range of float16"):
        store.append(**data)
    data["reward"][3, 9], data["obs"][4, 0, 2] = 0, -7e4
    with pytest.raises(DataError, match=r"episode 4, step 0, key 'obs'.*expected at most 65504.*in float32"):
        store.append(**data)
    assert len(EpisodeStore.open(tmp_path / "s")) == 5 and store.verify()


def test_the_fingerprint_is_of_layout_and_content(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a", TASKS, IDS)
    assert store.fingerprint == make_store(tmp_path / "b", TASKS, IDS).fingerprint
    others = [make_store(tmp_path / "c", TASKS, [*IDS, 0]), make_store(tmp_path / "d", TASKS, IDS, dtype="float16")]
    assert len({store.fingerprint, *(other.fingerprint for other in others)}) == 3
    before = store.fingerprint
    store.append(**episodes([1]))
    assert store.fingerprint != before


def test_a_writer_in_blocks_equals_one_append(tmp_path: Path) -> None:
    data = episodes()
    store = make_store(tmp_path / "a", TASKS, IDS)
    blocks = EpisodeStore.create(tmp_path / "b", TASKS.tasks, 8, 2, 21)
    with blocks.writer() as writer:
        for part in (slice(0, 1), slice(1, 4), slice(4, 5)):
            writer.write(**{key: value[part] for key, value in data.items()})
        assert len(EpisodeStore.open(tmp_path / "b")) == 0
    assert_holds(blocks, data)
    assert blocks.segments[0].rows_sha256 == store.segments[0].rows_sha256


def test_episodes_are_read_only_and_bounded(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", TASKS, IDS)
    with pytest.raises(ValueError, match="read-only"):
        store.episode(0)["obs"][0, 0] = 1
    for index in (-1, 5):
        with pytest.raises(DataError, match=f"found episode {index}, expected 0 to 4"):
            store.episode(index)


FAULTS = ["width", "steps", "count", "tasks", "float tasks", "task range", "negative task", "obs", "action"]
FAULTS += ["reward", "padding"]


def bad(change: str) -> tuple[dict[str, np.ndarray], str]:
    """Episodes with one fault, and what the error must say."""
    data = episodes()
    match change:
        case "width":
            data["obs"] = data["obs"][:, :, :7]
            return data, r"found obs \[5, 21, 7\].*expected obs \[episodes, 21, 8\]"
        case "steps":
            return episodes(steps=20), r"found obs \[5, 20, 8\].*expected obs \[episodes, 21, 8\]"
        case "count":
            data["reward"] = data["reward"][:4]
            return data, r"reward \[4, 21\]"
        case "tasks":
            data["task"] = data["task"][:4]
            return data, "expected 5 integers"
        case "float tasks":
            data["task"] = data["task"].astype(np.float32)
            return data, "found task float32"
        case "task range":
            data["task"][3] = 4
            return data, "episode 3, key 'task': found 4, expected 0 to 3"
        case "negative task":
            data["task"][3] = -1
            return data, "episode 3, key 'task': found -1, expected 0 to 3"
        case "obs":
            data["obs"][2, 0, 1] = np.nan
            return data, "episode 2, step 0, key 'obs': found nan"
        case "action":
            data["action"][2, 1, 1] = np.inf
            return data, "episode 2, step 1, key 'action': found inf"
        case "reward":
            data["reward"][4, 20] = -np.inf
            return data, "episode 4, step 20, key 'reward': found -inf"
        case "padding":
            data["obs"][2, 7, 4] = 0
            data["obs"][0, 7, 5] = 0.5
            return (
                data,
                "episode 0, step 7, key 'obs': found 0.5 in column 5, expected 0: cartpole-swingup is 5 wide",
            )
    raise ValueError(change)


@pytest.mark.parametrize("change", FAULTS)
def test_bad_episodes_are_refused_with_their_place(tmp_path: Path, change: str) -> None:
    store = EpisodeStore.create(tmp_path / "s", TASKS.tasks, 8, 2, 21)
    store.append(**episodes())
    data, message = bad(change)
    with pytest.raises(DataError, match=f"recording.*{message}"):
        store.append(**data, source="recording")
    assert_holds(EpisodeStore.open(tmp_path / "s"), episodes())
    store.append(**episodes())
    assert len(EpisodeStore.open(tmp_path / "s")) == 10


def test_errors_count_episodes_over_the_blocks(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s", TASKS.tasks, 8, 2, 21)
    data = bad("reward")[0]
    with pytest.raises(DataError, match="episode 9, step 20, key 'reward'"), store.writer() as writer:
        writer.write(**episodes())
        writer.write(**data)
    assert len(EpisodeStore.open(tmp_path / "s")) == 0


def test_a_refused_block_does_not_spoil_those_before(tmp_path: Path) -> None:
    """A caller may catch the error of one block and go on: nothing of that block was written."""
    store = EpisodeStore.create(tmp_path / "s", TASKS.tasks, 8, 2, 21)
    with store.writer() as writer:
        writer.write(**episodes())
        with pytest.raises(DataError):
            writer.write(**bad("obs")[0])
    assert_holds(EpisodeStore.open(tmp_path / "s"), episodes())
    assert EpisodeStore.open(tmp_path / "s").verify()


def test_an_error_in_the_writers_block_leaves_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", TASKS, IDS)
    before = {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()}
    with pytest.raises(ZeroDivisionError), store.writer() as writer:
        writer.write(**episodes())
        raise ZeroDivisionError
    with store.writer():
        pass
    assert {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()} == before


def test_a_writer_commits_as_it_goes(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", TASKS, IDS)
    with store.writer("parts", {"n": 1}) as writer:
        writer.commit()  # nothing was written: no segment
        for count in (1, 2):
            writer.write(**episodes([3] * count))
            writer.commit()
            assert (writer.committed, writer.episodes) == (count * (count + 1) // 2,) * 2
            assert EpisodeStore.open(tmp_path / "s").verify()
            with pytest.raises(DataError, match="another writer"):
                EpisodeStore.open(tmp_path / "s").append(**episodes())
        writer.write(**episodes([2]))
    assert [s.episodes for s in store.segments] == [5, 1, 2, 1]
    assert all((s.source, s.details) == ("parts", {"n": 1}) for s in store.segments[1:])
    assert store.task_ids.tolist() == [*IDS, 3, 3, 3, 2] and store.verify()
    with pytest.raises(ZeroDivisionError), store.writer() as writer:
        writer.write(**episodes([3]))
        writer.commit()
        writer.write(**episodes([2]))
        raise ZeroDivisionError
    assert store.task_ids.tolist() == [*IDS, 3, 3, 3, 2, 3] and store.verify()
    assert (tmp_path / "s" / "rows.bin").stat().st_size == store.num_bytes


def test_a_commit_after_a_failed_write_keeps_what_was_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "s", TASKS, IDS)
    write = StoreWriter._write

    def fails(self: StoreWriter, column: str, *rest: Any) -> None:
        if column == "returns":
            raise KeyboardInterrupt
        write(self, column, *rest)

    for rescued in (True, False):
        with store.writer() as writer:
            writer.write(**episodes([3]))
            monkeypatch.setattr(StoreWriter, "_write", fails)
            with pytest.raises(KeyboardInterrupt):
                writer.write(**episodes([2]))
            monkeypatch.undo()
            if rescued:
                writer.commit()
                writer.write(**episodes([0]))
        assert store.task_ids.tolist() == [*IDS, 3, 0], "without a commit nothing of the segment is kept"
        assert EpisodeStore.open(tmp_path / "s").verify()
        assert (tmp_path / "s" / "rows.bin").stat().st_size == store.num_bytes


@pytest.mark.parametrize("moment", ["before the header", "after the header"])
def test_an_interrupted_commit_is_made_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    store = make_store(tmp_path / "s", TASKS, IDS)
    write_header = EpisodeStore._write_header

    def interrupted(self: EpisodeStore, header: Any) -> None:
        if moment == "after the header":
            write_header(self, header)
        raise KeyboardInterrupt

    with store.writer() as writer:
        writer.write(**episodes([3]))
        monkeypatch.setattr(EpisodeStore, "_write_header", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.commit()
        monkeypatch.undo()
        writer.commit()
        writer.write(**episodes([2]))
    assert store.task_ids.tolist() == [*IDS, 3, 2] and len(store.segments) == 3
    assert EpisodeStore.open(tmp_path / "s").verify()


def test_a_large_block_that_is_refused_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdmpc2.data.store._BLOCK_BYTES", 1)  # an episode at a time
    store = EpisodeStore.create(tmp_path / "s", TASKS.tasks, 8, 2, 21, dtype="float16")
    good, large = episodes([0]), episodes([0, 0])
    large["reward"][1, 5] = 1e6
    with store.writer() as writer:
        writer.write(**good)
        with pytest.raises(DataError, match="episode 2, step 5"):
            writer.write(**large)
    assert len(store) == 1 and store.verify()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", TASKS, IDS)
    with store.writer() as writer:
        with pytest.raises(DataError, match="another writer has this store open"):
            EpisodeStore.open(tmp_path / "s").append(**episodes())
        writer.write(**episodes())
    assert len(EpisodeStore.open(tmp_path / "s")) == 10


def test_two_handles_append_in_turn(tmp_path: Path) -> None:
    """A handle that opened earlier keeps its view, and appends after what was added meanwhile."""
    first = make_store(tmp_path / "s", TASKS, IDS)
    second = EpisodeStore.open(tmp_path / "s")
    second.append(**episodes([2]))
    assert len(first) == 5 and len(second) == 6
    first.append(**episodes([3]))
    assert [len(first), first.task_ids.tolist()] == [7, [*IDS, 2, 3]]
    assert first.verify()


def python(code: str, store: Path) -> subprocess.Popen[str]:
    """Runs `code` in another process, with `store` open and the episodes as `data`."""
    np.savez(store.parent / "episodes.npz", **episodes())
    head = f"""
        import sys, time
        import numpy as np
        from tdmpc2.data.store import EpisodeStore
        from tdmpc2.errors import UserError
        data = dict(np.load({str(store.parent / "episodes.npz")!r}))
        store = EpisodeStore.open({str(store)!r})
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_writer_killed_at_work_leaves_the_store_whole(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = make_store(path, TASKS, IDS)
    process = python(
        """
        with store.writer() as writer:
            writer.write(**data)
            writer._files['rows'].flush()
            print("written", flush=True)
            time.sleep(60)
        """,
        path,
    )
    assert process.stdout is not None and process.stdout.readline() == "written\n"
    with pytest.raises(DataError, match="another writer"):
        store.append(**episodes())
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = (path / "rows.bin").stat().st_size
    assert left > store.num_bytes
    assert_holds(EpisodeStore.open(path), episodes())
    store.append(**episodes([3]))
    assert (path / "rows.bin").stat().st_size == store.num_bytes < left
    both = {key: np.concatenate([value, episodes([3])[key]]) for key, value in episodes().items()}
    assert_holds(EpisodeStore.open(path), both)


def test_a_segment_that_was_never_listed_is_cut_off(tmp_path: Path) -> None:
    """What a kill leaves between the data and the header."""
    path = tmp_path / "s"
    store = make_store(path, TASKS, IDS)
    header = (path / "store.json").read_bytes()
    store.append(**episodes([2, 2]))
    (path / "store.json").write_bytes(header)
    assert_holds(EpisodeStore.open(path), episodes())
    EpisodeStore.open(path).append(**episodes([3]))
    reopened = EpisodeStore.open(path)
    assert reopened.task_ids.tolist() == [*IDS, 3]
    assert reopened.verify()


def test_a_full_disk_leaves_the_store_whole(tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the write fails midway in the same way."""
    path = tmp_path / "s"
    make_store(path, TASKS, IDS)
    process = python(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        with store.writer() as writer:
            try:
                for _ in range(400):
                    writer.write(**data)
            except UserError as error:
                print(error)
        """,
        path,
    )
    output, _ = process.communicate(timeout=60)
    assert "rows.bin" in output and "choose another folder" in output, output
    assert_holds(EpisodeStore.open(path), episodes())
    EpisodeStore.open(path).append(**episodes())


def edited(path: Path, change: dict[str, Any]) -> None:
    header = json.loads((path / "store.json").read_text())
    header.update(change)
    (path / "store.json").write_text(json.dumps(header))


def test_damaged_stores_are_refused_with_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(DataError, match=r"store\.json: found no such file"):
        EpisodeStore.open(path)
    make_store(path, TASKS, IDS)
    good = (path / "store.json").read_bytes()
    segment = json.loads(good)["segments"][0]
    faults: list[tuple[dict[str, Any], str]] = [
        ({"format": "other"}, "not the header of an episode store"),
        ({"version": 1}, "found store version 1, expected 2: it was made by another version of this program"),
        ({"dtype": "float8"}, "found dtype 'float8'"),
        ({"obs_dims": "8"}, "key 'obs_dims' is '8', expected list"),
        ({"obs_dims": [5, 6, 8, -3]}, r"found obs_dims \[5, 6, 8, -3\], expected a width for each of its tasks"),
        ({"action_dims": [1]}, r"found action_dims \[1\], expected a width for each"),
        ({"episode_steps": 1}, "episodes without steps"),
        ({"segments": [3]}, "a segment's entry is not an object"),
        ({"segments": [{**segment, "episodes": 0}]}, "not a valid entry"),
        ({"segments": [{**segment, "rows_bytes": 10**9}]}, r"rows\.bin: found \d+ bytes, expected 1000000000 bytes"),
        ({"segments": [{k: v for k, v in segment.items() if k != "episodes"}]}, "key 'episodes' is missing"),
    ]
    for change, message in faults:
        edited(path, change)
        with pytest.raises(DataError, match=message):
            EpisodeStore.open(path)
        (path / "store.json").write_bytes(good)
    for name in ("rows.bin", "tasks.bin", "returns.bin"):
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[:-1])
        with pytest.raises(DataError, match=rf"{name}: found {len(content) - 1} bytes, expected {len(content)}"):
            EpisodeStore.open(path)
        (path / name).unlink()
        with pytest.raises(DataError, match=rf"{name}: found no such file"):
            EpisodeStore.open(path)
        (path / name).write_bytes(content)
    EpisodeStore.open(path)
    (path / "store.json").write_bytes(good[:-20])
    with pytest.raises(DataError, match=r"store\.json: is not JSON"):
        EpisodeStore.open(path)


@pytest.mark.parametrize("suffix", ["rows", "tasks", "returns"])
def test_verify_finds_one_changed_byte(tmp_path: Path, suffix: str) -> None:
    store = make_store(tmp_path / "s", TASKS, IDS, segments=2)
    file = tmp_path / "s" / f"{suffix}.bin"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"{suffix}\.bin: found SHA-256"):
        store.verify()


def test_tasks_that_do_not_add_up_to_the_rows_are_found(tmp_path: Path) -> None:
    make_store(tmp_path / "s", TASKS, IDS)
    np.array([0, 0, 0, 0, 0], "<i2").tofile(tmp_path / "s" / "tasks.bin")
    with pytest.raises(DataError, match=r"tasks\.bin: its tasks add up to 735 values"):
        EpisodeStore.open(tmp_path / "s").episode(0)
    np.array([0, 0, 9, 0, 0], "<i2").tofile(tmp_path / "s" / "tasks.bin")
    with pytest.raises(DataError, match=r"tasks\.bin: found task ids 0 to 9, expected 0 to 3"):
        EpisodeStore.open(tmp_path / "s").episode(0)


def test_create_checks_what_it_is_given(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none twice"):
        EpisodeStore.create(tmp_path / "s", ["cup-spin", "cup-spin"], 8, 2, 21)
    with pytest.raises(DataError, match="found obs_dim 5 and action_dim 2, expected at least 8 and 2"):
        EpisodeStore.create(tmp_path / "s", ["cup-spin"], 5, 2, 21)
    with pytest.raises(DataError, match="episode_steps 1"):
        EpisodeStore.create(tmp_path / "s", ["cup-spin"], 8, 2, 1)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "note.txt").write_text("mine")
    with pytest.raises(DataError, match="choose a new folder"):
        EpisodeStore.create(tmp_path / "s", ["cup-spin"], 8, 2, 21)
    with pytest.raises(UserError, match="a part of the path is a file"):
        EpisodeStore.create(tmp_path / "s" / "note.txt" / "t", ["cup-spin"], 8, 2, 21)


def test_tasks_without_an_environment_can_be_stored(tmp_path: Path) -> None:
    """Their own widths are unknown, so their padding is not checked."""
    store = EpisodeStore.create(tmp_path / "s", ["mw-reach"], 8, 2, 21)
    data = episodes([1])
    store.append(**{**data, "task": np.zeros(1, int)})
    assert store.episode(0)["task"] == "mw-reach"


def test_check_space_names_what_is_needed(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", TASKS, IDS)
    store.check_space(1)
    with pytest.raises(DataError, match=r"GB free, expected at least [\d.]+ GB for 1,000,000,000,000 episodes"):
        store.check_space(10**12)


def test_opening_a_store_needs_no_torch() -> None:
    code = "import sys, tdmpc2.data.store, tdmpc2.data.importing; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode
        == 0
    )


# -- what it was before it grew ------------------------------------------------------------------------------


def test_a_prefix_is_the_store_as_it_was(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s", TASKS.tasks, 8, 2, 21)
    data, sizes = episodes(), (0, 2, 3, 5)
    before: dict[int, str] = {0: store.fingerprint}
    for first, stop in itertools.pairwise(sizes):
        store.append(**{key: value[first:stop] for key, value in data.items()})
        before[stop] = store.fingerprint
    for count, fingerprint in before.items():
        past = EpisodeStore.open(tmp_path / "s").prefix(count, fingerprint)
        assert past is not None and past.fingerprint == fingerprint
        if count:
            assert_holds(past, {key: value[:count] for key, value in data.items()})
            assert past.verify() == past.num_bytes + count * 6
        assert past.returns().shape == (count,) and past.notes == store.notes
        with pytest.raises(DataError, match=f"as it was with {count} episodes"):
            past.append(**data)
        store.append(**data)  # grows on while the past is read
        assert len(past) == count
        assert past.prefix(0, before[0]) is not None
    assert store.prefix(4, before[5]) is None, "not where a segment ends"
    assert store.prefix(5, before[3]) is None, "another store's"
    assert store.prefix(10_000, before[5]) is None


# -- others at the same moment -------------------------------------------------------------------------------


def test_a_writer_that_depends_on_the_content_is_told_of_others(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "s", TASKS.tasks, 8, 2, 21)
    other = EpisodeStore.open(tmp_path / "s")
    other.append(**episodes())
    with pytest.raises(DataError, match="found 5 episodes, expected 0: another writer"), store.writer(after=0):
        pass
    with store.writer(after=5) as writer:
        writer.write(**episodes())
    assert len(EpisodeStore.open(tmp_path / "s")) == 10


def test_an_interruption_right_after_the_commit_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may come at any moment: what the header on the disk names is never cut off."""
    store = make_store(tmp_path / "s", TASKS, IDS)

    def interrupted(self: EpisodeStore) -> None:
        raise KeyboardInterrupt

    writer = store.writer()
    with pytest.raises(KeyboardInterrupt), writer:
        writer.write(**episodes())
        monkeypatch.setattr(EpisodeStore, "_reload", interrupted)
    monkeypatch.undo()
    reopened = EpisodeStore.open(tmp_path / "s")
    assert len(reopened) == 10 and reopened.verify()
    reopened.append(**episodes())
    assert len(reopened) == 15


def test_a_folder_with_a_lock_alone_is_free(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "store.lock").write_text("")
    store = EpisodeStore.create(tmp_path / "s", TASKS.tasks, 8, 2, 21)
    store.append(**episodes())
    assert_holds(EpisodeStore.open(tmp_path / "s"), episodes())
