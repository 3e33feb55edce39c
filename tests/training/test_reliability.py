"""Nothing is lost: runs killed at any moment, on a full disk or with a damaged state end as if never interrupted."""

from __future__ import annotations

import collections
import csv
import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crash_server import CrashServer
from data_fixtures import make_episodes
from run_fixtures import DUO, DUO_KEYS, ROOT, TINY, environment, files_in, run_program, store_path, tiny_run

from tdmpc2.checkpointing import read_checkpoint
from tdmpc2.checkpointing.torchfile import read_torch_file
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import CheckpointError, UserError
from tdmpc2.locks import NO_LOCKS
from tdmpc2.reporting.sinks import read_metrics
from tdmpc2.training.finite import FiniteWatch
from tdmpc2.training.run_lock import LOCK_NAME, run_lock
from tdmpc2.training.state import StateFolder, TrainingState

SEED = int(os.environ.get("TDMPC2_TEST_SEED", "20250703"))
LONG = ("steps=36", "log_freq=1", "state_freq=3", "save_freq=9", "eval_freq=18")
SHORT = ("steps=4", "log_freq=1", "state_freq=2", "save_freq=2")
STATE_BYTES = 300_000  # less than a tiny run's state, more than all else that it writes


@pytest.fixture(scope="module")
def server() -> Iterator[CrashServer]:
    started = CrashServer()
    yield started
    started.close()


def go_on(server: CrashServer, run_dir: Path, *keys: str, **how: Any) -> Any:
    """Starts a run, or resumes it once it has a state, as a user does."""
    resume = ("resume=true",) if StateFolder(run_dir).exists() else ()
    log = run_dir.parent / f"{run_dir.name}.log"
    return server.start(run_dir, f"data_dir={store_path()}", *keys, *resume, log=log, **how)


def never_interrupted(server: CrashServer, run_dir: Path, *keys: str) -> tuple[Path, int]:
    """A whole run, and how many file operations it made."""
    code, output = go_on(server, run_dir, *keys).wait()
    assert code == 0, output
    return run_dir, int(output.rpartition(":")[2])


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "time"} for row in read_metrics(run_dir)]


def table_of(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in items for k, v in flat(item, f"{name}.{key}").items()}
    return {name: value}


def assert_same_run(run_dir: Path, whole: Path) -> None:
    """Same weights, optimisers, random states, checkpoints and metrics, bit for bit, and nothing left behind."""
    # Damaged states set aside, the log of a start before the first state, and the state before the last.
    ignored = re.compile(r"\.damaged\d+$|\.old$|previous\.pt$")
    names = [name for name in files_in(run_dir) if not ignored.search(name)]
    assert names == [name for name in files_in(whole) if not ignored.search(name)]
    for name in names:
        if name.endswith(".safetensors"):
            found, expected = read_checkpoint(run_dir / name), read_checkpoint(whole / name)
            assert found.tensors.keys() == expected.tensors.keys()
            assert all(torch.equal(found.tensors[n], tensor) for n, tensor in expected.tensors.items()), name
            assert found.metadata is not None and expected.metadata is not None
            assert found.metadata.step == expected.metadata.step
            assert found.metadata.normalised_score == expected.metadata.normalised_score
    latest = [flat(read_torch_file(run / "state" / "latest.pt", mapped=False)) for run in (run_dir, whole)]
    assert latest[0].keys() == latest[1].keys()
    for name, value in latest[1].items():
        equal = torch.equal(latest[0][name], value) if isinstance(value, torch.Tensor) else latest[0][name] == value
        assert equal, name
    assert rows_of(run_dir) == rows_of(whole)
    assert table_of(run_dir) == table_of(whole)


# -- kills -------------------------------------------------------------------------------------------------------


def damage(path: Path, chance: random.Random) -> str:
    """Flips a byte of a file, cuts it or empties it; one that was emptied before, and not written since, stays so."""
    data = bytearray(path.read_bytes())
    kind = chance.choice(("flip", "cut", "empty")) if data else "empty"
    if kind == "flip":
        data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
    else:
        del data[chance.randrange(len(data)) if kind == "cut" else 0 :]
    path.write_bytes(data)
    return kind


