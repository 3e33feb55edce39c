"""Draws the returns of online runs by environment steps, beside published ones if they are given.

    python scripts/learning_curves.py logs/walker-walk/default/seed1 --published online_curves.json --out results/curves

It writes curves.csv (run, task, kind, updates, environment steps, return) and curves.svg, a chart for each task: every
training episode, and the evaluations. The published file is JSON, {"tasks": {TASK: {STEPS: [lowest, mean, highest]}}}.

Exit status: 0 when written, 2 for bad input.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmpc2.errors import UserError, printable
from tdmpc2.fileio import atomic_write_text
from tdmpc2.jsontext import parse_json
from tdmpc2.programs.arguments import ProgramParser
from tdmpc2.reporting.charts import LearningCurve, Point, learning_charts
from tdmpc2.reporting.sinks import JSONL_NAME, read_metrics


@dataclass(frozen=True)
class Return:
    """One row of the table; `kind` is evaluation, or who acted in a training episode."""

    run: str
    task: str
    kind: str
    updates: int
    environment_steps: int
    value: float


def returns_of(run_dir: Path) -> Iterator[Return]:
    """What an online run's log says of returns, in its order.

    Raises:
        UserError: for a folder without the log of an online run.
    """
    if not (run_dir / JSONL_NAME).is_file():
        raise UserError(f"{run_dir}: holds no {JSONL_NAME}; give the folder of a run (hydra.run.dir, or logs/…/seed1).")
    found = 0
    for row in read_metrics(run_dir):
        steps = row.get("environment_steps")
        if row["category"] not in ("eval", "episode") or steps is None:
            continue
        for name, value in row.items():
            kind, slash, task = name.partition("/")
            if slash and kind.endswith("return") and value is not None:
                found += 1
                said = "evaluation" if kind == "return" else kind.removesuffix("_return")
                yield Return(run_dir.name, task, said, int(row["step"]), int(steps), float(value))
    if not found:
        raise UserError(f"{run_dir}: its log has no episodes with environment steps; give a run of mode=online.")


def published_points(path: Path, task: str, until: float) -> list[Point]:
    """What the file says of a task, up to the first step at or beyond `until`."""
    try:
        content: Any = parse_json(path.read_bytes())
        steps = {int(k): v for k, v in content["tasks"].get(task, {}).items() if k.isdecimal()}
        points = [Point(x, float(mean), float(low), float(high)) for x, (low, mean, high) in sorted(steps.items())]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is no file of published curves ({printable(error)}); see --help.") from error
    last = next((point.x for point in points if point.x >= until), until)
    return [point for point in points if point.x <= last]


def table(rows: Sequence[Return]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "task", "kind", "updates", "environment_steps", "return"])
    for r in rows:
        writer.writerow([r.run, r.task, r.kind, r.updates, r.environment_steps, f"{r.value:.1f}"])
    return text.getvalue()


def main() -> None:
    parser = ProgramParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of online runs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--name", default="curves", help="of the two files (curves)")
    parser.add_argument("--title", default="Returns while learning", help="of the chart")
    parser.add_argument("--published", type=Path, help="JSON file of published curves")
    a = parser.parse_args()
    rows = [row for run in a.runs for row in returns_of(run)]
    by_task: dict[str, list[Return]] = defaultdict(list)
    for row in rows:
        by_task[row.task].append(row)
    curves = {}
    for task, held in by_task.items():
        until = max(row.environment_steps for row in held)
        training, evaluated = (
            [Point(row.environment_steps, row.value) for row in held if (row.kind == "evaluation") == is_evaluation]
            for is_evaluation in (False, True)
        )
        published = () if a.published is None else published_points(a.published, task, until)
        curves[task] = LearningCurve(training, evaluated, published)
    a.out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(a.out / f"{a.name}.csv", table(rows))
    atomic_write_text(a.out / f"{a.name}.svg", learning_charts(curves, a.name, a.title))
    print(f"{len(rows)} returns of {len(by_task)} tasks: {a.out / a.name}.csv, {a.out / a.name}.svg")
