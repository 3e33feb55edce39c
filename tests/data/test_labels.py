"""Label columns: the live teacher's rewards, written once, whole after a kill, refused where they do not belong."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_fixtures import make_store
from run_fixtures import (
    DUO,
    DUO_KEYS,
    ROOT,
    TINY,
    composed,
    environment,
    files_in,
    store_path,
    tiny_config,
    tiny_run,
)

from tdmpc2.data import labels as labels_module
from tdmpc2.data.batch import Batch
from tdmpc2.data.labels import LabelColumn, LabelWriter, read_labels, verify_labels
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.store import EpisodeStore
from tdmpc2.distillation import Draws, Teacher, label_facts, label_store
from tdmpc2.errors import DataError, UserError
from tdmpc2.reporting.sinks import read_metrics
from tdmpc2.settings.convert import live_teacher
from tdmpc2.tasks import TaskSet, task_set

TINY_TEACHER = ("teacher=1M", "teacher.enc_dim=32", "teacher.mlp_dim=32", "teacher.latent_dim=32")
RANDOM = (*TINY_TEACHER, "teacher.random_weights=true")


def teacher_for(tasks: TaskSet = DUO, *keys: str, device: str = "cpu") -> Teacher:
    config = composed("label", *(k for k in DUO_KEYS if tasks is DUO), *RANDOM, *keys)
    return live_teacher(config, tasks, torch.device(device))


def rewards_of(teacher: Teacher, batch: Batch, steps: int) -> torch.Tensor:
    """[steps, B, 1]: what the live teacher says of a batch's first actions."""
    size = batch.action.shape[1]
    return teacher.view(batch, steps, Draws(1, 0, size, slice(0, size))).rewards(steps)


def labelled(
    path: Path, store: EpisodeStore, teacher: Teacher, *, batch_size: int = 64, block_episodes: int = 256
) -> Path:
    """A complete column, made in this process."""
    facts = label_facts(store, teacher, "1M")
    with LabelWriter(path, facts, block_episodes=block_episodes, commit_seconds=0) as writer:
        assert label_store(store, teacher, writer, batch_size=batch_size)
    return path


def small_store(path: Path, episodes: int = 10) -> EpisodeStore:
    return make_store(path, DUO, [i % 2 for i in range(episodes)], steps=6)


def values(path: Path) -> bytes:
    return (path / "labels.f32").read_bytes()


# -- what they are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_labels_are_the_live_teacher_s_rewards(tmp_path: Path, precision: str, device: str) -> None:
    store = EpisodeStore.open(store_path())
    teacher = teacher_for(DUO, f"teacher.precision={precision}", device=device)
    assert {p.dtype for p in teacher.model.parameters()} == {getattr(torch, precision)}
    column = LabelColumn.open(labelled(tmp_path / "c", store, teacher), store, DUO.tasks)
    assert column.values.shape == (4, 501) and column.values.dtype == np.float32
    assert np.isnan(column.values[:, 0]).all() and np.isfinite(column.values[:, 1:]).all()
    assert len(np.unique(column.values[:, 1:])) > 100
    with pytest.raises(ValueError, match="read-only"):
        column.values[0, 0] = 1
    sampler = SliceSampler(store, DUO, 32, 3, 1, labels=column)
    for step in range(3):
        batch = sampler.batch(step)
        assert batch.labels is not None and batch.labels.shape == (3, 32, 1)
        live = rewards_of(teacher, batch.to(device), 3)
        assert live.dtype == torch.float32
        tolerance = 1e-5 if precision == "float32" else 5e-2
        torch.testing.assert_close(batch.labels, live.cpu(), rtol=tolerance, atol=tolerance)


def test_bfloat16_is_close_and_another_precision_of_the_same_teacher() -> None:
    batch = SliceSampler(EpisodeStore.open(store_path()), DUO, 64, 3, 1).batch(0)
    full, half = teacher_for(), teacher_for(DUO, "teacher.precision=bfloat16")
    a, b = rewards_of(full, batch, 1), rewards_of(half, batch, 1)
    assert b.dtype == torch.float32
    assert 0 < float((a - b).norm() / a.norm()) < 0.05
    assert full.checksum == half.checksum and full.precision != half.precision
    assert teacher_for(DUO, "seed=2").checksum != full.checksum
    assert teacher_for(DUO, "vmax=9").checksum != full.checksum
    with pytest.raises(UserError, match=r"teacher\.precision=float8 is unknown; choose one of float32, bfloat16"):
        teacher_for(DUO, "teacher.precision=float8")


