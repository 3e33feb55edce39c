"""What a run was started by: command, commit, versions, machine; kept in its folder, one entry for each start."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tdmpc2.evaluation.results import this_machine
from tdmpc2.evaluation.runner import device_name
from tdmpc2.fileio import atomic_write_text
from tdmpc2.jsontext import parse_json
from tdmpc2.versions import package_versions

RUN_NAME = "run.json"
FORMAT, SCHEMA = "tdmpc2-run", 1
_ROOT = Path(__file__).resolve().parents[2]


def record_start(run_dir: Path, device: torch.device, step: int) -> None:
    """Adds this start, from `step` updates on, to the run's record; a damaged record begins anew."""
    record = _record(run_dir)
    record["starts"].append(
        {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            **commit(),
            "versions": package_versions(),
            "machine": asdict(this_machine(device_name(device))),
            "threads": torch.get_num_threads(),
            "from_step": step,
            "began": _now(),
        }
    )
    record["ended"] = None
    _write(run_dir, record)


def record_end(run_dir: Path, updates: int, updates_per_second: float) -> None:
    """Notes that the run has done all its updates."""
    record = _record(run_dir)
    record["ended"] = {"updates": updates, "updates_per_second": updates_per_second, "at": _now()}
    _write(run_dir, record)


def commit() -> dict[str, Any]:
    """The commit of the clone that this package runs from, and whether tracked files differ from it; None outside."""
    said = _git("rev-parse", "HEAD") if (_ROOT / ".git").exists() else None
    changed = _git("status", "--porcelain", "--untracked-files=no") if said else None
    return {"commit": said, "dirty": None if changed is None else bool(changed)}


def _git(*arguments: str) -> str | None:
    try:
        ended = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.strip()


def _record(run_dir: Path) -> dict[str, Any]:
    try:
        found = parse_json((run_dir / RUN_NAME).read_bytes())
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict) and found.get("format") == FORMAT and isinstance(found.get("starts"), list):
        return found
    return {"format": FORMAT, "schema": SCHEMA, "starts": [], "ended": None}


def _write(run_dir: Path, record: dict[str, Any]) -> None:
    atomic_write_text(run_dir / RUN_NAME, json.dumps(record, indent=1) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