def interrupt_at_random(
    server: CrashServer, folder: Path, kills: int, seed: int, *keys: str
) -> collections.Counter[str]:
    """Ends runs by SIGKILL and SIGTERM at random times, now and then with a full disk or a damaged latest state,
    and compares each one that comes to its end with one never interrupted; returns what was done how often."""
    chance = random.Random(seed)
    began = time.monotonic()
    whole, _ = never_interrupted(server, folder / "whole", *keys)
    duration = time.monotonic() - began
    done: collections.Counter[str] = collections.Counter()
    history: list[str] = []
    try:
        while done["SIGKILL"] + done["SIGTERM"] < kills:
            run_dir = folder / f"run{done['runs']}"
            done["runs"] += 1
            for _ in range(12):
                how = chance.choices(("SIGKILL", "SIGTERM", "full disk"), (8, 2, 1))[0]
                limit = STATE_BYTES if how == "full disk" else None
                started = go_on(server, run_dir, *keys, file_limit=limit)
                if limit is None:
                    time.sleep(chance.uniform(0.05, 0.8) * duration)
                    started.kill(signal.Signals[how])
                code, output = started.wait()
                history.append(f"{run_dir.name}: {how}, exit code {code}")
                if code == 0:
                    break
                expected = {"SIGKILL": (-9,), "SIGTERM": (-15, 130), "full disk": (2,)}[how]
                assert code in expected, output
                assert limit is None or re.search(r"cannot write .*latest\.pt: ", output), output
                done[how] += 1
                states = [run_dir / "state" / f"{name}.pt" for name in ("latest", "previous")]
                if all(state.exists() for state in states) and chance.random() < 0.3:
                    done["damaged"] += 1
                    history.append(damage(states[0], chance))
            code, output = go_on(server, run_dir, *keys).wait()
            assert code == 0, output
            assert_same_run(run_dir, whole)
    except BaseException:
        print(f"seed {seed} (set TDMPC2_TEST_SEED to repeat it): {'; '.join(history)}")
        raise
    return done


def test_interrupted_at_random(server: CrashServer, tmp_path: Path) -> None:
    done = interrupt_at_random(server, tmp_path, 4, SEED, *SHORT, "steps=24")
    assert done["SIGKILL"] + done["SIGTERM"] >= 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(10))
def test_interrupted_at_random_many_times(server: CrashServer, tmp_path: Path, part: int) -> None:
    done = interrupt_at_random(server, tmp_path, 10, SEED + 1 + part, *LONG)
    print(dict(done))
    assert done["SIGKILL"] + done["SIGTERM"] >= 10


def kill_at_operations(
    server: CrashServer, folder: Path, chosen: Callable[[int, random.Random], Iterable[int]], *keys: str
) -> int:
    """Kills runs just before the chosen ones of their file operations, twice in a row, and resumes them."""
    whole, operations = never_interrupted(server, folder / "whole", *keys)
    chance = random.Random(SEED)
    points = list(chosen(operations, chance))
    for point in points:
        run_dir = folder / f"at{point}"
        code, output = go_on(server, run_dir, *keys, kill_at=point).wait()
        assert code == -9, output
        again = chance.randrange(operations)
        code, output = go_on(server, run_dir, *keys, kill_at=again).wait()
        assert code in (-9, 0), output
        code, output = go_on(server, run_dir, *keys).wait()
        assert code == 0, (point, again, output)
        assert_same_run(run_dir, whole)
    return len(points)


def test_killed_at_some_file_operations(server: CrashServer, tmp_path: Path) -> None:
    kill_at_operations(server, tmp_path, lambda count, chance: sorted(chance.sample(range(count), 4)), *SHORT)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(6))
def test_killed_at_every_file_operation(server: CrashServer, tmp_path: Path, part: int) -> None:
    points = kill_at_operations(server, tmp_path, lambda count, _: range(part, count, 6), *SHORT, "eval_freq=4")
    print(f"{points} file operations")
    assert points >= 5


