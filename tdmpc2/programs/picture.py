"""Draws scores over the sizes of files, from results files and published figures, and prints them as a table.

    python scripts/picture.py docs/picture.json --out docs/score_by_size.svg [--markdown]

The JSON file holds `title` and `points`, each with `label`, `bytes` (of its file), and either `published` (a score) or
`results` (a results file, beside the JSON file); `side` says where its label stands, `source` where it is from. Points
of one label are one row of the table.

Exit status: 0 when drawn, 2 for bad input.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard, get_args

from tdmpc2.errors import UserError, printable, system_reason
from tdmpc2.evaluation.results import load_json
from tdmpc2.jsontext import parse_json, whole_number
from tdmpc2.programs.arguments import ProgramParser
from tdmpc2.reporting.plots import Side, SizedScore, score_by_size
from tdmpc2.reporting.tables import Style, format_table

_KEYS = {"label", "bytes", "published", "results", "side", "source"}
_MOST_BYTES = 1 << 50
_MOST_POINTS = 100
_LONGEST = 80
_LABEL = f"printable text of 1 to {_LONGEST} characters"


def read_points(path: Path) -> tuple[str, list[SizedScore]]:
    """The title and the points of a JSON file, scores of results files read from them.

    Raises a `UserError` naming the file and the first key that is not as it should be.
    """
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"no file {path}; check the path.") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {system_reason(error)}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {printable(error)}.") from None
    if not isinstance(content, dict) or not isinstance(content.get("points"), list) or not content["points"]:
        raise UserError(f"{path}: 'points' is missing or empty, expected a list of objects.")
    if len(content["points"]) > _MOST_POINTS:
        raise UserError(f"{path}: 'points' has {len(content['points'])} entries, expected at most {_MOST_POINTS}.")
    title = content.get("title")
    if not _is_label(title):
        raise UserError(f"{path}: 'title' is {reprlib.repr(title)}, expected {_LABEL}.")
    points = [_point(path, f"points[{index}]", given) for index, given in enumerate(content["points"])]
    return title, points


def _is_label(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable()


def _point(path: Path, where: str, given: Any) -> SizedScore:
    def wrong(key: str, expected: str) -> UserError:
        return UserError(f"{path}: '{where}.{key}' is {reprlib.repr(given.get(key))}, expected {expected}.")

    if not isinstance(given, dict):
        raise UserError(f"{path}: '{where}' is {reprlib.repr(given)}, expected an object.")
    if unknown := sorted(given.keys() - _KEYS):
        raise UserError(f"{path}: '{where}' has the unknown key '{printable(unknown[0])}'; known: {sorted(_KEYS)}.")
    label, size, side = given.get("label"), given.get("bytes", 0), given.get("side", "right")
    published, results = given.get("published"), given.get("results")
    if not _is_label(label):
        raise wrong("label", _LABEL)
    if not whole_number(size, 1, _MOST_BYTES):
        raise wrong("bytes", "a whole number of at least 1")
    if side not in get_args(Side):
        raise wrong("side", f"one of {', '.join(get_args(Side))}")
    if (published is None) == (results is None):
        raise UserError(f"{path}: '{where}' needs one of 'published' and 'results', and has both or none.")
    mib = float(size) / 2**20
    if results is None:
        if isinstance(published, bool) or not isinstance(published, int | float) or not 0 <= published <= 100:
            raise wrong("published", "a score from 0 to 100")
        return SizedScore(label, mib, float(published), side=side)
    if not isinstance(results, str):
        raise wrong("results", "the path of a results file")
    score = load_json(path.parent / results).score()
    if not math.isfinite(score.value):
        raise UserError(f"{path.parent / results}: its score is not finite; evaluate again.")
    interval = None if score.interval is None else (score.interval.low, score.interval.high)
    return SizedScore(label, mib, score.value, interval, measured=True, side=side)


def points_table(points: Sequence[SizedScore], style: Style = "plain") -> str:
    """A row for every label and size: the published score, and the measured one with its interval."""
    rows: dict[tuple[str, float], list[str]] = {}
    for point in points:
        row = rows.setdefault((point.label, point.mib), [point.label, f"{point.mib:.2f}", "-", "-"])
        row[3 if point.measured else 2] = f"{point.score:.2f}"
        if point.interval is not None:
            row[3] += " ({:.2f} to {:.2f})".format(*point.interval)
    headers = ["model", "file (MiB)", "published", "measured here (95% interval)"]
    return format_table(headers, list(rows.values()), style=style)


def main(arguments: list[str] | None = None) -> None:
    parser = ProgramParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("points", type=Path, help="JSON file of the points")
    parser.add_argument(
        "--out", type=Path, required=True, help="picture to write, or to draw anew (.svg, .png or .pdf)"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args(arguments)
    title, points = read_points(options.points)
    score_by_size(points, options.out, title)
    print(points_table(points, style="markdown" if options.markdown else "plain"))
