"""Exports an agent as ONNX files with a planner that needs neither torch nor this package (see docs/export.md).

python scripts/export.py checkpoints/quickstart_teacher.safetensors --out exported/quickstart
python scripts/export.py mt30_1M_steps_045dist_fp16.pt --task mt30 --out exported/mt30
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from tdmpc2.planner import PlannerSettings
from tdmpc2.programs.arguments import ProgramParser
from tdmpc2.reporting.tables import format_table


def main() -> None:
    parser = ProgramParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a released .pt file or a .safetensors of this project")
    parser.add_argument("--task", help="task set or task; needed for released files, which do not name theirs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or of an earlier export")
    for number in fields(PlannerSettings):
        name, default = f"--{number.name.replace('_', '-')}", number.default
        how: dict[str, Any] = {"type": type(default)}
        if isinstance(default, bool):
            how = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(name, **how, default=default, help=f"of the planner ({default})")
    a = parser.parse_args()

    from tdmpc2.export.files import export_agent  # after the arguments: it needs onnx, and says so where it is missing

    planner = PlannerSettings(**{number.name: getattr(a, number.name) for number in fields(PlannerSettings)})
    sizes = export_agent(a.checkpoint, a.out, a.task, planner)
    rows = [[name, f"{size:,}", f"{size / 2**20:.2f}"] for name, size in sizes.items()]
    print(format_table(["file", "bytes", "MiB"], rows, align="lrr"))
    print(f"exported to {a.out}/; it runs with: pip install numpy onnxruntime")