# -- the state on disk ---------------------------------------------------------------------------------------------


def small_state(step: int) -> TrainingState:
    return TrainingState(step, {"x": torch.arange(64.0) + step}, {"seed": 1})


def test_a_full_disk_keeps_both_states(tmp_path: Path, server: CrashServer) -> None:
    keys = ("log_freq=1", "state_freq=2", "save_freq=100")
    whole, _ = never_interrupted(server, tmp_path / "whole", "steps=10", *keys)
    run_dir = tmp_path / "run"
    assert go_on(server, run_dir, "steps=5", *keys).wait()[0] == 0
    before = {path: path.read_bytes() for path in (run_dir / "state").iterdir()}
    code, output = go_on(server, run_dir, "steps=10", *keys, file_limit=STATE_BYTES).wait()
    assert code == 2
    assert re.search(r"error: cannot write \S*/run/state/latest\.pt: the file is larger than .*\.$", output.strip())
    assert "Traceback" not in output
    assert before == {path: path.read_bytes() for path in (run_dir / "state").iterdir()}
    assert go_on(server, run_dir, "steps=10", *keys).wait()[0] == 0
    (run_dir / "checkpoints" / "step_00000005.safetensors").unlink()  # the end of its first part
    assert_same_run(run_dir, whole)


def test_every_flipped_byte_of_a_state_is_found_or_harmless(tmp_path: Path) -> None:
    """Those that torch.load takes no notice of, in the tensors' bytes, among them."""
    states = StateFolder(tmp_path)
    states.save(small_state(1))
    path = tmp_path / "state" / "latest.pt"
    data = path.read_bytes()
    place = data.index(small_state(1).learner["x"].numpy().tobytes())
    noticed_by_torch = 0
    for index in range(0, len(data), 7):
        changed = data[:index] + bytes([data[index] ^ 0x10]) + data[index + 1 :]
        path.write_bytes(changed)
        try:
            loaded = states.load({"seed": 1})
        except CheckpointError as error:
            assert str(path) in str(error)
        else:
            assert not place <= index < place + 256
            assert loaded.step == 1 and torch.equal(loaded.learner["x"], torch.arange(64.0) + 1)
        if place <= index < place + 256:
            noticed_by_torch += not torch.equal(torch.load(path)["learner"]["x"], torch.arange(64.0) + 1)
    assert noticed_by_torch > 0, "or this test tests nothing"


