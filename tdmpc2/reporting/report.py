"""Reports: Markdown with its pictures beside it, one HTML page that holds all of it, and JSON for programs."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        self._parts = [_Part(f"# {title}", f"<h1>{_escaped(title)}</h1>")]

    def heading(self, text: str, level: int = 2) -> None:
        """`level` 2 or 3, below the title."""
        self._parts.append(_Part(f"{'#' * level} {text}", f"<h{level}>{_escaped(text)}</h{level}>"))

    def paragraph(self, text: str) -> None:
        """Any Markdown that stands for itself: sentences, or a table that is made already. HTML shows it as text."""
        self._parts.append(_Part(text, f"<p>{_escaped(' '.join(text.split()))}</p>"))

    def points(self, texts: Sequence[str]) -> None:
        """A list."""
        items = "".join(f"<li>{_escaped(text)}</li>" for text in texts)
        self._parts.append(_Part("\n".join(f"- {text}" for text in texts), f"<ul>{items}</ul>"))

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """The first column holds names, the others figures."""
        head = "".join(f"<th>{_escaped(cell)}</th>" for cell in headers)
        body = "".join(f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in row)}</tr>" for row in rows)
        page = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        self._parts.append(_Part(format_table(headers, rows, style="markdown"), page))

    def chart(self, name: str, svg: str, title: str) -> None:
        """An SVG, inside the page and as `name`.svg beside the Markdown."""
        figure = f'<figure role="img" aria-label="{_escaped(title)}">{svg}</figure>'
        self._parts.append(_Part(f"![{title}]({name}.svg)", figure, (f"{name}.svg", svg)))

    def picture(self, data: str, title: str) -> None:
        """A PNG in base64, in the page alone."""
        image = f'<img src="data:image/png;base64,{_escaped(data)}" alt="{_escaped(title)}">'
        self._parts.append(_Part("", f"<figure>{image}<figcaption>{_escaped(title)}</figcaption></figure>"))

    def plot(self, name: str, title: str) -> None:
        """Shows the picture file `name` of the report's folder, in Markdown."""
        self._parts.append(_Part(f"![{title}]({name})", ""))

    def markdown(self) -> str:
        return "\n\n".join(part.markdown for part in self._parts if part.markdown) + "\n"

    def html(self) -> str:
        """The whole page: it refers to nothing outside itself."""
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


def _escaped(text: str) -> str:
    return html.escape(printable(text, 100_000))


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
th:first-child, td:first-child {{ text-align: left; white-space: normal; min-width: 7rem; }}
th {{ border-bottom: 2px solid #555; vertical-align: bottom; }}
figure {{ margin: 1rem 0; overflow-x: auto; }}
figure svg, figure img {{ max-width: 100%; height: auto; }}
figcaption {{ font-size: 0.85rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
