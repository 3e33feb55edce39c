"""The programs as users start them: other folders, no installed package, one line for every mistake."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_fixtures import (
    DUO_KEYS,
    ROOT,
    TASKS,
    TINY,
    TINY_PLANNER,
    environment,
    files_in,
    run_program,
    store_path,
    tiny_run,
)

from tdmpc2.checkpointing import read_checkpoint
from tdmpc2.data.store import EpisodeStore
from tdmpc2.envs.rendering import choose_backend
from tdmpc2.errors import RenderError
from tdmpc2.evaluation.results import load_json
from tdmpc2.reporting.sinks import read_metrics
from tdmpc2.settings.entry import be_deterministic

TRAIN, EVALUATE = "tdmpc2/train.py", "tdmpc2/evaluate.py"
COLLECT, QUANTIZE = "scripts/collect.py", "scripts/quantize.py"


def started(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The programs of the package find it themselves; scripts need it installed, or on the path."""
    paths = {"PYTHONPATH": str(ROOT)} if script.startswith("scripts/") else {}
    return run_program(script, *arguments, "device=cpu", cwd=cwd, **paths)


def succeeded(script: str, *arguments: str, cwd: Path) -> str:
    done = started(script, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def mistake(script: str, *arguments: str, cwd: Path) -> str:
    """The one line that a wrong command line gets."""
    done = started(script, *arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr + done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert "Traceback" not in done.stdout
    return lines[0]


def test_train_resume_evaluate_collect(tmp_path: Path) -> None:
    keys = (*TINY, f"data_dir={store_path()}", "log_freq=5")
    output = succeeded(TRAIN, *keys, "steps=10", cwd=tmp_path)
    assert "train step 10/10" in output and "updates, " in output
    output = succeeded(TRAIN, *keys, "steps=1_5", "resume=true", cwd=tmp_path)
    assert "at step 10 of 15" in output
    run_dir = tmp_path / "logs" / "duo" / "default" / "seed1"
    assert [row["step"] for row in read_metrics(run_dir)] == [5, 10, 15]
    assert (run_dir / "train.log").is_file()
    tiny_run(tmp_path / "whole", "steps=15", "log_freq=5")
    final = run_dir / "checkpoints" / "final.safetensors"
    whole = read_checkpoint(tmp_path / "whole" / "checkpoints" / "final.safetensors").tensors
    assert all(torch.equal(value, whole[name]) for name, value in read_checkpoint(final).tensors.items())

    output = succeeded(
        EVALUATE, f"checkpoint={final}", "eval_episodes=1", "mpc=false", "num_workers=0", "label=prior", cwd=tmp_path
    )
    assert "policy prior" in output and "normalised score" in output and TASKS[0] in output
    assert "[" not in output.splitlines()[0], "no log lines of libraries"
    results = tmp_path / "results" / "prior"
    assert files_in(results) == ["episodes.csv", "evaluation.json"]
    result = load_json(results / "evaluation.json")
    assert len(result.episodes) == 2 and result.tasks == TASKS
    assert result.configuration["seed"] == 1 and result.configuration["mpc"] is False
    assert result.versions["torch"] == torch.__version__
    with (results / "episodes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], int(row["seed"])) for row in rows] == [(e.task, e.seed) for e in result.episodes]

    succeeded(
        EVALUATE, f"checkpoint={final}", "task=own", f"tasks=[{TASKS[1]}]", "eval_episodes=1", "num_workers=0",
        f"output={tmp_path / 'planned'}", *TINY_PLANNER, cwd=tmp_path,
    )  # fmt: skip
    assert [e.task for e in load_json(tmp_path / "planned" / "evaluation.json").episodes] == [TASKS[1]]

    output = succeeded(
        COLLECT, "data_dir=mine", "task=own", f"checkpoint={final}", "behaviour=prior", "noise=0.3", "episodes=1",
        "num_workers=0", cwd=tmp_path,
    )  # fmt: skip
    store = EpisodeStore.open(tmp_path / "mine")
    assert len(store) == 2 and store.tasks == TASKS and "prior, noise 0.3" in output
    assert {path.split("/")[0] for path in files_in(tmp_path)} == {"logs", "whole", "results", "planned", "mine"}
    assert not (ROOT / "entry.log").exists()


def test_a_sweep_keeps_each_run_in_its_own_folder(tmp_path: Path) -> None:
    keys = (*TINY, f"data_dir={store_path()}", "steps=1", "teacher=1M", "teacher.random_weights=true")
    sweep = tmp_path / "logs" / "duo" / "sweep"
    succeeded(TRAIN, "-m", *keys, "exp_name=sweep", "d_coef=0.05,0.4", "horizon=2,3", cwd=tmp_path)
    finals = sorted(sweep.rglob("final.safetensors"))
    assert len(finals) == 4
    for final in finals:
        run_dir = final.parent.parent
        config = json.loads((run_dir / "config.json").read_text())
        assert run_dir.name == "seed1"
        assert f"d_coef-{config['d_coef']}+" in str(run_dir) and f"horizon-{config['horizon']}+" in str(run_dir)
        assert not set("=,[]' ") & set(str(run_dir.relative_to(tmp_path))), "takes no quotes to give back"

    succeeded(TRAIN, "-m", *DUO_KEYS, *keys[2:], "exp_name=seeds", "seed=1,2", cwd=tmp_path)
    assert len(list((tmp_path / "logs" / "duo" / "seeds").rglob("final.safetensors"))) == 2
    assert {path.split("/")[0] for path in files_in(tmp_path)} == {"logs"}


def test_deterministic_runs_end_with_the_same_bits(tmp_path: Path) -> None:
    keys = (*TINY, f"data_dir={store_path()}", "steps=4", "teacher=1M", "teacher.random_weights=true", "d_coef=0.4")
    done = started(TRAIN, "-m", *keys, "deterministic=true", "exp_name=a,b", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", "no operation lacks a deterministic form on a CPU"
    first, second = (read_checkpoint(path).tensors for path in sorted(tmp_path.rglob("final.safetensors")))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_deterministic_is_set_and_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # put back as it was afterwards
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        be_deterministic(True)
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        be_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_mistakes_get_one_line_and_leave_nothing(tmp_path: Path) -> None:
    data = f"data_dir={store_path()}"
    assert "'batchsize'" in mistake(TRAIN, *TINY, data, "batchsize=8", cwd=tmp_path)
    assert "checkpoint is not set" in mistake(EVALUATE, cwd=tmp_path)
    assert "behaviour=dance" in mistake(COLLECT, "data_dir=mine", "behaviour=dance", cwd=tmp_path)
    assert files_in(tmp_path) == []
    assert "teacher.checkpoint" in mistake(TRAIN, *TINY, data, "teacher=317M", cwd=tmp_path)


def test_a_checkpoint_of_other_tasks_is_refused(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", "steps=1")
    final = tmp_path / "run" / "checkpoints" / "final.safetensors"
    line = mistake(EVALUATE, f"checkpoint={final}", "task=mt30", cwd=tmp_path)
    assert str(final) in line and "'duo'" in line and "'mt30'" in line
    line = mistake(EVALUATE, f"checkpoint={final}", "tasks=[walker-walk]", cwd=tmp_path)
    assert "walker-walk" in line and "duo" in line
    final.write_bytes(final.read_bytes()[:5000])
    assert str(final) in mistake(EVALUATE, f"checkpoint={final}", cwd=tmp_path)
    assert {path.split("/")[0] for path in files_in(tmp_path)} == {"run"}


def test_a_program_error_keeps_its_traceback(tmp_path: Path) -> None:
    code = (
        "from tdmpc2.settings.entry import hydra_entry\n"
        "@hydra_entry('evaluate')\n"
        "def main(config):\n"
        "    raise ZeroDivisionError('a bug')\n"
        "main()\n"
    )
    (tmp_path / "program.py").write_text(code)
    done = run_program(str(tmp_path / "program.py"), cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ZeroDivisionError: a bug" in done.stderr


def test_quantise_and_compare(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", "steps=1")
    final = tmp_path / "run" / "checkpoints" / "final.safetensors"
    assert "scheme" in mistake(QUANTIZE, f"checkpoint={final}", "scheme=fp3", cwd=tmp_path)
    output = succeeded(
        QUANTIZE, f"checkpoint={final}", "scheme=fp16", "eval_episodes=1", f"tasks=[{TASKS[1]}]", "mpc=false",
        "num_workers=0", "output=half", cwd=tmp_path,
    )  # fmt: skip
    assert "before" in output and "after" in output
    assert files_in(tmp_path / "half") == [
        "after.csv", "after.json", "before.csv", "before.json",
        "final-fp16-deploy.safetensors", "final-fp16-prior.safetensors", "final-fp16.safetensors",
    ]  # fmt: skip
    deployed = read_checkpoint(tmp_path / "half" / "final-fp16-deploy.safetensors")
    assert deployed.stored_as == "float16" and not any("target_q" in name for name in deployed.tensors)
    prior = tmp_path / "half" / "final-fp16-prior.safetensors"
    same = ("eval_episodes=1", f"tasks=[{TASKS[1]}]", "num_workers=0")
    succeeded(EVALUATE, f"checkpoint={prior}", "mpc=false", "output=alone", *same, cwd=tmp_path)
    start = (*TINY, f"data_dir={store_path()}", f"checkpoint={prior}")
    assert "holds a policy prior alone" in mistake(TRAIN, *start, "hydra.run.dir=run2", cwd=tmp_path)
    assert "set mpc=false" in mistake(EVALUATE, f"checkpoint={prior}", "output=planned", *same, cwd=tmp_path)
    before, after, alone = (
        load_json(tmp_path / name) for name in ("half/before.json", "half/after.json", "alone/evaluation.json")
    )
    assert alone.returns() == after.returns(), "the prior acts as it does in the whole file"
    assert [e.seed for e in before.episodes] == [e.seed for e in after.episodes]
    assert {path.split("/")[0] for path in files_in(tmp_path)} == {"run", "half", "alone"}


@pytest.mark.slow
def test_an_interrupted_evaluation_leaves_nothing(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", "steps=1")
    final = tmp_path / "run" / "checkpoints" / "final.safetensors"
    arguments = (f"checkpoint={final}", "eval_episodes=1000", "num_workers=2", "device=cpu")
    process = subprocess.Popen(
        [sys.executable, ROOT / EVALUATE, *arguments],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        seen = ""
        while "evaluating: " not in seen:
            seen += process.stderr.read(1)
            assert process.poll() is None, seen
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to the workers too
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted" and "Traceback" not in errors, errors
    assert {path.split("/")[0] for path in files_in(tmp_path)} == {"run"}


@pytest.mark.slow
def test_evaluation_saves_a_video(tmp_path: Path) -> None:
    try:
        choose_backend()
    except RenderError as error:
        pytest.skip(f"no headless OpenGL here: {error}")
    tiny_run(tmp_path / "run", "steps=1")
    final = tmp_path / "run" / "checkpoints" / "final.safetensors"
    done = succeeded(
        EVALUATE, f"checkpoint={final}", f"tasks=[{TASKS[1]}]", "eval_episodes=1", "mpc=false", "save_video=true",
        "num_workers=0", "label=film", cwd=tmp_path,
    )  # fmt: skip
    assert files_in(tmp_path / "results" / "film") == [
        "episodes.csv", "evaluation.json", "videos/index.html", f"videos/{TASKS[1]}.mp4",
    ]  # fmt: skip
    assert "films: results/film/videos/index.html" in done
    assert f'src="{TASKS[1]}.mp4"' in (tmp_path / "results" / "film" / "videos" / "index.html").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_programs_keep_freed_memory() -> None:
    code = """
import resource, torch
from tdmpc2.allocation import keep_freed_memory
keep_freed_memory()
for turn in range(12):
    if turn == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000)  # 40 MB: beyond what malloc keeps by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    faults = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert faults.returncode == 0, faults.stderr
    # Ten times 9,766 pages otherwise. A machine short of memory takes some back between two turns.
    assert int(faults.stdout) < 60_000