@pytest.mark.parametrize("content", [b"", b"no archive", None], ids=["empty", "foreign", "cut"])
def test_damaged_states(tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    states = StateFolder(tmp_path)
    latest, previous = (tmp_path / "state" / f"{name}.pt" for name in ("latest", "previous"))

    def damaged(path: Path) -> bytes:
        return path.read_bytes()[:-200] if content is None else content

    for step in range(1, 4):  # three times in a row: an older damaged file is not overwritten
        states.save(small_state(step))
        states.save(small_state(step + 1))
        latest.write_bytes(damaged(latest))
        assert states.load({"seed": 1}).step == step
        assert "warning: " in (shown := capsys.readouterr().err) and "previous.pt takes its place" in shown
        kept = [latest.read_bytes(), previous.read_bytes()]
        states.save(small_state(step + 2))
        assert [latest.with_suffix(f".damaged{step}").read_bytes(), previous.read_bytes()] == kept
        assert states.load({"seed": 1}).step == step + 2
    latest.write_bytes(damaged(previous))
    previous.write_bytes(damaged(previous))
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    with pytest.raises(CheckpointError, match=r"no training state.*latest\.pt.*previous\.pt.*left as they are"):
        states.load({"seed": 1})
    assert before == {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}


def test_two_damaged_states_are_not_overwritten_by_a_fresh_start(tmp_path: Path) -> None:
    tiny_run(tmp_path, "steps=4", "state_freq=2")
    for name in ("latest", "previous"):
        (tmp_path / "state" / f"{name}.pt").write_bytes(b"")
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    with pytest.raises(CheckpointError, match="no training state"):
        tiny_run(tmp_path, "steps=6", "state_freq=2", "resume=true")
    with pytest.raises(UserError, match="holds a training run already"):
        tiny_run(tmp_path, "steps=6", "state_freq=2")
    assert before == {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}


def edited_state(run_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = run_dir / "state" / "latest.pt"
    content = torch.load(path)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=9), "has version 9, expected 1"),
        (lambda c: c.update(step=-1), "holds something other than a training state"),
        (lambda c: c.update(step="4"), "holds something other than a training state"),
        (lambda c: c.pop("learner"), "holds something other than a training state"),
        (lambda c: c["learner"].pop("noise"), "has other entries: noise"),
        (lambda c: c["learner"].update(scale=torch.zeros(2)), r"scale is torch.float32 \[2\], expected"),
        (lambda c: c["learner"]["model"].update(task_embedding=torch.zeros(2, 3)), "task_embedding is .*expected"),
        (lambda c: c["learner"]["world_optimiser"]["param_groups"].pop(), "has 1 entries, expected 2"),
        (
            lambda c: c["learner"]["world_optimiser"]["state"][0].update(exp_avg=torch.zeros(3)),
            "exp_avg of a parameter of shape .* has another shape",
        ),
        (lambda c: c["learner"]["world_optimiser"].update(state=3), "does not fit"),
        (lambda c: c["identity"].update(seed=torch.zeros(2)), "seed was .* and is 1"),
    ],
)
def test_states_that_do_not_fit(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    tiny_run(tmp_path, "steps=2", "state_freq=2", "save_freq=100")
    (tmp_path / "state" / "previous.pt").unlink(missing_ok=True)
    edited_state(tmp_path, change)
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    with pytest.raises(UserError, match=message):
        tiny_run(tmp_path, "steps=4", "state_freq=2", "save_freq=100", "resume=true")
    assert before == {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}


def test_saving_a_state_makes_no_copy_of_it(tmp_path: Path) -> None:
    program = f"""
import resource, torch
from pathlib import Path
from tdmpc2.training.state import StateFolder, TrainingState
learner = {{str(i): torch.ones(5_000_000) for i in range(10)}}
states = StateFolder(Path({str(tmp_path)!r}))
states.save(TrainingState(0, {{"x": torch.ones(3)}}, {{}}))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
states.save(TrainingState(1, learner, {{}}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60_000, "KiB, for 200 MB of tensors"


# -- metrics -------------------------------------------------------------------------------------------------------


def test_an_evaluation_logged_before_a_kill_is_not_logged_twice(server: CrashServer, tmp_path: Path) -> None:
    """Killed between the evaluation's row and the state that says it was done."""
    keys = ("steps=1", "log_freq=1", "state_freq=100", "save_freq=100", "eval_freq=1")
    whole, operations = never_interrupted(server, tmp_path / "whole", *keys)
    run_dir = tmp_path / "run"
    assert go_on(server, run_dir, *keys, kill_at=operations - 4).wait()[0] == -9
    assert [row["category"] for row in rows_of(run_dir)] == ["train", "eval"], "or this test tests nothing"
    assert go_on(server, run_dir, *keys).wait()[0] == 0
    assert_same_run(run_dir, whole)


# -- one process a run folder ----------------------------------------------------------------------------------


def running(server: CrashServer, run_dir: Path) -> Any:
    started = go_on(server, run_dir, "steps=1000000", "log_freq=5", "state_freq=5", "save_freq=1000000")
    deadline = time.monotonic() + 60
    while not StateFolder(run_dir).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return started


def test_a_second_process_is_refused_until_the_first_is_gone(server: CrashServer, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    started = running(server, run_dir)
    keys = ("log_freq=5", "state_freq=5", "save_freq=1000000")
    for resume in ("resume=true", "resume=false"):
        message = rf"{run_dir}: another process trains in this run folder; wait .* stop it, or choose another exp_name"
        with pytest.raises(UserError, match=message):
            tiny_run(run_dir, "steps=9", *keys, resume)
    program = run_program(
        "tdmpc2/train.py", *TINY, f"data_dir={store_path()}", f"hydra.run.dir={run_dir}", "resume=true", cwd=tmp_path
    )
    assert program.returncode == 2 and program.stderr.count("\n") == 1
    assert program.stderr.startswith(f"error: {run_dir}: another process trains")
    started.kill(signal.SIGKILL)
    assert started.wait()[0] == -9
    assert (run_dir / LOCK_NAME).exists()
    step = StateFolder(run_dir).load().step  # the kill may have come between the renaming of the last two
    assert tiny_run(run_dir, f"steps={step + 1}", "resume=true", *keys).step == step + 1


def test_reading_a_run_needs_no_lock(server: CrashServer, tmp_path: Path) -> None:
    """A checkpoint of a run under way evaluates, and the run goes on."""
    tiny_run(tmp_path / "run", "steps=2", "save_freq=1")
    with run_lock(tmp_path / "run"):
        program = run_program(
            "tdmpc2/evaluate.py",
            f"checkpoint={tmp_path / 'run' / 'checkpoints' / 'step_00000001.safetensors'}",
            *DUO_KEYS,
            "eval_episodes=1",
            "mpc=false",
            "num_workers=0",
            f"output={tmp_path / 'results'}",
            "device=cpu",
            cwd=tmp_path,
        )
        assert program.returncode == 0, program.stderr
        assert read_metrics(tmp_path / "run")
    assert (tmp_path / "results" / "evaluation.json").exists()


def test_a_sweep_stops_at_a_folder_in_use(tmp_path: Path) -> None:
    keys = ("steps=2", f"data_dir={store_path()}", "device=cpu", "logging.console=false", "hydra.sweep.dir=sweep")
    keys = (*keys, "hydra.sweep.subdir=${lr}/seed1")
    with run_lock(tmp_path / "sweep" / "0.0002" / "seed1"):
        program = subprocess.run(
            [sys.executable, ROOT / "tdmpc2" / "train.py", "-m", *TINY, *keys, "lr=0.0001,0.0002"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert program.returncode == 2
    assert "0.0002/seed1: another process trains in this run folder" in program.stderr
    assert (tmp_path / "sweep" / "0.0001" / "seed1" / "checkpoints" / "final.safetensors").exists()
    assert not list((tmp_path / "sweep" / "0.0002").rglob("*.pt"))


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError), run_lock(tmp_path / "a" / "run"):
        raise UserError("no")
    assert not (tmp_path / "a" / "run").exists()
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError), run_lock(tmp_path / "b"):
        raise UserError("no")
    assert files_in(tmp_path) == [] and (tmp_path / "b").is_dir()


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    tiny_run(tmp_path, "steps=2")
    for place in (tmp_path, tmp_path / "state", tmp_path / "checkpoints"):
        (place / ".latest.pt.0123456789ab.tmp").write_bytes(b"x" * 1000)
    tiny_run(tmp_path, "steps=3", "resume=true")
    assert not list(tmp_path.rglob("*.tmp"))


def test_folders_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*run\.lock: a part of the path is a file"):
        tiny_run(tmp_path / "file" / "run", "steps=2")
    import fcntl

    def refused(number: int) -> Callable[..., None]:
        def flock(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return flock

    for number in NO_LOCKS:
        monkeypatch.setattr(fcntl, "flock", refused(number))
        with pytest.raises(UserError, match=r"cannot lock .*its file system has no file locks; .*hydra\.run\.dir"):
            tiny_run(tmp_path / "run", "steps=2")
    monkeypatch.setattr(fcntl, "flock", refused(errno.EROFS))
    with pytest.raises(UserError, match=r"cannot write .*: the file system is read-only"):
        tiny_run(tmp_path / "run", "steps=2")
    assert files_in(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(UserError, match="permission denied"):
            tiny_run(tmp_path / "run", "steps=2")
    finally:
        tmp_path.chmod(0o755)


# -- numbers that are not finite -------------------------------------------------------------------------------


def overflowing_store(path: Path) -> EpisodeStore:
    """Ten episodes, one of which has an observation that overflows in the first layer of any model."""
    store = EpisodeStore.create(path, DUO.tasks, DUO.obs_dim, DUO.action_dim, 21)
    episodes = make_episodes(DUO, [0, 1] * 5, 21, DUO.obs_dim, DUO.action_dim)
    for key in ("obs", "action", "reward"):
        episodes[key] = np.nan_to_num(episodes[key])
    episodes["obs"] /= 10_000
    episodes["obs"][6, :, :3] = 3e38
    store.append(**episodes)
    return store


@pytest.mark.parametrize("log_freq", [1, 7])
@pytest.mark.parametrize("teacher", [False, True])
def test_a_batch_that_overflows(tmp_path: Path, log_freq: int, teacher: bool) -> None:
    store = overflowing_store(tmp_path / "data")
    sampler = SliceSampler(store, DUO, 4, 3, 1)
    first_bad = next(step for step in range(1, 100) if 6 in sampler.indices(step - 1)[0])
    assert first_bad > 2
    run_dir = tmp_path / "run"
    taught = ("teacher=1M", "teacher.random_weights=true", "d_coef=0.4") if teacher else ()
    keys = (
        f"data_dir={store.path}",
        "batch_size=4",
        "steps=100",
        f"log_freq={log_freq}",
        "state_freq=1",
        "save_freq=1",
    )
    with pytest.raises(UserError, match="not finite") as caught:
        tiny_run(run_dir, *keys, "state_freq=1", "save_freq=1", *taught)
    message = str(caught.value)
    assert message.startswith(f"step {first_bad}: ")
    named = message.partition(" not finite")[0]
    for loss in ("consistency_loss", "reward_loss", "value_loss", "total_loss", "pi_loss"):
        assert loss in named, message
    assert ("distillation_loss" in named) == teacher
    drawn = ", ".join(map(str, sorted(set(sampler.indices(first_bad - 1)[0].tolist()))))
    assert f"its batch drew episodes {drawn}. The last state written is kept" in message
    state = StateFolder(run_dir)
    kept = torch.load(run_dir / "state" / "latest.pt")
    assert state.exists() and kept["step"] == first_bad - 1
    assert all(v.isfinite().all() for v in flat(kept).values() if isinstance(v, torch.Tensor) and v.is_floating_point())
    assert sorted(files_in(run_dir / "checkpoints")) == [f"step_{n:08d}.safetensors" for n in range(1, first_bad)]
    assert [row["step"] for row in read_metrics(run_dir)] == list(range(log_freq, first_bad, log_freq))


def test_weights_that_overflow_at_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^step 1: pi_loss, .* not finite; its batch drew episodes 0, 1, 2, 3\."):
        tiny_run(tmp_path, "steps=9", "lr=1e38", "enc_lr_scale=100", "log_freq=100", "state_freq=1", "save_freq=1")
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.safetensors"))
    assert json.loads((tmp_path / "config.json").read_text())["lr"] == 1e38


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_state_that_is_not_finite_though_the_losses_were(bad: float) -> None:
    sampler = SliceSampler(EpisodeStore.open(store_path()), DUO, 8, 3, 1)
    watch = FiniteWatch(sampler, torch.device("cpu"))
    watch.add(1, {"total_loss": torch.tensor(1.0), "grad_norm": torch.tensor(2.0)})
    state = {"model": {"a": torch.ones(3), "b": torch.ones(2, 2)}, "noise": torch.zeros(4, dtype=torch.uint8)}
    watch.check_state(1, state)
    state["model"]["b"][1, 0] = bad  # type: ignore[index]
    with pytest.raises(UserError, match=r"^step 1: its losses are finite, but model\.b is not finite; its batch drew"):
        watch.check_state(1, state)
