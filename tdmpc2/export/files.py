"""A checkpoint turned into the folder of an exported agent."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tdmpc2
from tdmpc2.checkpointing import Checkpoint, checkpoint_task_set, package_versions, read_checkpoint
from tdmpc2.errors import UserError, printable, system_reason
from tdmpc2.export.graphs import GRAPHS, ExportModel, build_graph
from tdmpc2.fileio import atomic_write_bytes
from tdmpc2.model import ACTING_PARTS
from tdmpc2.planner import PlannerSettings
from tdmpc2.tasks import TaskSet

try:
    from tdmpc2.export.numpy_agent import CHECKSUM, FORMAT, FORMAT_VERSION, OnnxAgent, facts_checksum, read_facts
except ImportError as error:
    raise UserError("export needs the packages onnx and onnxruntime: pip install onnx onnxruntime") from error

PROGRAM = "numpy_agent.py"
FACTS = "agent.json"
FILES = (*(f"{name}.onnx" for name in GRAPHS), PROGRAM, FACTS)


def export_agent(
    checkpoint: str | Path,
    folder: str | Path,
    task: str | TaskSet | None = None,
    planner: PlannerSettings | None = None,
) -> dict[str, int]:
    """Writes the graphs, `agent.json` and the program that runs them; returns the bytes of each file.

    Quantised checkpoints are exported by the floats that they stand for, in float32. `agent.json` holds the
    checksums of the graphs and of itself, and is written last: the agent refuses the folder of an interrupted export.

    Args:
        checkpoint: a released `.pt` file or this project's `.safetensors`.
        folder: new, empty, or of an earlier export of the same weights, which is replaced.
        task: the task set or its name; needed for released files.
        planner: the planner's numbers; default the papers'.

    Raises:
        CheckpointError: for a damaged file, one without the parts that planning needs, or another task set.
        UserError: for a folder that holds other things or another agent, or a model too large for ONNX files.
    """
    folder, planner = Path(folder), planner or PlannerSettings()
    _require_free(folder)
    source = read_checkpoint(checkpoint, ACTING_PARTS)
    tasks = checkpoint_task_set(source, task)
    model = _export_model(source, tasks, planner.horizon)
    graphs = {f"{name}.onnx": build_graph(name, model) for name in GRAPHS}
    checksums = {name: zlib.crc32(data) for name, data in graphs.items()}
    _require_same_agent(folder, checksums)
    facts = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "task_set": tasks.name,
        "tasks": tasks.tasks,
        "obs_dims": tasks.obs_dims,
        "action_dims": tasks.action_dims,
        "action_masks": None if model.action_masks is None else model.action_masks.tolist(),
        "discounts": [round(float(gamma), 7) for gamma in model.discounts],
        "dims": asdict(source.dims),
        "planner": asdict(planner),
        "versions": package_versions(),
        "crc32": checksums,
    }
    program = Path(__file__).with_name(PROGRAM).read_bytes()
    content = {**graphs, PROGRAM: program}
    for name, data in content.items():
        atomic_write_bytes(folder / name, data)
    return {name: len(data) for name, data in content.items()} | {FACTS: _write_facts(folder, facts)}


def _export_model(source: Checkpoint, tasks: TaskSet, horizon: int) -> ExportModel:
    weights = {name: tensor.float().numpy() for name, tensor in source.float32_tensors().items()}
    masks = tasks.action_masks() if tasks.multitask else None
    return ExportModel(weights, source.dims, masks, tasks.discounts(), horizon, tasks.tasks, tdmpc2.__version__)


def restamp(folder: str | Path) -> list[str]:
    """Takes the graphs of an exported folder as they are now into the checksums of `agent.json`.

    For graphs that another program has changed: quantised to int8, simplified, optimised for a runtime.

    Returns:
        The names of the graphs that have changed.

    Raises:
        UserError: for a folder that holds no exported agent, or graphs that do not take and give what its own do.
    """
    folder = Path(folder)
    try:
        facts = read_facts(folder)
        OnnxAgent(folder, verify=False)
    except ValueError as error:
        raise UserError(str(error)) from error
    found = {}
    for name in facts["crc32"]:
        try:
            found[name] = zlib.crc32((folder / name).read_bytes())
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be read ({system_reason(error)}).") from error
    changed = [name for name, checksum in found.items() if facts["crc32"][name] != checksum]
    _write_facts(folder, {**facts, "crc32": found})
    return changed


def _write_facts(folder: Path, facts: dict[str, Any]) -> int:
    """Writes `agent.json` with a checksum of its own; returns its size in bytes."""
    facts = json.loads(json.dumps(facts, allow_nan=False))  # as it is read back: JSON knows no tuples
    facts[CHECKSUM] = facts_checksum(facts)
    text = json.dumps(facts, indent=1, allow_nan=False).encode()
    atomic_write_bytes(folder / FACTS, text)
    return len(text)


def _require_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder to export to.")
    # Python leaves its compiled files beside a program that was run.
    others = sorted(p.name for p in folder.glob("*") if p.name not in (*FILES, "__pycache__"))
    if others:
        raise UserError(
            f"{folder}: holds other things ({printable(', '.join(others[:3]))}); give a new or an empty folder."
        )


def _require_same_agent(folder: Path, checksums: Mapping[str, int]) -> None:
    """Refuses to replace another agent. Only the value graph depends on the planner; half an export may be replaced."""
    try:
        held = read_facts(folder)["crc32"]
    except ValueError:
        return
    if any(held[name] != checksum for name, checksum in checksums.items() if name != "value.onnx" and name in held):
        raise UserError(f"{folder}: holds another agent; give a new folder, or remove this one.")
