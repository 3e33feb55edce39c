"""Tables as aligned plain text or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tdmpc2.errors import printable

_LONGEST = 1000  # characters of a cell
Style = Literal["plain", "markdown"]


def format_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str] | None],
    align: str | None = None,
    style: Style = "plain",
) -> str:
    """The table as text without a final line end.

    `align` has one letter a column, `l` or `r`; by default the first column is `l` and the others `r`. A
    row that is None is a rule across the table (left out in Markdown, which has none). What cannot be
    printed, as a name from a file may hold, is written as an escape. Raises ValueError when a row or `align`
    does not have as many entries as there are headers.
    """
    columns = len(headers)
    align = align if align is not None else "l" + "r" * (columns - 1)
    if len(align) != columns or set(align) - {"l", "r"}:
        raise ValueError(f"align must be {columns} letters, each l or r; got {align!r}")
    for row in rows:
        if row is not None and len(row) != columns:
            raise ValueError(f"a row has {len(row)} cells, the table {columns} columns: {list(row)}")
    lines: list[Sequence[str] | None] = [
        None if line is None else [printable(cell, _LONGEST) for cell in line] for line in (headers, *rows)
    ]
    if style == "markdown":
        lines = [[cell.replace("|", r"\|") for cell in line] for line in lines if line is not None]
    widths = [max(len(line[i]) for line in lines if line is not None) for i in range(columns)]
    if style == "markdown":
        widths = [max(width, 3) for width in widths]

    def padded(line: Sequence[str]) -> list[str]:
        cells = zip(line, widths, align, strict=True)
        return [cell.ljust(width) if side == "l" else cell.rjust(width) for cell, width, side in cells]

    if style == "markdown":
        rule = ["-" * w if side == "l" else "-" * (w - 1) + ":" for w, side in zip(widths, align, strict=True)]
        body = [padded(line) for line in lines if line is not None]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in [body[0], rule, *body[1:]])
    bar = "-" * (sum(widths) + 2 * (columns - 1))
    texts = [bar if line is None else "  ".join(padded(line)).rstrip() for line in lines]
    return "\n".join([texts[0], bar, *texts[1:]])
