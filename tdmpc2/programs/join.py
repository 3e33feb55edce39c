"""Joins results files of one agent, each of other tasks or episodes, into one: for evaluations run in parts.

    python scripts/join.py results/a/evaluation.json results/b/evaluation.json --out results/all/evaluation.json

Exit status: 0 when joined, 2 for bad input.
"""

from __future__ import annotations

from pathlib import Path

from tdmpc2.errors import UserError
from tdmpc2.evaluation.results import joined, load_json, results_table
from tdmpc2.programs.arguments import ProgramParser


def main(arguments: list[str] | None = None) -> None:
    parser = ProgramParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="+", help="results files")
    parser.add_argument("--out", type=Path, required=True, help="results file to write; must not exist yet")
    parser.add_argument("--label", help="the joined evaluation's name; default: that of the folder it is written to")
    options = parser.parse_args(arguments)
    if options.out.exists():
        raise UserError(f"{options.out} exists; name another file with --out, or remove it.")
    result = joined([load_json(part) for part in options.parts], options.label or options.out.absolute().parent.name)
    result.save_json(options.out)
    print(results_table(result))
    print(f"joined into {options.out}")
