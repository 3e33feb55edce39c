"""The planner study shows what its folder holds, and refuses what it does not know."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from model_fixtures import ROOT

from tdmpc2.evaluation.results import EpisodeResult, EvaluationResult, Machine

TEACHER = ROOT / "checkpoints" / "quickstart_teacher.safetensors"


def study(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "planner_study.py"), str(TEACHER), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def write(folder: Path, name: str, returns: list[float]) -> None:
    episodes = tuple(EpisodeResult("cup-spin", number, 7 + number, value, 500) for number, value in enumerate(returns))
    EvaluationResult(
        label=name,
        task_set="quickstart",
        tasks=("cup-spin",),
        episodes=episodes,
        configuration={},
        machine=Machine("some processor", 4, "cpu"),
        wall_seconds=1.0,
        decisions=1000,
    ).save_json(folder / f"{name}.json")


def test_what_is_there_is_shown_beside_its_cost(tmp_path: Path) -> None:
    write(tmp_path, "default", [500.0, 600.0])
    write(tmp_path, "samples-64", [501.0, 602.0])
    write(tmp_path, "horizon-1", [100.0, 210.0])
    done = study("--out", tmp_path, "--show")
    assert done.returncode == 0, done.stderr
    rows = {cells[0]: cells for line in done.stdout.splitlines() if (cells := line.strip("| ").split("|"))}
    rows = {name.strip(): [cell.strip() for cell in cells] for name, cells in rows.items()}
    assert rows["default"][2:5] == ["1.00", "55.00", "-"]
    assert rows["samples-64"][4:6] == ["2", "+0.15"] and rows["samples-64"][-1] == "same"
    assert rows["horizon-1"][-1] == "different"
    assert all(float(rows[name][2]) > 0 for name in ("samples-64", "horizon-1"))


def test_an_unknown_configuration_is_refused(tmp_path: Path) -> None:
    done = study("--out", tmp_path, "--configurations", "horizon-9")
    assert done.returncode == 2 and done.stderr.startswith(
        "error: configuration horizon-9 is unknown; choose of default"
    )
