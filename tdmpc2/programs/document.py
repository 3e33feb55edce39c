"""Writes the pages of docs/ that are made from the code and from results: configuration.md and results.md.

    python scripts/document.py [--docs docs] [--check]

Exit status: 0 when written, or with --check when both are as they would be written; 1 when not; 2 for bad input.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from tdmpc2.errors import UserError
from tdmpc2.fileio import atomic_write_text
from tdmpc2.programs.arguments import ProgramParser
from tdmpc2.reporting.tables import format_table
from tdmpc2.settings.keys import KeyRow, key_rows
from tdmpc2.settings.schema import SCHEMAS
from tdmpc2.study.results_page import results_page

COMMANDS = {
    "train": "tdmpc2/train.py",
    "evaluate": "tdmpc2/evaluate.py",
    "quantize": "scripts/quantize.py",
    "collect": "scripts/collect.py",
    "label": "scripts/label.py",
    "play": "scripts/play.py",
}


def configuration_page() -> str:
    """Every key of every program, from the schemas."""
    rows = list(key_rows())
    parts = [
        "# Configuration",
        textwrap.fill(
            "Every key of the programs that take Hydra overrides, as `python tdmpc2/train.py KEY=VALUE …`. This page "
            "is made from the schemas by `python scripts/document.py`; `--help` of a program shows its keys with their "
            "present values. What may be swept, what names a run's folder and how paths are quoted is in "
            "[running](running.md).",
            98,
            break_long_words=False,
            break_on_hyphens=False,
        ),
    ]
    shown: set[tuple[str, ...]] = set()
    for program in SCHEMAS:
        own = [row for row in rows if row.program == program]
        new = [row for row in own if _said(row) not in shown]
        again = [f"`{row.name}`" for row in own if _said(row) in shown]
        shown |= {_said(row) for row in own}
        parts.append(f"## {COMMANDS[program]}")
        parts.append(format_table(_HEADERS, [_cells(row) for row in new], align="lllllll", style="markdown"))
        if again:
            listed = f"As above: {', '.join(again)}."
            parts.append(textwrap.fill(listed, 98, break_long_words=False, break_on_hyphens=False))
    return "\n\n".join(parts) + "\n"


_HEADERS = ["key", "meaning", "type", "unit", "default", "range", "source"]


def _said(row: KeyRow) -> tuple[str, ...]:
    return (row.name, *_cells(row))


def _cells(row: KeyRow) -> list[str]:
    return [f"`{row.name}`", row.text, row.type, row.unit, f"`{row.default}`", row.range or "-", row.source]


def pages(docs: Path) -> dict[Path, str]:
    """What each page is to hold.

    Raises:
        UserError: for a results file that cannot be read.
    """
    return {
        docs / "configuration.md": configuration_page(),
        docs / "results.md": results_page(docs / "evaluations", docs / "study" / "report.json"),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = ProgramParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="the folder of the pages (docs)")
    parser.add_argument("--check", action="store_true", help="write nothing, and tell which pages would change")
    options = parser.parse_args(arguments)
    if not options.docs.is_dir():
        raise UserError(f"{options.docs}: no such folder; run in the folder of the clone, or give --docs.")
    stale = []
    for path, text in pages(options.docs).items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(str(path))
        if not options.check:
            atomic_write_text(path, text)
    if options.check and stale:
        print(f"not as the code would write them: {', '.join(stale)}; run python scripts/document.py")
        raise SystemExit(1)
    print(f"{'would change' if options.check else 'written'}: {', '.join(stale) or 'nothing'}")
