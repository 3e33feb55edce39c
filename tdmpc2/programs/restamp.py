"""Takes the changed graphs of an exported agent as they are: after another program has quantised or simplified them.

    python scripts/restamp.py exported/mt30

Exit status: 0 when agent.json has the checksums of the graphs that are there, 2 for graphs that do not fit.
"""

from __future__ import annotations

from pathlib import Path

from tdmpc2.programs.arguments import ProgramParser


def main(arguments: list[str] | None = None) -> None:
    parser = ProgramParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="the exported folder")
    options = parser.parse_args(arguments)

    from tdmpc2.export.files import restamp  # after the arguments: it needs onnx, and says so where it is missing

    changed = restamp(options.folder)
    print(f"{options.folder}: {', '.join(changed) or 'nothing'} changed; agent.json has the checksums of all graphs")