def test_tasks_that_are_not_labelled_stay_nan_and_are_not_trained_from(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    single = task_set(DUO.tasks[1])
    teacher = teacher_for(single, "task=" + DUO.tasks[1])
    path = labelled(tmp_path / "c", store, teacher)
    column = LabelColumn.open(path, store, single.tasks)
    assert np.isnan(column.values[::2]).all() and np.isfinite(column.values[1::2, 1:]).all()
    with pytest.raises(DataError, match=rf"holds no labels of {DUO.tasks[0]}, only of {DUO.tasks[1]}"):
        LabelColumn.open(path, store, DUO.tasks)
    other = task_set("cup-spin")
    with pytest.raises(DataError, match="holds none of the tasks of 'cup-spin'"):
        label_facts(store, teacher_for(other, "task=cup-spin"), "1M")


def test_batch_and_block_sizes_do_not_matter(tmp_path: Path) -> None:
    store, teacher = small_store(tmp_path / "store", 23), teacher_for()
    whole = LabelColumn.open(labelled(tmp_path / "a", store, teacher, batch_size=1000), store).values
    for number, (batch_size, block_episodes) in enumerate(((1, 256), (7, 3), (20, 4), (40, 23), (1000, 5))):
        path = labelled(tmp_path / str(number), store, teacher, batch_size=batch_size, block_episodes=block_episodes)
        header = verify_labels(path, store)
        assert header.complete and len(header.blocks) == -(-23 // block_episodes)
        np.testing.assert_allclose(LabelColumn.open(path, store).values, whole, rtol=1e-5, atol=1e-6)


def test_a_reward_that_is_not_finite_is_named(tmp_path: Path) -> None:
    store, teacher = small_store(tmp_path / "store"), teacher_for()
    teacher.model.get_parameter("reward_head.layers.2.bias").fill_(float("inf"))
    with pytest.raises(UserError, match="episode 0, step 1 is not a finite number"):
        labelled(tmp_path / "c", store, teacher)


# -- training ------------------------------------------------------------------------------------------------


def train_rows(run_dir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("time", "category")} for row in read_metrics(run_dir)]


def test_training_on_labels_equals_training_with_the_teacher(tmp_path: Path) -> None:
    keys = ("steps=20", "log_freq=1", "d_coef=0.4")
    store, teacher = EpisodeStore.open(store_path()), teacher_for()
    path = labelled(tmp_path / "c", store, teacher)
    tiny_run(tmp_path / "live", *RANDOM, *keys)
    tiny_run(tmp_path / "labels", "teacher=labels", f"teacher.labels={path}", *keys)
    live, taught = train_rows(tmp_path / "live"), train_rows(tmp_path / "labels")
    assert len(live) == 20 and live[0].keys() == taught[0].keys() and taught[0]["distillation_loss"] > 0
    for a, b in zip(live, taught, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    assert live[0] == pytest.approx(taught[0], rel=1e-5)

    # Resumed where it was, and not with the labels of another teacher.
    shutil.move(path, tmp_path / "moved")
    tiny_run(
        tmp_path / "labels", "teacher=labels", f"teacher.labels={tmp_path / 'moved'}", *keys, "steps=22", "resume=true"
    )
    other = labelled(tmp_path / "other", store, teacher_for(DUO, "seed=2"))
    with pytest.raises(UserError, match=r"teacher labels was .* teacher weights was"):
        tiny_run(tmp_path / "labels", "teacher=labels", f"teacher.labels={other}", *keys, "steps=24", "resume=true")


def test_which_labels_a_run_takes(tmp_path: Path) -> None:
    tiny_run(tmp_path / "teacher", "steps=1")
    tiny_run(tmp_path / "teacher2", "steps=1", "seed=2")
    weights = [tmp_path / name / "checkpoints" / "final.safetensors" for name in ("teacher", "teacher2")]
    store = EpisodeStore.open(store_path())
    config = tiny_config("teacher.name=1M", f"teacher.checkpoint={weights[0]}")
    path = labelled(tmp_path / "c", store, live_teacher(config, DUO, torch.device("cpu")))
    keys = ("steps=1", "teacher=labels", f"teacher.labels={path}")
    assert tiny_run(tmp_path / "a", *keys, f"teacher.checkpoint={weights[0]}", "teacher.precision=float32").step == 1

    def refused(match: str, *overrides: str) -> None:
        with pytest.raises(UserError, match=match):
            tiny_run(tmp_path / "b", *overrides)
        assert not (tmp_path / "b").exists()

    refused("made by another teacher: 1M with checksum", *keys, f"teacher.checkpoint={weights[1]}")
    refused("made in float32, not in teacher.precision=bfloat16", *keys, "teacher.precision=bfloat16")
    refused(r"teacher\.random_weights is for a live teacher", *keys, "teacher.random_weights=true")
    refused(r"teacher=labels needs the labels: give teacher\.labels=", "steps=1", "teacher=labels")
    refused(r"is for teacher=labels, not teacher=none", "steps=1", f"teacher.labels={path}")
    refused(r"labels\.json: found no such file, .*scripts/label\.py", "steps=1", "teacher=labels", "teacher.labels=no")
    make_store(tmp_path / "data", DUO, [0, 1], steps=501)
    refused("made of another store", *keys, f"data_dir={tmp_path / 'data'}")


# -- what is refused -----------------------------------------------------------------------------------------


def test_a_column_goes_on_only_as_it_was_begun(tmp_path: Path) -> None:
    store, teacher = small_store(tmp_path / "store"), teacher_for()
    path = labelled(tmp_path / "c", store, teacher)
    facts = label_facts(store, teacher, "1M")
    before = {name: (path / name).read_bytes() for name in files_in(path)}
    for match, changes in (
        ("made by another teacher .teacher_checksum is .*, not 0", {"teacher_checksum": "0"}),
        ("made in another precision .precision is float32, not bfloat16", {"precision": "bfloat16"}),
        ("made of another store .store is .*, not 1", {"store": "1"}),
        ("made for other tasks", {"tasks": ("cup-spin",)}),
    ):
        with pytest.raises(DataError, match=match) as caught:
            LabelWriter(path, replace(facts, **changes)).__enter__()  # type: ignore[arg-type]
        assert str(path) in str(caught.value) and "delete this folder" in str(caught.value)
    with LabelWriter(path, facts) as writer:  # nothing is left to do
        assert writer.episodes == 10 and label_store(store, teacher, writer, batch_size=8)
    assert before == {name: (path / name).read_bytes() for name in files_in(path)}
    with LabelWriter(tmp_path / "d", facts) as writer:
        with pytest.raises(DataError, match="another program is labelling into it"):
            LabelWriter(tmp_path / "d", facts).__enter__()
        with pytest.raises(ValueError, match="does not continue"):
            writer.append(np.zeros((11, 6), np.float32))


def test_an_incomplete_column_says_how_far_it_is_and_what_completes_it(tmp_path: Path) -> None:
    store, teacher = small_store(tmp_path / "store"), teacher_for()
    path = tmp_path / "c"
    asked = iter([False] * 5 + [True])
    with LabelWriter(path, label_facts(store, teacher, "1M"), block_episodes=2) as writer:
        assert not label_store(store, teacher, writer, batch_size=5, stop=lambda: next(asked))
    assert read_labels(path).done == 4 and verify_labels(path, store).done == 4
    with pytest.raises(
        DataError, match=r"4 of 10 episodes are labelled \(40\.0%\); complete it with: python"
    ) as caught:
        LabelColumn.open(path, store)
    assert f"data_dir={store.path} teacher=1M" in str(caught.value) and f"teacher.labels={path}" in str(caught.value)
    labelled(path, store, teacher, batch_size=5)  # goes on in blocks of 2, as begun
    assert len(read_labels(path).blocks) == 5
    assert values(path) == values(labelled(tmp_path / "whole", store, teacher, batch_size=5, block_episodes=2))


def test_damage_is_found(tmp_path: Path) -> None:
    store, teacher = small_store(tmp_path / "store"), teacher_for()
    path = labelled(tmp_path / "c", store, teacher, block_episodes=4)
    whole = values(path)
    with (path / "labels.f32").open("r+b") as file:
        file.seek(4 * 6 * 5 + 9)
        file.write(bytes([whole[4 * 6 * 5 + 9] ^ 1]))
    with pytest.raises(DataError, match=r"labels\.f32: episodes 4 to 7: found checksum .*its content has changed"):
        verify_labels(path, store)
    (path / "labels.f32").write_bytes(whole[:-1])
    for read in (lambda: LabelColumn.open(path, store), lambda: verify_labels(path, store)):
        with pytest.raises(DataError, match=r"labels\.f32: truncated: found 239 bytes, expected 240"):
            read()
    with pytest.raises(DataError, match="truncated"):
        labelled(path, store, teacher)
    (path / "labels.f32").unlink()
    with pytest.raises(DataError, match=r"labels\.f32: cannot be read"):
        LabelColumn.open(path, store)
    (path / "labels.f32").write_bytes(whole)
    verify_labels(path, store)
    grown = small_store(tmp_path / "grown", 12)
    with pytest.raises(DataError, match=r"made of another store .*10 episodes.*12 episodes"):
        LabelColumn.open(path, grown)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "is not the header of a column of a teacher's rewards"),
        (lambda d: d.update(version=0), r"found version 0, expected 1; delete this folder and label anew"),
        (lambda d: d.pop("precision"), "key 'precision' is 'None', expected text"),
        (lambda d: d.update(tasks="all"), "key 'tasks' is 'all', expected a list of text"),
        (lambda d: d.update(blocks=[1]), "key 'blocks' is"),
        (lambda d: d["blocks"].append("0"), "key 'blocks' lists 4, expected at most 3"),
        (lambda d: d.update(episodes=0), "key 'episodes' is '0', expected a number above 0"),
        (lambda d: d.update(episodes=2**62), "key 'episodes' is"),
        (lambda d: d.update(block_episodes=True), "key 'block_episodes' is 'True'"),
    ],
)
def test_malformed_headers_are_refused_by_key(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    store = small_store(tmp_path / "store")
    path = labelled(tmp_path / "c", store, teacher_for(), block_episodes=4)
    content = json.loads((path / "labels.json").read_text())
    change(content)
    (path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        LabelColumn.open(path, store)
    assert str(path / "labels.json") in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"3"])
