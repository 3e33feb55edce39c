"""Training runs on a small real store: what they write, how they stop, and that they resume bit for bit."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_fixtures import make_store
from run_fixtures import (
    DUO,
    ROOT,
    SHARED,
    TINY,
    TINY_MODEL,
    environment,
    files_in,
    store_path,
    tiny_config,
    tiny_run,
    tiny_settings,
)

from tdmpc2.checkpointing import load_model, read_checkpoint
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import CheckpointError, DataError, UserError
from tdmpc2.reporting.sinks import read_metrics
from tdmpc2.settings.convert import teacher_of
from tdmpc2.tasks import task_set
from tdmpc2.training import outputs, train
from tdmpc2.training.state import StateFolder, TrainingState
from tdmpc2.training.student import new_student

RELEASED = sorted((SHARED / "checkpoints").glob("*.pt"))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run_dir / "checkpoints" / "final.safetensors").tensors


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    assert not differing


def logged(run_dir: Path) -> list[dict[str, float]]:
    """Training rows without their time."""
    return [
        {k: v for k, v in row.items() if k != "time"} for row in read_metrics(run_dir) if row["category"] == "train"
    ]


def test_a_run_writes_checkpoints_metrics_state_and_configuration(tmp_path: Path) -> None:
    result = tiny_run(tmp_path, "steps=10", "log_freq=2", "state_freq=4")
    assert (result.step, result.interrupted) == (10, False)
    assert result.checkpoint == tmp_path / "checkpoints" / "final.safetensors"
    assert result.updates_per_second > 0
    assert all(np.isfinite(v) for v in result.metrics.values()) and "distillation_loss" not in result.metrics
    assert files_in(tmp_path) == [
        *(f"checkpoints/{name}.safetensors" for name in ("final", *(f"step_{n:08d}" for n in (2, 4, 6, 8, 10)))),
        "config.json",
        "metrics.csv",
        "metrics.jsonl",
        "run.json",
        "run.lock",
        "state/latest.pt",
        "state/previous.pt",
    ]
    assert [row["step"] for row in logged(tmp_path)] == [2, 4, 6, 8, 10]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 4, 6, 8, 10]

    meta = read_checkpoint(result.checkpoint).metadata
    assert meta is not None
    assert (meta.task_set, meta.tasks, meta.step, meta.normalised_score) == ("duo", DUO.tasks, 10, None)
    assert meta.config == json.loads((tmp_path / "config.json").read_text())
    assert meta.config["batch_size"] == 8 and meta.config["task"]["tasks"] == list(DUO.tasks)
    model, tasks, _ = load_model(result.checkpoint)
    assert tasks == DUO
    start = new_student(tiny_settings(tmp_path, "steps=10")).state_dict()
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert changed >= {
        "encoder",
        "dynamics",
        "reward_head",
        "policy_head",
        "q_heads",
        "target_q_heads",
        "task_embedding",
    }


def test_save_freq_and_seed(tmp_path: Path) -> None:
    tiny_run(tmp_path / "a", "steps=6", "save_freq=4")
    assert files_in(tmp_path / "a" / "checkpoints") == [
        "final.safetensors", "step_00000004.safetensors", "step_00000006.safetensors"
    ]  # fmt: skip
    tiny_run(tmp_path / "b", "steps=6")
    tiny_run(tmp_path / "c", "steps=6", "seed=2")
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(weights(tmp_path / "a")["task_embedding"], weights(tmp_path / "c")["task_embedding"])


@pytest.mark.parametrize("pi_scale", ["batch", "task"])
def test_resumed_equals_never_interrupted(tmp_path: Path, pi_scale: str) -> None:
    keys = ("log_freq=3", "state_freq=4", "save_freq=100", f"pi_scale={pi_scale}")
    tiny_run(tmp_path / "whole", "steps=14", *keys)
    tiny_run(tmp_path / "parts", "steps=6", *keys)
    torch.rand(3)  # what this process draws in between does not matter
    tiny_run(tmp_path / "parts", "steps=9", "resume=true", *keys)
    result = tiny_run(tmp_path / "parts", "steps=14", "resume=true", *keys)
    assert result.step == 14
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    steps = [row["step"] for row in logged(tmp_path / "parts")]
    assert steps == [3, 6, 9, 12, 14]
    whole = {row["step"]: row for row in logged(tmp_path / "whole")}
    assert all(whole[row["step"]] == row for row in logged(tmp_path / "parts"))
    saved = torch.load(tmp_path / "whole" / "state" / "latest.pt", weights_only=True)
    again = torch.load(tmp_path / "parts" / "state" / "latest.pt", weights_only=True)
    for name in ("noise", "scale"):
        assert torch.equal(saved["learner"][name], again["learner"][name])
    assert len(saved["learner"]["scale"]) == {"batch": 1, "task": 2}[pi_scale]
    assert saved["identity"] == again["identity"]


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    tiny_run(tmp_path, "steps=4", "log_freq=2")
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path) if not name.startswith("config")}
    result = tiny_run(tmp_path, "steps=4", "log_freq=2", "resume=true")
    assert result.step == 4 and not result.interrupted and result.checkpoint is not None
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_metrics_after_the_resumed_state_are_dropped_once(tmp_path: Path) -> None:
    keys = ("log_freq=1", "state_freq=4", "save_freq=100")
    tiny_run(tmp_path, "steps=6", *keys)
    (tmp_path / "state" / "latest.pt").unlink()  # as if it had been killed after step 6 and before its state
    tiny_run(tmp_path, "steps=8", "resume=true", *keys)
    assert [row["step"] for row in logged(tmp_path)] == list(range(1, 9))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 9))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_program_resumes_bit_for_bit(tmp_path: Path, number: signal.Signals) -> None:
    run_dir = tmp_path / "logs" / "duo" / "default" / "seed1"
    keys = ("log_freq=5", "state_freq=5", "save_freq=1000000", "device=cpu")
    process = subprocess.Popen(
        [sys.executable, ROOT / "tdmpc2" / "train.py", *TINY, f"data_dir={store_path()}", "steps=1000000", *keys],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (run_dir / "state" / "previous.pt").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    if number == signal.SIGTERM:
        assert process.returncode == 130 and "resume=true" in output and errors == ""
    else:
        assert process.returncode == -signal.SIGKILL
    stopped = torch.load(run_dir / "state" / "latest.pt", weights_only=True)["step"]
    assert not (run_dir / "checkpoints").exists()

    steps = f"steps={stopped + 7}"
    tiny_run(run_dir, steps, "resume=true", *keys)
    tiny_run(tmp_path / "whole", steps, *keys)
    assert_same_weights(run_dir, tmp_path / "whole")
    assert [row["step"] for row in logged(run_dir)] == [row["step"] for row in logged(tmp_path / "whole")]
    assert not list(run_dir.rglob("*.tmp*"))


def test_a_damaged_state_falls_back_to_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("log_freq=2", "state_freq=2", "save_freq=100")
    tiny_run(tmp_path / "run", "steps=6", *keys)
    latest = tmp_path / "run" / "state" / "latest.pt"
    latest.write_bytes(latest.read_bytes()[:1000])
    capsys.readouterr()
    tiny_run(tmp_path / "run", "steps=8", "resume=true", *keys)
    shown = capsys.readouterr()
    assert "warning" in shown.err and "latest.pt" in shown.err and "at step 4 of 8" in shown.out
    tiny_run(tmp_path / "whole", "steps=8", *keys)
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    for path in (latest, latest.with_name("previous.pt")):
        path.write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match=r"state: no training state to resume from .*latest\.pt.*previous\.pt"):
        tiny_run(tmp_path / "run", "steps=9", "resume=true", *keys)


def test_a_state_runs_nothing_when_read(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "touched",))

    (tmp_path / "state").mkdir()
    torch.save({"version": 1, "step": 1, "learner": Harmful(), "identity": {}}, tmp_path / "state" / "latest.pt")
    with pytest.raises(CheckpointError, match="no training state"):
        StateFolder(tmp_path).load({})
    assert not (tmp_path / "touched").exists()


def test_states_follow_each_other(tmp_path: Path) -> None:
    states = StateFolder(tmp_path)
    assert not states.exists()
    for step in (1, 2, 3):
        states.save(TrainingState(step, {"x": torch.tensor([step])}, {"seed": 1}))
    assert states.load({"seed": 1}).step == 3
    (tmp_path / "state" / "latest.pt").unlink()
    assert states.exists() and states.load({"seed": 1}).step == 2
    with pytest.raises(UserError, match=r"seed was 1 and is 2"):
        states.load({"seed": 2})


def test_resume_needs_a_state(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no training state to resume from \(none was written\); start it without"
    ):
        tiny_run(tmp_path / "run", "steps=2", "resume=true")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_not_overwritten(tmp_path: Path) -> None:
    tiny_run(tmp_path, "steps=2")
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    with pytest.raises(UserError, match="holds a training run already: continue it with resume=true"):
        tiny_run(tmp_path, "steps=3")
    for wrong, named in (
        ("lr=1e-3", "lr was 0.0003 and is 0.001"),
        ("batch_size=4", "batch_size was 8 and is 4"),
        ("mlp_dim=40", "mlp_dim was 32 and is 40"),
        ("task.name=cartpole-swingup", "tasks was"),
        ("seed=3", "seed was 1 and is 3"),
    ):
        single = ("task.tasks=null",) if wrong.startswith("task") else ()
        with pytest.raises(UserError, match=f"cannot resume with other settings: .*{named}"):
            tiny_run(tmp_path, "steps=3", "resume=true", wrong, *single)
    assert before == {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}


def test_resume_refuses_changed_data(tmp_path: Path) -> None:
    def run(name: str, *keys: str) -> None:
        tiny_run(tmp_path / "run", *keys, f"data_dir={tmp_path / name}")

    make_store(tmp_path / "data", DUO, [0, 1, 1, 0])
    run("data", "steps=2")
    (tmp_path / "data").rename(tmp_path / "moved")
    run("moved", "steps=3", "resume=true")  # the same episodes in another place
    make_store(tmp_path / "other", DUO, [0, 1, 1, 0, 1])
    with pytest.raises(UserError, match=r"data was '4 episodes, .*' and is '5 episodes"):
        run("other", "steps=4", "resume=true")


def test_numbers_that_are_not_finite_stop_a_run_before_it_saves_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite") as caught:
        tiny_run(tmp_path, "steps=50", "lr=1e30", "log_freq=50", "state_freq=1", "save_freq=50")
    found = re.match(r"step (\d+): .*total_loss.* its batch drew episodes ([\d, ]+)\.", str(caught.value))
    assert found is not None, str(caught.value)
    step, episodes = int(found[1]), [int(e) for e in found[2].split(", ")]
    assert 2 <= step < 10
    sampler = SliceSampler(EpisodeStore.open(store_path()), DUO, 8, 3, 1)
    assert episodes == sorted(set(sampler.indices(step - 1)[0].tolist()))
    state = torch.load(tmp_path / "state" / "latest.pt", weights_only=True)
    assert state["step"] == step - 1
    assert logged(tmp_path) == [] and not (tmp_path / "checkpoints").exists()


def test_the_first_bad_step_is_named_where_it_is_noticed_later(tmp_path: Path) -> None:
    def message(*keys: str) -> str:
        with pytest.raises(UserError, match="not finite") as caught:
            tiny_run(tmp_path / "-".join(keys), "lr=1e30", "state_freq=100", "save_freq=100", *keys)
        return str(caught.value)

    assert message("steps=20", "log_freq=1") == message("steps=20", "log_freq=20")


def test_start_from_own_weights(tmp_path: Path) -> None:
    tiny_run(tmp_path / "first", "steps=3")
    source = tmp_path / "first" / "checkpoints" / "final.safetensors"
    settings = tiny_settings(tmp_path / "second", "steps=4", f"checkpoint={source}")
    student = new_student(settings).state_dict()
    for name, value in weights(tmp_path / "first").items():
        assert torch.equal(student[name], value), name
    tiny_run(tmp_path / "second", "steps=4", f"checkpoint={source}")
    assert not torch.equal(weights(tmp_path / "second")["task_embedding"], student["task_embedding"])

    for wrong, named in (("latent_dim=64", "latent_dim 32 .not 64."), ("task.name=trio", "not cup-spin")):
        extra = ("task.tasks=[cup-spin,pendulum-spin]",) if "trio" in wrong else ()
        with pytest.raises(CheckpointError, match=named):
            new_student(tiny_settings(tmp_path / "third", f"checkpoint={source}", wrong, *extra))
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: no such checkpoint"):
        tiny_run(tmp_path / "third", "steps=4", "checkpoint=nowhere.pt")

    source.unlink()  # a run that has started needs it no longer
    assert tiny_run(tmp_path / "second", "steps=5", "resume=true", f"checkpoint={source}").step == 5


@pytest.mark.skipif(not RELEASED, reason="the released checkpoints are not beside this checkout")
@pytest.mark.parametrize("path", RELEASED, ids=lambda p: p.stem)
def test_start_from_released_weights(tmp_path: Path, path: Path) -> None:
    tasks = task_set("mt30")
    make_store(tmp_path / "data", tasks, list(range(30)), steps=6)
    keys = ("task.name=mt30", "task.tasks=null", "enc_dim=null", "mlp_dim=null", "latent_dim=null", "batch_size=4")
    settings = tiny_settings(tmp_path / "run", *keys, f"checkpoint={path}", f"data_dir={tmp_path / 'data'}", "steps=1")
    if path.stem.endswith(("int8", "mixed")):
        with pytest.raises(CheckpointError, match=r"is quantised .*; training needs float weights"):
            train(settings, None)
        return
    student = new_student(settings)
    held = load_model(path, "mt30")[0]
    for name, value in held.state_dict().items():
        assert torch.equal(student.state_dict()[name], value), name
    if not held.has_target_q:
        for name, value in held.q_heads.state_dict().items():
            assert torch.equal(student.target_q_heads.state_dict()[name], value), name
    assert train(settings, None).step == 1
    with pytest.raises(CheckpointError, match=r"holds .*latent_dim 128 .not 64"):
        new_student(tiny_settings(tmp_path / "other", *keys, f"checkpoint={path}", "latent_dim=64"))


def test_data_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere"):
        tiny_run(tmp_path, "data_dir=nowhere")
    with pytest.raises(DataError, match=r"no episodes of cartpole-balance"):
        tiny_run(tmp_path, "task.tasks=[cartpole-swingup,cartpole-balance]")
    with pytest.raises(DataError, match=r"horizon 501"):
        tiny_run(tmp_path, "horizon=501")
    assert files_in(tmp_path) == []


def test_distillation_from_an_own_checkpoint(tmp_path: Path) -> None:
    big = [key.replace("32", "48") for key in TINY_MODEL]
    tiny_run(tmp_path / "teacher", "steps=3", *big)
    source = tmp_path / "teacher" / "checkpoints" / "final.safetensors"
    before = source.read_bytes()
    keys = ("teacher=1M", f"teacher.checkpoint={source}", "d_coef=0.4", "steps=6", "log_freq=1")
    with pytest.raises(CheckpointError, match=r"custom-size .*expected model_size=1"):
        tiny_run(tmp_path / "student", *keys)
    shape = [f"teacher.{key}" for key in big]
    with pytest.raises(CheckpointError, match=r"teacher\.mlp_dim 48 .not 40."):
        tiny_run(tmp_path / "student", *keys, *shape, "teacher.mlp_dim=40")

    config = tiny_config(*keys, *shape)
    settings = tiny_settings(tmp_path / "student", *keys, *shape)
    teacher = teacher_of(config, settings.task_set, settings.device)
    assert teacher is not None and teacher.dims.mlp_dim == 48
    held = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    train(settings, teacher)
    assert source.read_bytes() == before
    assert all(torch.equal(value, held[name]) for name, value in teacher.model.state_dict().items())
    rows = logged(tmp_path / "student")
    assert [row["step"] for row in rows] == list(range(1, 7))
    for row in rows:
        assert row["distillation_loss"] > 0
        assert row["total_loss"] == pytest.approx(row["original_loss"] + 0.4 * row["distillation_loss"], rel=1e-5)
    tiny_run(tmp_path / "scratch", "steps=6")
    assert not torch.equal(
        weights(tmp_path / "student")["task_embedding"], weights(tmp_path / "scratch")["task_embedding"]
    )
    assert not any("teacher" in name for name in weights(tmp_path / "student"))

    # A state taught by other weights is not continued.
    tiny_run(tmp_path / "teacher", "steps=5", "resume=true", *big)
    with pytest.raises(UserError, match="teacher weights was"):
        tiny_run(tmp_path / "student", *keys, *shape, "resume=true")
    with pytest.raises(UserError, match=r"d_coef was 0.4 and is 0.0"):
        tiny_run(tmp_path / "student", "steps=6", "resume=true")


def test_distillation_resumes_bit_for_bit(tmp_path: Path) -> None:
    keys = ("teacher=1M", "teacher.random_weights=true", "d_coef=0.4")
    tiny_run(tmp_path / "whole", "steps=6", *keys)
    tiny_run(tmp_path / "parts", "steps=3", *keys)
    tiny_run(tmp_path / "parts", "steps=6", "resume=true", *keys)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_teacher_that_could_learn_is_refused(tmp_path: Path) -> None:
    config = tiny_config("teacher=1M", "teacher.random_weights=true")
    teacher = teacher_of(config, DUO, torch.device("cpu"))
    assert teacher is not None
    teacher.model.requires_grad_(True)
    with pytest.raises(UserError, match="not frozen"):
        train(tiny_settings(tmp_path, "teacher=1M"), teacher)


def test_evaluation_while_training_is_logged_kept_and_changes_nothing(tmp_path: Path) -> None:
    keys = ("steps=4", "task.name=pendulum-spin", "task.tasks=null")
    tiny_run(tmp_path / "seen", *keys, "eval_freq=3", "horizon=2")
    rows = [row for row in read_metrics(tmp_path / "seen") if row["category"] == "eval"]
    assert [row["step"] for row in rows] == [3, 4], "every eval_freq steps and at the end"
    assert all(row["return/pendulum-spin"] >= 0 and 0 <= row["normalised_score"] <= 100 for row in rows)
    meta = read_checkpoint(tmp_path / "seen" / "checkpoints" / "final.safetensors").metadata
    assert meta is not None and meta.normalised_score == rows[-1]["normalised_score"]
    tiny_run(tmp_path / "unseen", *keys, "horizon=2")
    assert_same_weights(tmp_path / "seen", tmp_path / "unseen")


def test_tensorboard_is_a_choice(tmp_path: Path) -> None:
    tiny_run(tmp_path, "steps=2", "logging=tensorboard", "logging.console=false")
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_signal_during_an_evaluation_stops_it_and_resume_makes_up_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("steps=4", "log_freq=2", "eval_freq=2", "save_freq=2", "eval_episodes=1")
    tiny_run(tmp_path / "whole", *keys)
    real = outputs.evaluate

    def evaluate_signalled(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "evaluate", evaluate_signalled)
        result = tiny_run(tmp_path / "run", *keys)
    assert result.interrupted and result.step == 2 and "continue with resume=true" in capsys.readouterr().out
    assert not (tmp_path / "run" / "checkpoints" / "step_00000002.safetensors").exists()
    result = tiny_run(tmp_path / "run", "resume=true", *keys)
    assert not result.interrupted and result.step == 4
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    assert files_in(tmp_path / "run" / "checkpoints") == files_in(tmp_path / "whole" / "checkpoints")
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


def test_resuming_with_steps_cut_down_to_where_it_stood_ends_the_run(tmp_path: Path) -> None:
    tiny_run(tmp_path, "steps=4", "state_freq=2", "save_freq=100")
    (tmp_path / "state" / "latest.pt").unlink()
    (tmp_path / "checkpoints" / "final.safetensors").unlink()
    result = tiny_run(tmp_path, "steps=2", "resume=true", "state_freq=2", "save_freq=100")
    assert result.checkpoint is not None and read_checkpoint(result.checkpoint).metadata.step == 2  # type: ignore[union-attr]
    with pytest.raises(UserError, match="at step 2 already, beyond steps=1"):
        tiny_run(tmp_path, "steps=1", "resume=true")


def test_a_released_teacher_of_other_tasks_says_which_key_names_them(tmp_path: Path) -> None:
    released = SHARED / "checkpoints" / "mt30_1M_steps_045dist_fp16.pt"
    if not released.exists():
        pytest.skip("needs ../shared/checkpoints, which is not there")
    keys = ("steps=2", "teacher=1M", f"teacher.checkpoint={released}")
    with pytest.raises(CheckpointError, match=r"teacher\.task=mt30"):
        tiny_run(tmp_path / "run", *keys)
    assert tiny_run(tmp_path / "run", *keys, "teacher.task=mt30").step == 2
