"""Compares two results files on the episodes both have: per task and overall, b minus a, with 95% intervals.

    python scripts/compare.py a.json b.json [--over episodes|tasks] [--json out.json] [--markdown]

Exit status: 0 when compared, 2 for bad input.
"""

from __future__ import annotations

import json
from pathlib import Path

from tdmpc2.errors import UserError
from tdmpc2.evaluation.comparison import compare, comparison_text
from tdmpc2.evaluation.results import load_json
from tdmpc2.fileio import atomic_write_text
from tdmpc2.programs.arguments import ProgramParser


def main(arguments: list[str] | None = None) -> None:
    parser = ProgramParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("a", help="results file of the first evaluation")
    parser.add_argument("b", help="results file of the second evaluation")
    parser.add_argument(
        "--over",
        choices=["episodes", "tasks"],
        help="what the overall interval resamples (default: episodes, or tasks where one has a single pair)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the comparison to this file")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args(arguments)
    if options.json and Path(options.json).exists():
        raise UserError(f"{options.json} exists; name another file with --json, or remove it.")
    comparison = compare(load_json(options.a), load_json(options.b), over=options.over)
    if options.json:
        atomic_write_text(options.json, json.dumps(comparison.to_json(), indent=1) + "\n")
    print(comparison_text(comparison, style="markdown" if options.markdown else "plain"))