def test_other_files_are_no_header(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "labels.json").write_bytes(data)
    with pytest.raises(DataError, match=r"is not JSON|is not the header"):
        read_labels(tmp_path)


def test_free_disk_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, teacher = small_store(tmp_path / "store"), teacher_for()
    usage = shutil.disk_usage(tmp_path)._replace(free=200)
    monkeypatch.setattr(labels_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="found 200 B free, expected at least 240 B for the labels"):
        labelled(tmp_path / "c", store, teacher)
    assert files_in(tmp_path / "c") in ([], ["labels.lock"])


# -- the program ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 1,000 short episodes: four blocks, seconds of labelling in batches of 8."""
    return make_store(tmp_path_factory.mktemp("many") / "store", DUO, [i % 2 for i in range(1000)], steps=21).path


def command(store: Path, labels: Path, *keys: str) -> list[str]:
    arguments = (
        *DUO_KEYS,
        *RANDOM,
        f"data_dir={store}",
        f"teacher.labels={labels}",
        "batch_size=8",
        "device=cpu",
        *keys,
    )
    return [sys.executable, str(ROOT / "scripts" / "label.py"), *arguments]


def run(
    store: Path, labels: Path, *keys: str, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(store, labels, *keys), cwd=labels.parent, env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True, text=True, timeout=120, preexec_fn=before,
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "c"
    done = run(many, folder)
    assert done.returncode == 0, done.stderr
    assert "labelling: 1,000/1,000 episodes" in done.stderr and f"teacher=labels teacher.labels={folder}" in done.stdout
    return folder


def assert_same(found: Path, expected: Path) -> None:
    assert values(found) == values(expected)
    assert (found / "labels.json").read_bytes() == (expected / "labels.json").read_bytes()
    assert {"labels.f32", "labels.json"} <= set(files_in(found)) <= {"labels.f32", "labels.json", "labels.lock"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_labelling_goes_on_to_the_same_bytes(
    tmp_path: Path, many: Path, uninterrupted: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "c"
    process = subprocess.Popen(
        command(many, folder), cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not ((folder / "labels.f32").exists() and (folder / "labels.f32").stat().st_size > 30_000):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    header = read_labels(folder)
    assert not header.complete
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130 and "run the same command again to go on" in output, errors
        assert header.done >= 256 and "Traceback" not in errors
    done = run(many, folder)
    assert done.returncode == 0, done.stderr
    assert (f"going on after {header.done:,} episodes" in done.stdout) == (header.done > 0)
    assert_same(folder, uninterrupted)


def test_a_full_disk_ends_it_with_one_line_and_it_goes_on_later(
    tmp_path: Path, many: Path, uninterrupted: Path
) -> None:
    folder = tmp_path / "c"
    done = run(many, folder, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)))
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: cannot write") and "labels.f32" in last and "Traceback" not in done.stderr
    assert not read_labels(folder).complete
    assert run(many, folder).returncode == 0
    assert_same(folder, uninterrupted)


def test_the_program_s_mistakes_and_its_verification(tmp_path: Path, many: Path, uninterrupted: Path) -> None:
    def line(*keys: str, labels: Path = uninterrupted) -> str:
        done = run(many, labels, *keys)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr + done.stdout
        return done.stderr

    assert "made by another teacher" in line("seed=2")
    assert "which teacher?" in line("teacher=none", "teacher.labels=null")
    done = run(many, uninterrupted, "verify=true", "teacher=none")
    assert done.returncode == 0 and "every checksum is right" in done.stdout and "1,000 of 1,000" in done.stdout
    copy = shutil.copytree(uninterrupted, tmp_path / "copy")
    data = bytearray(values(copy))
    data[-1] ^= 0x80
    (copy / "labels.f32").write_bytes(data)
    assert "episodes 768 to 999" in line("verify=true", labels=copy)


def test_by_default_a_column_lies_beside_the_data(tmp_path: Path) -> None:
    small_store(tmp_path / "store")
    done = run(tmp_path / "store", tmp_path / "unused", "teacher.labels=null")
    assert done.returncode == 0, done.stderr
    column = tmp_path / "store" / "labels" / "1M-random-float32"
    assert str(column) in done.stdout and not (tmp_path / "unused").exists()
    assert EpisodeStore.open(tmp_path / "store").verify() > 0
    train = subprocess.run(
        [sys.executable, str(ROOT / "tdmpc2" / "train.py"), *TINY, f"data_dir={tmp_path / 'store'}", "device=cpu",
         "teacher=labels", f"teacher.labels={column}", "steps=2"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert train.returncode == 0 and f"labels in {column}, d_coef 0.4" in train.stdout, train.stderr


def test_on_a_gpu_the_order_is_kept(tmp_path: Path, device: str) -> None:
    """Many batches in flight: each result comes to its own transitions."""
    store = EpisodeStore.open(store_path())
    small = LabelColumn.open(labelled(tmp_path / "a", store, teacher_for(device=device), batch_size=16), store).values
    whole = LabelColumn.open(labelled(tmp_path / "b", store, teacher_for(), batch_size=4096), store).values
    np.testing.assert_allclose(small, whole, rtol=1e-4, atol=1e-5)


def test_bytes_after_the_committed_ones_are_cut_off(tmp_path: Path) -> None:
    store, teacher = small_store(tmp_path / "store"), teacher_for()
    path = labelled(tmp_path / "c", store, teacher, batch_size=5, block_episodes=2)
    whole, content = values(path), json.loads((path / "labels.json").read_text())
    content["blocks"] = content["blocks"][:3]
    (path / "labels.json").write_text(json.dumps(content))
    (path / "labels.f32").write_bytes(whole[: 6 * 24] + os.urandom(len(whole)))
    labelled(path, store, teacher, batch_size=5)
    assert values(path) == whole


def test_labels_of_a_store_that_grew_since(tmp_path: Path) -> None:
    store, teacher = small_store(tmp_path / "s"), teacher_for()
    length, fingerprint = len(store), store.fingerprint
    path = labelled(tmp_path / "c", store, teacher)
    expected = LabelColumn.open(path, store, DUO.tasks).at(np.arange(10), np.full(10, 2))
    make_store(tmp_path / "more", DUO, [0], steps=6)
    more = EpisodeStore.open(tmp_path / "more").read_episodes(0, 1)
    store.append(more.obs, more.action, more.reward, more.task)
    with pytest.raises(DataError, match="made of another store"):
        LabelColumn.open(path, store, DUO.tasks)
    past = store.prefix(length, fingerprint)
    assert past is not None
    np.testing.assert_array_equal(LabelColumn.open(path, past, DUO.tasks).at(np.arange(10), np.full(10, 2)), expected)
    sampler = SliceSampler(past, DUO, 8, 3, seed=1, labels=LabelColumn.open(path, past, DUO.tasks))
    assert torch.isfinite(sampler.batch(0).labels).all()
    assert labelled(tmp_path / "anew", past, teacher).exists() and values(tmp_path / "anew") == values(path)


def test_labels_that_are_shortened_between_batches_are_an_error(tmp_path: Path) -> None:
    store = small_store(tmp_path / "s", 1000)
    path = labelled(tmp_path / "c", store, teacher_for(), batch_size=1000)
    column = LabelColumn.open(path, store, DUO.tasks)
    sampler = SliceSampler(store, DUO, 32, 3, seed=1, labels=column)
    assert torch.isfinite(sampler.batch(0).labels).all()
    os.truncate(path / "labels.f32", 4096)
    with pytest.raises(DataError, match=r"labels\.f32: found 4,096 bytes, expected 24,000: it was shortened"):
        sampler.batch(1)
