"""What a report of runs says: differences first, then the papers' tables and figures with our own beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tdmpc2.evaluation.results import EvaluationResult, finite_or_null
from tdmpc2.evaluation.scores import Interval
from tdmpc2.reporting.charts import Mark, Point, interval_chart, line_chart
from tdmpc2.reporting.report import Report
from tdmpc2.study.arms import BEST, CONTROL, D_COEFS, DISTILLED, LONG, NAMES, SCRATCH, TABLES, Row, StudyTable
from tdmpc2.study.runs import Run, gather
from tdmpc2.study.statistics import ArmDifference, ArmScore, arm_difference, arm_score

_WAYS = (("planned", True), ("prior alone", False))
_MOST_LINES = 8


def write_report(folders: Iterable[Path], out: Path, frames: Mapping[str, str] | None = None) -> Path:
    """Gathers the runs below `folders` and writes report.md, report.html, report.json and charts into `out`.

    Args:
        frames: pictures of agents for the page, PNG in base64 by caption.

    Returns:
        The HTML page.

    Raises:
        UserError: when there are no runs, or a file cannot be written.
    """
    runs = gather(folders)
    report = Report("TD-MPC-Opt: report of runs")
    figures: dict[str, Any] = {"groups": []}
    for key, group in _groups(runs).items():
        study = Study(key, group)
        study.write_to(report)
        figures["groups"].append(study.figures())
    for caption, picture in (frames or {}).items():
        report.picture(picture, caption)
    report.heading("What the intervals say")
    report.points(_FOOTER)
    report.write(out, finite_or_null(figures))
    return report.write_page(out)


_FOOTER = (
    "A score is the mean episode return over 10 (0 to 100), averaged over tasks. Intervals are 95%.",
    "Scores of several seeds: a stratified bootstrap (seeds resampled within each task, 10,000 draws). It says how the "
    "mean would move with other training seeds of the same tasks, nothing about other tasks. With two or three seeds "
    "it is too narrow.",
    "Scores of one seed: a bootstrap over its evaluation episodes. It says nothing about other training seeds.",
    "Differences: arms of one seed share the order of data, the first weights and the evaluation episodes, and are "
    "subtracted before they are averaged; the interval is Student's t over the seeds, which is wide for few.",
    "IQM: the interquartile mean over all tasks and seeds. Published figures are single runs on MT30 at full scale; "
    "those of another scale can be compared in order alone.",
)


def _groups(runs: Sequence[Run]) -> dict[tuple[str, str, str], list[Run]]:
    """Runs that can be compared: of one task set and scale, with the same other keys of a sweep."""
    groups: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.task_set, run.scale, run.variant].append(run)
    return dict(groups)


class Study:
    """The runs of one task set at one scale, with the same other keys of a sweep (`variant`)."""

    def __init__(self, key: tuple[str, str, str], runs: Sequence[Run]) -> None:
        self.task_set, self.scale, self.variant = key
        self.runs = runs
        self._arms: dict[str, dict[int, Run]] = defaultdict(dict)
        for run in runs:
            self._arms[run.arm][run.seed] = run
        self._slug = "".join(c if c.isalnum() else "-" for c in "-".join(filter(None, key)))

    # -- figures -------------------------------------------------------------------------------------------------------

    def evaluations(self, arm: str, planned: bool, what: str = "final") -> dict[int, EvaluationResult]:
        """By seed, those that are there."""
        runs = self._arms.get(arm, {})
        return {s: run.evaluations[what, planned] for s, run in runs.items() if (what, planned) in run.evaluations}

    def score(self, arm: str, planned: bool, what: str = "final") -> ArmScore | None:
        return arm_score(self.evaluations(arm, planned, what))

    def difference(self, first: str, second: str, planned: bool) -> ArmDifference | None:
        """Second minus first."""
        return arm_difference(self.evaluations(first, planned), self.evaluations(second, planned))

    def scored(self) -> list[str]:
        """Arms with a final score, those of the tables first."""
        known = [arm for arm in NAMES if self.evaluations(arm, True)]
        return known + [arm for arm in self._arms if arm not in NAMES and self.evaluations(arm, True)]

    def figures(self) -> dict[str, Any]:
        """All of it as plain data."""
        arms = {
            arm: {way: _plain(self.score(arm, planned)) for way, planned in _WAYS} | {"runs": len(self._arms[arm])}
            for arm in self._arms
        }
        differences = {
            f"{arm} - {base}": {way: _plain(self.difference(base, arm, planned)) for way, planned in _WAYS}
            for base in (CONTROL, SCRATCH, DISTILLED)
            for arm in self.scored()
            if arm != base
        }
        where = {"task_set": self.task_set, "scale": self.scale, "variant": self.variant}
        return where | {"arms": arms, "differences": differences}

    # -- the page ------------------------------------------------------------------------------------------------------

    def write_to(self, report: Report) -> None:
        """Adds what these runs say."""
        where = f"scale {self.scale}" if self.scale else "runs without a scale"
        report.heading(", ".join(filter(None, (self.task_set, where, self.variant))))
        done = [run for run in self.runs if ("final", True) in run.evaluations]
        tasks = ", ".join(done[0].tasks) if done else "none evaluated yet"
        report.paragraph(f"{len(done)} of {len(self.runs)} runs here have ended with their evaluation. Tasks: {tasks}.")
        if self.scale in ("gpu", "cpu"):
            report.paragraph(
                "Rows have the papers' names. What stands for their teachers, updates and batches at this scale is in "
                f"config/scale/{self.scale}.yaml, and the updates and batch of each arm are at the end."
            )
        self._headline(report)
        for table in TABLES:
            if any(row.arm in self._arms for row in table.rows):
                self._table(report, table)
        others = [arm for arm in self._arms if arm not in NAMES]
        if others:
            rows = tuple(Row(arm, arm) for arm in others)
            self._table(report, StudyTable("others", "Other runs", "", rows))
        self._differences(report)
        self._by_d_coef(report)
        self._by_steps(report)
        self._by_bytes(report)
        self._learning(report)
        self._by_task(report)
        self._how(report)

    def _headline(self, report: Report) -> None:
        report.heading("Does the teacher's reward make a better student?", 3)
        rows = []
        for base, words in (
            (CONTROL, "distilled minus the dataset's own reward in its place"),
            (SCRATCH, "distilled minus scratch"),
        ):
            for way, planned in _WAYS:
                rows.append([f"{words}, {way}", *_difference_cells(self.difference(base, DISTILLED, planned))])
        report.table(["difference", "points", "95% interval", "seeds", "over"], rows)

    def _table(self, report: Report, table: StudyTable) -> None:
        report.heading(table.title, 3)
        published = any(row.published is not None for row in table.rows)
        headers = ["arm", *(["published"] if published else [])]
        headers += ["planned", "95% interval", "IQM", "prior alone", "95% interval", "IQM", "seeds", "over"]
        rows, marks = [], []
        for row in table.rows:
            what = row.scheme or "final"
            planned, prior = self.score(row.arm, True, what), self.score(row.arm, False, what)
            cells = [row.text, *([_number(row.published)] if published else [])]
            cells += [*_score_cells(planned), *_score_cells(prior), *_seeds_cells(planned, self._arms.get(row.arm, {}))]
            rows.append(cells)
            marks.append(_mark(row.text, planned, row.published))
        report.table(headers, rows)
        if table.experiment and any("missing" in row for row in rows):
            scale = f" scale={self.scale}" if self.scale else ""
            report.paragraph(f"Missing rows: python tdmpc2/train.py -m experiment={table.experiment}{scale} seed=1,2,3")
        name = f"{self._slug}-{table.name}"
        report.chart(
            name, interval_chart(marks, name, f"{table.title}, planned", "normalised score, 0 to 100"), table.title
        )

    def _differences(self, report: Report) -> None:
        arms = self.scored()
        if SCRATCH not in arms or len(arms) < 2:
            return
        report.heading("Every arm against scratch, and against the papers' objective", 3)
        headers = ["arm", "planned - scratch", "95% interval", "prior - scratch", "95% interval"]
        with_reward = DISTILLED in arms
        headers += ["planned - d_coef 0.4", "95% interval", "seeds"] if with_reward else ["seeds"]
        rows, marks = [], []
        for arm in arms:
            if arm == SCRATCH:
                continue
            planned, prior = self.difference(SCRATCH, arm, True), self.difference(SCRATCH, arm, False)
            cells = [NAMES.get(arm, arm), *_difference_cells(planned)[:2], *_difference_cells(prior)[:2]]
            if with_reward:
                own = arm == DISTILLED
                cells += ["-", "-"] if own else _difference_cells(self.difference(DISTILLED, arm, True))[:2]
            rows.append([*cells, "-" if planned is None else _listed(planned.seeds)])
            marks += [_difference_mark(f"{NAMES.get(arm, arm)}, planned", planned)]
            marks += [_difference_mark(f"{NAMES.get(arm, arm)}, prior", prior)]
        report.table(headers, rows)
        name = f"{self._slug}-differences"
        title = "Difference from scratch, paired by seed"
        report.chart(name, interval_chart(marks, name, title, "points of normalised score", zero=True), title)

    def _by_d_coef(self, report: Report) -> None:
        series = {}
        for way, planned in _WAYS:
            points = []
            for arm, coef in D_COEFS.items():
                score = self.score(arm, planned)
                if score is not None:
                    points.append(_point(coef, score))
            series[f"this project, {way}"] = points
        if max(map(len, series.values())) < 3:
            return
        rows = {row.arm: row.published for row in TABLES[0].rows}
        series["published, MT30"] = [Point(coef, rows[arm] or 0.0) for arm, coef in D_COEFS.items()]
        self._lines(report, "d-coef", series, "Score against d_coef (table 1)", "d_coef; 0: no teacher")

    def _by_steps(self, report: Report) -> None:
        series: dict[str, list[Point]] = {}
        for arm in LONG:
            for way, planned in _WAYS:
                scores = [(step, self.score(arm, planned, f"step_{step:08d}")) for step in self._saved(arm, planned)]
                points = [_point(step, score) for step, score in scores if score is not None]
                if points:
                    series[f"{NAMES[arm]}, {way}"] = points
        if series:
            self._lines(report, "steps", series, "Score against updates (figure 3)", "updates")

    def _saved(self, arm: str, planned: bool) -> list[int]:
        """Steps of the saved checkpoints that were evaluated."""
        runs = self._arms.get(arm, {}).values()
        names = {what for run in runs for what, way in run.evaluations if way is planned and what.startswith("step_")}
        return sorted(int(name.removeprefix("step_")) for name in names if name.removeprefix("step_").isdecimal())

    def _by_bytes(self, report: Report) -> None:
        table = next(table for table in TABLES if table.name == "table4")
        series: dict[str, list[Point]] = {}
        for row in table.rows:
            score = self.score(row.arm, True, row.scheme or "final")
            sizes = [run.bytes_of(row.scheme) for run in self._arms.get(BEST, {}).values()]
            known = [size for size in sizes if size is not None]
            if score is not None and known:
                series[row.text] = [_point(known[0] / 2**20, score)]
        if series:
            self._lines(report, "bytes", series, "Score against the size of the file (table 4)", "MiB", lines=False)

    def _learning(self, report: Report) -> None:
        """Evaluations while training where there are any, else the loss that all arms share."""
        for metric, category, ylabel in (
            ("normalised_score", "eval", "normalised score"),
            ("original_loss", "train", "the world model's own loss"),
        ):
            series = {}
            for arm in self.scored()[:_MOST_LINES]:
                points = _mean_series([run.series(metric, category) for run in self._arms[arm].values()])
                if len(points) > 1:
                    series[NAMES.get(arm, arm)] = points
            if series:
                self._lines(report, "learning", series, "Learning curves, mean over seeds", "updates", ylabel=ylabel)
                return

    def _by_task(self, report: Report) -> None:
        better = [arm for arm in self.scored() if arm not in (SCRATCH, DISTILLED)]
        best = max(better, key=lambda arm: getattr(self.score(arm, True), "mean", 0.0), default=None)
        for arm in (DISTILLED, best):
            difference = None if arm is None else self.difference(SCRATCH, arm, True)
            if arm is None or difference is None:
                continue
            marks = [Mark(task, mean, *_ends(span)) for task, (mean, span) in difference.tasks.items()]
            name = f"{self._slug}-tasks-{'distilled' if arm == DISTILLED else 'best'}"
            title = f"{NAMES.get(arm, arm)} minus scratch, planned, by task"
            report.chart(name, interval_chart(marks, name, title, "points", zero=True), title)

    def _lines(
        self,
        report: Report,
        what: str,
        series: Mapping[str, Sequence[Point]],
        title: str,
        xlabel: str,
        *,
        ylabel: str = "normalised score, 0 to 100",
        lines: bool = True,
    ) -> None:
        report.heading(title, 3)
        name = f"{self._slug}-{what}"
        report.chart(name, line_chart(series, name, title, xlabel, ylabel, lines=lines), title)

    def _how(self, report: Report) -> None:
        report.heading("How it was run", 3)
        rows = []
        for arm, runs in self._arms.items():
            starts = [start for run in runs.values() for start in run.starts]
            rates = [run.updates_per_second for run in runs.values() if run.updates_per_second is not None]
            first = next(iter(runs.values()))
            rows.append(
                [
                    arm,
                    _listed(sorted(runs)),
                    f"{first.steps:,}",
                    str(first.batch_size),
                    f"{np.median(rates):.1f}" if rates else "-",
                    _all_of(start.commit for start in starts),
                    _all_of(start.machine for start in starts),
                    _all_of(start.versions for start in starts),
                ]
            )
        headers = ["arm", "seeds", "updates", "batch", "updates/s", "commit (+: changed)", "machine", "versions"]
        report.table(headers, rows)
        commands = sorted({run.starts[-1].command for run in self.runs if run.starts})
        if commands:
            report.paragraph(f"Commands, the first of {len(commands)}: {commands[0]}")
        notes = [note for run in self.runs for note in run.notes]
        unfinished = [str(run.folder) for run in self.runs if ("final", True) not in run.evaluations]
        if unfinished:
            report.paragraph(
                f"Without a final evaluation: {', '.join(unfinished)}. The same command goes on with them."
            )
        if notes:
            report.points(notes)


# -- cells and marks --------------------------------------------------------------------------------------------------


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _span(interval: Interval | None, sign: str = "") -> str:
    return "-" if interval is None else f"{interval.low:{sign}.2f} to {interval.high:{sign}.2f}"


def _score_cells(score: ArmScore | None) -> list[str]:
    if score is None:
        return ["missing", "-", "-"]
    return [_number(score.mean), _span(score.interval), _number(score.iqm)]


def _seeds_cells(score: ArmScore | None, runs: Mapping[int, Run]) -> list[str]:
    if score is None:
        return ["none" if not runs else f"{_listed(sorted(runs))} unfinished", "-"]
    missing = sorted(runs.keys() - set(score.seeds))
    return [_listed(score.seeds) + (f" ({_listed(missing)} unfinished)" if missing else ""), score.over]


def _difference_cells(difference: ArmDifference | None) -> list[str]:
    if difference is None:
        return ["missing", "-", "-", "-"]
    return [f"{difference.mean:+.2f}", _span(difference.interval, "+"), _listed(difference.seeds), difference.over]


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _all_of(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value)) or "-"


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def _mark(label: str, score: ArmScore | None, published: float | None) -> Mark:
    if score is None:
        return Mark(label, None, published=published)
    return Mark(label, score.mean, *_ends(score.interval), published)


def _difference_mark(label: str, difference: ArmDifference | None) -> Mark:
    return Mark(label, None) if difference is None else Mark(label, difference.mean, *_ends(difference.interval))


def _point(x: float, score: ArmScore) -> Point:
    return Point(x, score.mean, *_ends(score.interval))


def _mean_series(series: Sequence[Sequence[tuple[int, float]]]) -> list[Point]:
    """Mean over runs at the steps that all of them have."""
    held = [dict(points) for points in series if points]
    if not held:
        return []
    steps = sorted(set(held[0]).intersection(*held[1:]))
    return [Point(step, float(np.mean([points[step] for points in held]))) for step in steps]


def _plain(figure: ArmScore | ArmDifference | None) -> dict[str, Any] | None:
    return None if figure is None else asdict(figure)
