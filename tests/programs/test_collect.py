"""Collecting with a planner: its precision and ways of running are those of an evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from run_fixtures import TASKS, TINY_PLANNER, run_program, tiny_run

from tdmpc2.data.store import EpisodeStore

COLLECT = "scripts/collect.py"


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
