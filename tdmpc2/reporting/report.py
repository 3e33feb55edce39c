"""Reports: Markdown with its pictures beside it, one HTML page that holds all of it, and JSON for programs."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tdmpc2.errors import printable
from tdmpc2.fileio import atomic_write_text
from tdmpc2.reporting.tables import format_table

MARKDOWN_NAME = "report.md"
HTML_NAME = "report.html"
JSON_NAME = "report.json"


@dataclass(frozen=True)
class _Part:
    """One part in both forms, and the picture that belongs to it, as (name of its file, SVG)."""

    markdown: str
    html: str
    picture: tuple[str, str] | None = None


class Report:
    """The parts of a report in their order. `write` makes files of them; until then nothing is on the disk."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts = [_Part(f"# {_literal(title)}", f"<h1>{_escaped(title)}</h1>")]

    def heading(self, text: str, level: int = 2) -> None:
        """`level` 2 or 3, below the title."""
        self._parts.append(_Part(f"{'#' * level} {_literal(text)}", f"<h{level}>{_escaped(text)}</h{level}>"))

    def paragraph(self, text: str) -> None:
        """Any Markdown that stands for itself: sentences, or a table that is made already. HTML shows it as text."""
        self._parts.append(_Part(text, f"<p>{_escaped(' '.join(text.split()))}</p>"))

    def points(self, texts: Sequence[str]) -> None:
        """A list of plain texts."""
        items = "".join(f"<li>{_escaped(text)}</li>" for text in texts)
        self._parts.append(_Part("\n".join(f"- {_literal(text)}" for text in texts), f"<ul>{items}</ul>"))

    def code(self, lines: Sequence[str]) -> None:
        """Lines as they are typed."""
        shown = [printable(line, _LONGEST) for line in lines]
        page = f'<pre class="wide">{_escaped_lines(shown)}</pre>'
        self._parts.append(_Part("\n".join(f"    {line}" for line in shown), page))

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], align: str | None = None) -> None:
        """A table of plain texts; `align` has a letter a column, `l` or `r`, by default `l` for the first alone."""
        sides = align or "l" + "r" * (len(headers) - 1)
        head = _cells("th", headers, sides)
        body = "".join(f"<tr>{_cells('td', row, sides)}</tr>" for row in rows)
        page = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        plain = format_table([*map(_literal, headers)], [[*map(_literal, row)] for row in rows], sides, "markdown")
        self._parts.append(_Part(plain, page))

    def chart(self, name: str, svg: str, title: str) -> None:
        """An SVG, inside the page and as `name`.svg beside the Markdown."""
        figure = f'<figure role="img" aria-label="{_escaped(title)}">{svg}</figure>'
        self._parts.append(_Part(f"![{_literal(title)}]({name}.svg)", figure, (f"{name}.svg", svg)))

    def picture(self, data: str, title: str) -> None:
        """A PNG in base64, in the page alone."""
        image = f'<img src="data:image/png;base64,{_escaped(data)}" alt="{_escaped(title)}">'
        self._parts.append(_Part("", f"<figure>{image}<figcaption>{_escaped(title)}</figcaption></figure>"))

    def films(self, films: Sequence[tuple[str, str]]) -> None:
        """(file beside the page, caption) of each film: players side by side in the page, links in Markdown."""
        figures = "".join(
            f'<figure><video src="{quote(file)}" controls autoplay loop muted playsinline></video>'
            f"<figcaption>{_escaped(caption)}</figcaption></figure>"
            for file, caption in films
        )
        links = "\n".join(f"- [{_literal(caption)}]({quote(file)})" for file, caption in films)
        self._parts.append(_Part(links, f'<div class="films">{figures}</div>'))

    def markdown(self) -> str:
        return "\n\n".join(part.markdown for part in self._parts if part.markdown) + "\n"

    def html(self) -> str:
        """The whole page: it refers to nothing outside itself, but for films."""
        body = "\n".join(part.html for part in self._parts if part.html)
        return _PAGE.format(title=_escaped(self._title), body=body)

    def write(self, folder: str | os.PathLike[str], figures: Mapping[str, Any]) -> None:
        """Writes `report.md` with its charts, and `report.json` with all `figures`, each whole or not at all.

        Raises:
            ValueError: for a figure that is not finite, which JSON has no word for; write None.
            UserError: when a file cannot be written.
        """
        content = json.dumps(figures, indent=1, allow_nan=False) + "\n"
        for part in self._parts:
            if part.picture is not None:
                atomic_write_text(Path(folder) / part.picture[0], part.picture[1])
        atomic_write_text(Path(folder) / MARKDOWN_NAME, self.markdown())
        atomic_write_text(Path(folder) / JSON_NAME, content)

    def write_page(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `report.html`, whole or not at all, and returns its path."""
        path = Path(folder) / HTML_NAME
        atomic_write_text(path, self.html())
        return path


_LONGEST = 100_000


def _escaped(text: str) -> str:
    return html.escape(printable(text, _LONGEST))


def _escaped_lines(lines: Sequence[str]) -> str:
    return "\n".join(map(html.escape, lines))


def _cells(tag: str, cells: Sequence[str], sides: str) -> str:
    classes = {"l": ' class="left"', "r": ""}
    return "".join(f"<{tag}{classes[side]}>{_escaped(cell)}</{tag}>" for cell, side in zip(cells, sides, strict=True))


def _literal(text: str) -> str:
    """A plain text as Markdown, which shows it as it is; tables escape the bars between cells themselves."""
    return re.sub(r"[\\`*<\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", printable(text, _LONGEST))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 76rem; margin: 0 auto; padding: 1rem; background: #fff; color: #111;
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; }}
h2 {{ font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #bbb; }}
h3 {{ font-size: 1.05rem; margin-top: 1.6rem; }}
.wide {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-size: 0.84rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }}
th, td {{ padding: 0.25rem 0.5rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }}
.left {{ text-align: left; }}
th:first-child, td:first-child {{ white-space: normal; min-width: 7rem; }}
th {{ border-bottom: 2px solid #555; vertical-align: bottom; }}
figure {{ margin: 1rem 0; overflow-x: auto; }}
figure svg {{ width: 40rem; max-width: 100%; min-width: 30rem; height: auto; }}
figure img {{ max-width: 100%; height: auto; }}
pre {{ font-size: 0.84rem; padding: 0.5rem; background: #f4f4f4; white-space: pre; overflow-wrap: normal; }}
figcaption {{ font-size: 0.85rem; }}
.films {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }}
.films figure {{ margin: 0; }}
video {{ display: block; width: 100%; background: #eee; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
