"""Collecting: an interruption keeps what has ended; a planner's ways of running are those of an evaluation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from run_fixtures import ROOT, TASKS, TINY_PLANNER, environment, run_program, tiny_run

from tdmpc2.data.store import EpisodeStore

COLLECT = "scripts/collect.py"


@pytest.mark.skipif(os.name != "posix", reason="interrupts by a signal")
def test_an_interrupted_collection_keeps_what_has_ended(tmp_path: Path) -> None:
    command = ("data_dir=mine", "task=pendulum-spin", "episodes=10_000", "num_envs=2", "num_workers=1", "device=cpu")
    process = subprocess.Popen(
        [sys.executable, ROOT / COLLECT, *command, "commit_freq=1"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a background job ignores
    )  # fmt: skip
    try:
        while not (tmp_path / "mine" / "tasks.bin").exists() or len(EpisodeStore.open(tmp_path / "mine")) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    store = EpisodeStore.open(tmp_path / "mine")
    assert process.returncode == 130 and store.verify()
    left = f"the same command with episodes={10_000 - len(store)} adds the rest."
    assert errors.splitlines()[-1] == f"interrupted: {len(store)} of 10,000 episodes are in mine; {left}"


def test_a_planner_collects_in_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    student = tiny_run(tmp_path / "run", "steps=1").checkpoint
    assert student is not None
    keys = (
        f"checkpoint={student}", "task=own", f"tasks=[{TASKS[1]}]", "behaviour=planner", "episodes=1", "greedy=true",
        "num_envs=1", "num_workers=0", "device=cpu", *TINY_PLANNER,
    )  # fmt: skip
    actions = {}
    for precision in ("float32", "bfloat16"):
        done = run_program(COLLECT, f"data_dir={precision}", f"precision={precision}", *keys, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        store = EpisodeStore.open(tmp_path / precision)
        assert len(store) == 1
        said = "planner, greedy" if precision == "float32" else "planner, greedy, bfloat16"
        assert f"1 episodes from {said}, noise 0.0, checkpoint {student}" in done.stdout
        details = store.segments[0].details
        assert (details["behaviour"], details["precision"]) == ("planner", precision)
        assert details["greedy"] is True and details["compile"] is False and details["planner"]["num_samples"] == 8
        actions[precision] = np.asarray(store.episode(0)["action"])
    difference = np.nanmax(np.abs(actions["float32"] - actions["bfloat16"]))
    assert difference > 0, "the products are rounded"

    for wrong, message in (
        ("cudagraphs=true", "cudagraphs=true needs a CUDA device"),
        ("precision=float16", "precision=float16 needs CUDA"),
        ("precision=int3", "precision=int3 is unknown; choose one of float32, float16, bfloat16."),
    ):
        done = run_program(COLLECT, "data_dir=none", wrong, *keys, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not (tmp_path / "none").exists()
