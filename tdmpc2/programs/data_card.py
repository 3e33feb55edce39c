"""Writes a page about an episode store: its tasks, their returns, and how it was made.

    python scripts/data_card.py data/mt30 [--out results/data_card/mt30]

It writes report.md, report.html (one page that needs nothing else), report.json and the charts, and reads the store's
header, tasks and returns alone.

Exit status: 0 when written, 2 for bad input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tdmpc2.data.facts import SourceFacts, StoreFacts, TaskFacts, store_facts
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import printable
from tdmpc2.fileio import human_bytes, safe_name
from tdmpc2.programs.arguments import ProgramParser
from tdmpc2.reporting.charts import Distribution, Point, curve_charts, distribution_chart
from tdmpc2.reporting.report import Report

_MOST_CHARTED = 60
"""Tasks that a chart can hold."""
_MOST_SOURCES = 40
"""That are described one by one."""


def write_card(store: EpisodeStore, out: Path) -> Path:
    """Writes the page and what belongs to it into the folder `out`; returns report.html.

    Raises:
        DataError: as `store_facts`.
        UserError: when a file cannot be written.
    """
    facts = store_facts(store)
    held = [task for task in facts.tasks if task.returns is not None]
    report = Report(f"Episodes in {_name(store)}")
    _add_overview(report, store, facts)
    report.heading("Tasks")
    _add_tasks(report, facts.tasks)
    report.heading("Returns")
    report.paragraph("The return of an episode is the sum of its rewards from step 1 on. Quartiles are interpolated.")
    _add_returns(report, held)
    if len(held) > _MOST_CHARTED:
        report.paragraph(f"The charts hold the first {_MOST_CHARTED} of {len(held)} tasks with episodes.")
    charted = held[:_MOST_CHARTED]
    rows = [_distribution(task) for task in charted]
    title = "Returns by task"
    report.paragraph(
        "Below, each task's histogram has its own height; the line under it goes from the least to the largest return, "
        "the bar from the lower to the upper quartile, and the dot is the median."
    )
    report.chart("returns", distribution_chart(rows, facts.edges, "returns", title, "return of an episode"), title)
    report.heading("Returns in the order in which the episodes were added")
    report.paragraph(
        "A replay's learning curve: the mean (line) and the least and largest return (band) of bins of equally many "
        "episodes of a task, 50 bins at most."
    )
    curves = {task.name: [_point(*vars(part).values()) for part in task.curve] for task in charted}
    title = "Returns by episode of each task"
    report.chart("order", curve_charts(curves, "order", title, "episode of the task", "return"), title)
    report.heading("How it was made")
    _add_sources(report, facts)
    figures = {"fingerprint": store.fingerprint, "dtype": store.header.dtype, "episodes": len(store), **asdict(facts)}
    report.write(out, figures)
    return report.write_page(out)


def _name(store: EpisodeStore) -> str:
    return store.path.absolute().name or str(store.path)


def _add_overview(report: Report, store: EpisodeStore, facts: StoreFacts) -> None:
    held = sum(task.episodes > 0 for task in facts.tasks)
    rows = [
        ["episodes", f"{len(store):,}"],
        ["transitions, step 0 of each episode included", f"{store.num_transitions:,}"],
        ["steps of an episode", f"{store.episode_steps:,}"],
        ["tasks", f"{len(store.tasks)}" if held == len(store.tasks) else f"{held} of {len(store.tasks)} with episodes"],
        ["widest observation and action", f"{store.obs_dim} and {store.action_dim}"],
        ["rows on disk", f"{human_bytes(store.num_bytes)} of {store.header.dtype}"],
        ["fingerprint", store.fingerprint],
        ["segments, sources", f"{len(store.segments):,}, {len(facts.sources):,}"],
    ]
    report.table(["the store", ""], rows, "ll")
    if store.notes:
        report.points([f"notes: {store.notes}"])


def _add_tasks(report: Report, tasks: Sequence[TaskFacts]) -> None:
    rows = [
        [
            task.name,
            *(f"{task.obs_dim}", f"{task.action_dim}", f"{task.episodes:,}", f"{task.transitions:,}"),
            human_bytes(task.bytes),
        ]
        for task in tasks
    ]
    report.table(["task", "observation", "action", "episodes", "transitions", "on disk"], rows)


def _add_returns(report: Report, tasks: Sequence[TaskFacts]) -> None:
    rows = []
    for task in tasks:
        assert task.returns is not None
        r = task.returns
        figures = (r.mean, r.least, r.lower, r.median, r.upper, r.most)
        rows.append([task.name, f"{task.episodes:,}", *(f"{figure:,.1f}" for figure in figures)])
    report.table(["task", "episodes", "mean", "min", "25%", "median", "75%", "max"], rows)


def _distribution(task: TaskFacts) -> Distribution:
    assert task.returns is not None
    r = task.returns
    return Distribution(task.name, task.histogram, (r.least, r.lower, r.median, r.upper, r.most))


def _point(first: int, last: int, mean: float, least: float, most: float) -> Point:
    return Point((first + last) / 2, mean, least, most)


def _add_sources(report: Report, facts: StoreFacts) -> None:
    rows = [
        [str(number), f"{source.episodes:,}", f"{source.segments:,}", _sets(source), source.source]
        for number, source in enumerate(facts.sources[:_MOST_SOURCES], 1)
    ]
    left = facts.sources[_MOST_SOURCES:]
    if left:
        episodes, segments = (sum(getattr(source, name) for source in left) for name in ("episodes", "segments"))
        rows.append(["…", f"{episodes:,}", f"{segments:,}", "", f"{len(left):,} more sources, listed in report.json"])
    report.table(["source", "episodes", "segments", "versions", "named"], rows, "lrrrl")
    report.heading("Details of the sources", 3)
    details = ["; ".join(f"{key} {value}" for key, value in source.details.items()) for source in facts.sources]
    report.points([f"source {n}: {said or 'no details'}" for n, said in enumerate(details[:_MOST_SOURCES], 1)])
    report.heading("Package versions", 3)
    names = list(dict.fromkeys(name for versions in facts.versions for name in versions))
    made = [[str(number), *(held.get(name, "-") for name in names)] for number, held in enumerate(facts.versions, 1)]
    report.table(["versions", *names], made)


def _sets(source: SourceFacts) -> str:
    return ", ".join(str(number + 1) for number in source.versions)


def main(arguments: list[str] | None = None) -> None:
    parser = ProgramParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="the store's folder, such as data/mt30")
    parser.add_argument("--out", type=Path, help="folder of the page (results/data_card/ and the store's name)")
    options = parser.parse_args(arguments)
    store = EpisodeStore.open(options.store)
    page = write_card(store, options.out or Path("results/data_card") / safe_name(_name(store)))
    print(f"{printable(page)}, with report.md, report.json and the charts beside it")
