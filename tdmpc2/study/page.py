"""What a report of runs says: differences first, then the papers' tables and figures with our own beside them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tdmpc2.evaluation.results import EvaluationResult, finite_or_null
from tdmpc2.evaluation.scores import Interval
from tdmpc2.reporting.charts import Mark, Point, Value, interval_chart, line_chart
from tdmpc2.reporting.report import Report
from tdmpc2.study.arms import (
    BEST,
    CONTROL,
    D_COEFS,
    DISTILLED,
    LONG,
    NAMES,
    SCRATCH,
    TABLES,
    Row,
    StudyTable,
    scratch_of,
)
from tdmpc2.study.claims import CLAIMS, verdict
from tdmpc2.study.runs import Run, gather
from tdmpc2.study.statistics import ArmDifference, ArmScore, arm_difference, arm_score, detectable_difference

_WAYS = (("planned", True), ("prior alone", False))
_KINDS = ("planned, 95% interval", "prior alone")
_SCORE = ("95% interval", "with other tasks", "IQM", "seeds", "over")
_DIFFERENCE = ("points", "95% interval", "with other tasks", "seeds", "over")
_SEEDS, _FEWEST_FOR_POWER = 5, 3
"""Seeds of the design whose power is told, and of scratch that tell it."""
_SHARED = (SCRATCH, DISTILLED)
"""Arms of several tables, which alone do not make one."""
_MOST_LINES = 8
_LEARNING = (("normalised_score", "eval", "normalised score"), ("original_loss", "train", "the world model's own loss"))
"""Metrics of learning curves: evaluations while training where there are any, else the loss that all arms share."""


def write_report(folders: Iterable[Path], out: Path, frames: Mapping[str, str] | None = None) -> Path:
    """Gathers the runs below `folders` and writes report.md, report.html, report.json and charts into `out`.

    Args:
        frames: pictures of agents for the page, PNG in base64 by caption.

    Returns:
        The HTML page.

    Raises:
        UserError: when there are no runs, or a file cannot be written.
    """
    found = gather(folders)
    report = Report("TD-MPC-Opt: report of runs")
    figures: dict[str, Any] = {"groups": [], "notes": list(found.notes)}
    if found.notes:
        report.paragraph(
            f"Some of what lies in the folders is not in this report: {_counted(len(found.notes), 'note')} at the end."
        )
    for key, group in _groups(found.runs).items():
        study = Study(key, group)
        study.write_to(report)
        figures["groups"].append(study.figures())
    if frames:
        report.heading("The agents")
        report.paragraph("Still frames, in report.html alone.")
    for caption, picture in (frames or {}).items():
        report.picture(picture, caption)
    if found.notes:
        report.heading("Not in this report")
        report.points(found.notes)
    report.heading("What the intervals say")
    report.points(_FOOTER)
    report.write(out, finite_or_null(figures))
    return report.write_page(out)


_FOOTER = (
    "A score is the mean episode return over 10 (0 to 100), averaged over tasks. Intervals are 95%.",
    "Scores over several seeds (over: seeds by task): a stratified bootstrap, seeds resampled within each task, 10,000 "
    "draws. It says how the mean would move with other training seeds of the same tasks, nothing about other tasks. "
    "With two or three seeds it is too narrow.",
    "With other tasks: seeds and tasks resampled together (10,000 draws), for what would come out on other tasks of "
    "this kind. For a single arm it says mostly how much the tasks differ.",
    "Scores of one seed (over: episodes): a bootstrap over its evaluation episodes. It says nothing about other "
    "training seeds.",
    "Differences: arms of one seed share the order of data, the first weights and the evaluation episodes, and are "
    "subtracted before they are averaged; the interval is Student's t over the seeds, which is wide for few.",
    "Arms are compared only with arms of the same batch and updates.",
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
    """The runs of one task set at one scale, with the same other keys of a sweep (`variant`).

    Evaluations on other tasks than most, or with returns that are not finite, are left out of all figures; `notes`
    names them.
    """

    def __init__(self, key: tuple[str, str, str], runs: Sequence[Run]) -> None:
        self.task_set, self.scale, self.variant = key
        self.runs = runs
        self._arms: dict[str, dict[int, Run]] = defaultdict(dict)
        for run in runs:
            self._arms[run.arm][run.seed] = run
        self._slug = "-".join("".join(c if c.isalnum() else "-" for c in part) for part in key if part)
        counts = Counter(frozenset(run.tasks) for run in runs if run.tasks)
        self._usual = counts.most_common(1)[0][0] if counts else frozenset()
        self._scores: dict[tuple[str, bool, str], ArmScore | None] = {}

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """In the order of their evaluations."""
        return next((run.tasks for run in self.runs if frozenset(run.tasks) == self._usual), ())

    @cached_property
    def notes(self) -> list[str]:
        """What the reader has to know of single files."""
        notes = [note for run in self.runs for note in run.notes]
        for run in self.runs:
            for (what, planned), result in run.evaluations.items():
                if reason := self._unusable(result):
                    way = "planned" if planned else "prior alone"
                    notes.append(f"left out of the scores: {run.folder}, {what}, {way}: {reason}.")
        settings: dict[str, set[str]] = defaultdict(set)
        for run in self.runs:
            final = run.evaluations.get(("final", True))
            if final is not None and not self._unusable(final):
                settings["episodes"].add(f"{len(final.episodes) / len(final.tasks):g} a task")
                settings["mujoco"].add(str(final.versions.get("mujoco")))
                for name in ("planner", "greedy"):
                    settings[name].add(str(final.configuration.get(name)))
        for name, values in settings.items():
            if len(values) > 1:
                notes.append(f"evaluations here differ in {name}: {'; '.join(sorted(values))}.")
        return notes

    def _unusable(self, result: EvaluationResult) -> str:
        """Why an evaluation cannot stand beside the others; empty where it can."""
        if frozenset(result.tasks) != self._usual:
            return f"evaluated on other tasks ({', '.join(result.tasks)})"
        if not all(np.isfinite(episode.episode_return) for episode in result.episodes):
            return "not all of its returns are finite"
        return ""

    # -- figures -------------------------------------------------------------------------------------------------------

    def evaluations(self, arm: str, planned: bool, what: str = "final") -> dict[int, EvaluationResult]:
        """By seed, those that are there and can be used."""
        held = {seed: run.evaluations.get((what, planned)) for seed, run in self._arms.get(arm, {}).items()}
        return {seed: result for seed, result in held.items() if result is not None and not self._unusable(result)}

    def score(self, arm: str, planned: bool, what: str = "final") -> ArmScore | None:
        key = (arm, planned, what)
        if key not in self._scores:
            self._scores[key] = arm_score(self.evaluations(arm, planned, what))
        return self._scores[key]

    def difference(self, first: str, second: str, planned: bool, *, same_budget: bool = True) -> ArmDifference | None:
        """Second minus first; `same_budget`: on the seeds for which both had the same batch and updates."""
        a, b = self.evaluations(first, planned), self.evaluations(second, planned)
        same = [s for s in a.keys() & b.keys() if not same_budget or self._budget(first, s) == self._budget(second, s)]
        return arm_difference({s: a[s] for s in same}, {s: b[s] for s in same})

    def _budget(self, arm: str, seed: int) -> tuple[int, int]:
        run = self._arms[arm][seed]
        return run.steps, run.batch_size

    def scored(self) -> list[str]:
        """Arms with a final score, those of the tables first."""
        known = [arm for arm in NAMES if self.evaluations(arm, True)]
        return known + [arm for arm in self._arms if arm not in NAMES and self.evaluations(arm, True)]

    def bases(self, arm: str) -> list[str]:
        """Arms of the same batch and updates that an arm is compared with: the control, scratch, the papers' term."""
        scratch = scratch_of(arm)
        if scratch == SCRATCH:
            return [base for base in (CONTROL, SCRATCH, DISTILLED) if base != arm]
        return [] if scratch is None else [scratch]

    def size(self, scheme: str | None) -> int | None:
        """Bytes of the best run's file, as stored or by a scheme."""
        sizes = [run.bytes_of(scheme) for run in self._arms.get(BEST, {}).values()]
        return next((size for size in sizes if size is not None), None)

    def curve(self, arm: str, metric: str, category: Any) -> list[Point]:
        """A metric while training, mean over the seeds."""
        return _mean_series([run.series(metric, category) for run in self._arms[arm].values()])

    def figures(self) -> dict[str, Any]:
        """All of it as plain data."""
        arms = {}
        for arm, runs in self._arms.items():
            whats = sorted({what for run in runs.values() for what, _ in run.evaluations} - {"final"})
            curves = {metric: self.curve(arm, metric, category) for metric, category, _ in _LEARNING}
            arms[arm] = {
                **{way: _plain(self.score(arm, planned)) for way, planned in _WAYS},
                "runs": len(runs),
                "checkpoints": {
                    what: {way: _plain(self.score(arm, planned, what)) for way, planned in _WAYS} for what in whats
                },
                "learning": {metric: [[p.x, p.y] for p in points] for metric, points in curves.items() if points},
            }
        differences = {
            f"{arm} - {base}": {way: _plain(self.difference(base, arm, planned)) for way, planned in _WAYS}
            for arm in self.scored()
            for base in self.bases(arm)
        }
        claims = {}
        for claim in CLAIMS:
            found = {way: self.difference(claim.worse, claim.better, p, same_budget=False) for way, p in _WAYS}
            said = {way: {"difference": _plain(d), "verdict": verdict(d)} for way, d in found.items()}
            claims[claim.text] = {"better": claim.better, "worse": claim.worse, "published": claim.published, **said}
        schemes = {row.scheme for table in TABLES for row in table.rows if row.arm == BEST}
        return {
            "task_set": self.task_set,
            "scale": self.scale,
            "variant": self.variant,
            "tasks": list(self.tasks),
            "arms": arms,
            "differences": differences,
            "claims": claims,
            "bytes": {scheme or "float32": self.size(scheme) for scheme in sorted(schemes, key=str)},
            "runs": [_run_figures(run) for run in self.runs],
            "notes": self.notes,
        }

    # -- the page ------------------------------------------------------------------------------------------------------

    def write_to(self, report: Report) -> None:
        """Adds what these runs say."""
        where = f"scale {self.scale}" if self.scale else "runs without a scale"
        report.heading(", ".join(filter(None, (self.task_set, where, self.variant))))
        done = sum(("final", True) in run.evaluations for run in self.runs)
        tasks = ", ".join(self.tasks) or "none evaluated yet"
        report.paragraph(f"{done} of {len(self.runs)} runs here have ended with their evaluation. Tasks: {tasks}.")
        if self.scale in ("gpu", "cpu"):
            report.paragraph(
                "Rows have the papers' names. What stands for their teachers, updates and batches at this scale is in "
                f"config/scale/{self.scale}.yaml, and the updates and batch of each arm are at the end."
            )
        self._claims(report)
        held = [table for table in TABLES if any(row.arm in self._arms for row in table.rows)]
        shown = [table for table in held if any(row.arm in self._arms and row.arm not in _SHARED for row in table.rows)]
        shown = shown or held[:1]
        for table in shown:
            self._table(report, table)
        without = [table for table in held if table not in shown]
        if without:
            report.heading("Tables of which no row of their own is here", 3)
            report.code([self._command(table) for table in without])
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

    def _claims(self, report: Report) -> None:
        """The papers' claims and this project's questions, each judged by its difference."""
        report.heading("What the papers claim, and what these runs say", 3)
        seeds = 0
        for way, planned in _WAYS:
            rows = []
            for claim in CLAIMS:
                found = self.difference(claim.worse, claim.better, planned, same_budget=False)
                seeds = max(seeds, len(found.seeds) if found is not None else 0)
                published = "-" if claim.published is None or not planned else f"{claim.published:+.2f}"
                rows.append([claim.text, published, *_difference_cells(found), verdict(found)])
            report.table([way, "published", *_DIFFERENCE, "so it"], rows, "lrrrrlll")
        report.paragraph(
            'It "holds" where the whole interval over seeds is above 0, and is "the opposite" where it is below.'
        )
        if seeds == 1:
            report.paragraph(
                "One seed: these intervals are over its evaluation episodes and say nothing about other training seeds."
            )
        elif seeds in (2, 3):
            report.paragraph(
                f"{seeds} seeds are few: the intervals of differences are wide for it, those of single arms below are "
                "narrower than they should be."
            )
        self._power(report)

    def _power(self, report: Report) -> None:
        """What the design can find, told from the spread of scratch alone."""
        spreads, least, seeds = [], [], 0
        for way, planned in _WAYS:
            runs = self.evaluations(SCRATCH, planned)
            if len(runs) >= _FEWEST_FOR_POWER:
                seeds = len(runs)
                spread = float(np.std([result.score().value for result in runs.values()], ddof=1))
                spreads.append(f"{spread:.2f} points {way}")
                least.append(f"{detectable_difference(math.sqrt(2) * spread, _SEEDS):.1f} {way}")
        if spreads:
            report.paragraph(
                f"The power of the design, told from scratch alone: its standard deviation over {seeds} seeds is "
                f"{' and '.join(spreads)}. If another arm varies as much, {_SEEDS} seeds find a true difference of "
                f"{' and '.join(least)} in four of five studies, and smaller ones where a seed moves both arms alike."
            )

    def _command(self, table: StudyTable) -> str:
        scale = f" scale={self.scale}" if self.scale else ""
        return f"python tdmpc2/train.py -m experiment={table.experiment}{scale} seed=1,2,3"

    def _table(self, report: Report, table: StudyTable) -> None:
        report.heading(table.title, 3)
        published = any(row.published is not None for row in table.rows)
        schemes = any(row.scheme is not None for row in table.rows)
        for way, planned in _WAYS:
            # The prior of a quantised student is not among what a run ends with.
            shown = [row for row in table.rows if planned or row.scheme is None]
            headers = ["arm", *(["published"] if published and planned else [])]
            headers += ["published MiB", "MiB here"] if schemes and planned else []
            rows = []
            for row in shown:
                score = self.score(row.arm, planned, row.scheme or "final")
                cells = [row.text, *([_number(row.published)] if published and planned else [])]
                if schemes and planned:
                    cells += [_number(row.published_mib), _mib(self.size(row.scheme))]
                rows.append([*cells, *_score_cells(score), *_seeds_cells(score, self._arms.get(row.arm, {}))])
            report.table([*headers, way, *_SCORE], rows, "l" + "r" * (len(headers) + 3) + "ll")
        scores = {row: [self.score(row.arm, p, row.scheme or "final") for _, p in _WAYS] for row in table.rows}
        missing = any(planned is None for planned, _ in scores.values())
        marks = [Mark(row.text, (_value(a), _value(b)), row.published) for row, (a, b) in scores.items()]
        if schemes:
            report.paragraph(
                "The papers' sizes are KiB over 1,000, of files with target Q; here float32 is the run's checkpoint, "
                "with target Q, and the others are without it, as deployed."
            )
        if table.experiment and missing:
            report.paragraph("The missing rows, and only those, are run by")
            report.code([self._command(table)])
        name = f"{self._slug}-{table.name}"
        chart = interval_chart(marks, _KINDS, name, table.title, "normalised score, 0 to 100")
        report.chart(name, chart, table.title)

    def _differences(self, report: Report) -> None:
        for base, words in ((None, "scratch, at the same batch and updates"), (DISTILLED, "the papers' objective")):
            rows: dict[str, list[list[str]]] = {way: [] for way, _ in _WAYS}
            marks = []
            for arm in self.scored():
                against = scratch_of(arm) if base is None else base
                if against is None or against not in self.bases(arm):
                    continue
                found = [self.difference(against, arm, planned) for _, planned in _WAYS]
                if found[0] is None:
                    continue
                name = NAMES.get(arm, arm)
                for way, difference in zip(rows, found, strict=True):
                    rows[way].append([name, NAMES.get(against, against), *_difference_cells(difference)])
                marks.append(Mark(name, (_difference_value(found[0]), _difference_value(found[1]))))
            if not marks:
                continue
            title = f"Every arm minus {words}"
            report.heading(title, 3)
            for way, held in rows.items():
                report.table([f"arm, {way}", "minus", *_DIFFERENCE], held, "llrrrll")
            name = f"{self._slug}-differences" if base is None else f"{self._slug}-differences-{base}"
            name = "".join(c if c.isalnum() else "-" for c in name)
            axis = "points of normalised score, paired by seed"
            report.chart(name, interval_chart(marks, _KINDS, name, title, axis, zero=True), title)

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
        rows = []
        for arm in LONG:
            for way, planned in _WAYS:
                for step in self._saved(arm, planned):
                    score = self.score(arm, planned, f"step_{step:08d}")
                    if score is not None:
                        series.setdefault(f"{NAMES[arm]}, {way}", []).append(_point(step, score))
                        rows.append([NAMES[arm], way, f"{step:,}", *_score_cells(score), *_seeds_cells(score, {})])
        if series:
            self._lines(report, "steps", series, "Score against updates (figure 3)", "updates")
            report.table(["arm", "acting", "updates", "score", *_SCORE], rows, "llrrrrrll")

    def _saved(self, arm: str, planned: bool) -> list[int]:
        """Steps of the saved checkpoints that were evaluated."""
        runs = self._arms.get(arm, {}).values()
        names = {what for run in runs for what, way in run.evaluations if way is planned and what.startswith("step_")}
        return sorted(int(name.removeprefix("step_")) for name in names if name.removeprefix("step_").isdecimal())

    def _by_bytes(self, report: Report) -> None:
        table = next(table for table in TABLES if table.name == "table4")
        series: dict[str, list[Point]] = {}
        for row in table.rows:
            score, size = self.score(row.arm, True, row.scheme or "final"), self.size(row.scheme)
            if score is not None and size is not None:
                series[row.text] = [_point(size / 2**20, score)]
        if series:
            title = "Score against the size of the file, planned (table 4)"
            self._lines(report, "bytes", series, title, "MiB", lines=False, labelled=True)

    def _learning(self, report: Report) -> None:
        arms = self._foremost()
        for metric, category, ylabel in _LEARNING:
            series = {}
            for arm in arms:
                points = self.curve(arm, metric, category)
                if len(points) > 1:
                    series[NAMES.get(arm, arm)] = points
            if series:
                self._lines(report, "learning", series, "Learning curves, mean over seeds", "updates", ylabel=ylabel)
                if len(arms) < len(self.scored()):
                    report.paragraph(
                        f"{len(arms)} of {len(self.scored())} arms: scratch, the papers' objective, the control, and "
                        "those with the best planned scores. All are in report.json."
                    )
                return

    def _foremost(self) -> list[str]:
        """The arms of the first claims, then the best by planned score, as many as a chart can show."""
        scored = self.scored()
        first = [arm for arm in (SCRATCH, DISTILLED, CONTROL) if arm in scored]
        others = sorted((arm for arm in scored if arm not in first), key=lambda arm: -_mean(self.score(arm, True)))
        return (first + others)[:_MOST_LINES]

    def _by_task(self, report: Report) -> None:
        """Of the papers' arm and of the best other one of its budget, each minus scratch."""
        others = [arm for arm in self.scored() if scratch_of(arm) == SCRATCH and arm != DISTILLED]
        best = max(others, key=lambda arm: _mean(self.score(arm, True)), default=None)
        shown = []
        for what, arm in (("distilled", DISTILLED), ("best", best)):
            planned = None if arm is None else self.difference(SCRATCH, arm, True)
            if arm is not None and planned is not None:
                shown.append((what, arm, planned, self.difference(SCRATCH, arm, False)))
        if shown:
            report.heading("By task: the papers' objective and the best other arm of its budget, minus scratch", 3)
        for what, arm, planned, prior in shown:
            rows, marks = [], []
            for task, held in planned.tasks.items():
                other = None if prior is None else prior.tasks.get(task)
                cells = [cell for pair in (held, other) for cell in _pair_cells(pair)]
                rows.append([task, *cells])
                marks.append(Mark(task, tuple(None if p is None else Value(p[0], *_ends(p[1])) for p in (held, other))))
            name = f"{self._slug}-tasks-{what}"
            title = f"{NAMES.get(arm, arm)} minus scratch, by task"
            report.chart(name, interval_chart(marks, _KINDS, name, title, "points", zero=True), title)
            words = NAMES.get(arm, arm)
            headers = [words, "planned", "95% interval", "prior alone", "95% interval"]
            report.table(headers, rows)

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
        labelled: bool = False,
    ) -> None:
        report.heading(title, 3)
        name = f"{self._slug}-{what}"
        report.chart(name, line_chart(series, name, title, xlabel, ylabel, lines=lines, labelled=labelled), title)

    def _how(self, report: Report) -> None:
        report.heading("How it was run", 3)
        rows = []
        for arm, runs in self._arms.items():
            held = list(runs.values())
            rates = [run.updates_per_second for run in held if run.updates_per_second is not None]
            training = [run.training_minutes for run in held if run.training_minutes is not None]
            evaluating = [_evaluation_minutes(run) for run in held if run.evaluations]
            rows.append(
                [
                    arm,
                    _listed(sorted(runs)),
                    _all_of(f"{run.steps:,}" for run in held),
                    _all_of(str(run.batch_size) for run in held),
                    *(f"{median(values):.1f}" if values else "-" for values in (rates, training, evaluating)),
                    _all_of(start.commit for run in held for start in run.starts),
                ]
            )
        headers = ["arm", "seeds", "updates", "batch", "updates/s", "training, min", "evaluations, min"]
        report.table([*headers, "commit (+: changed)"], rows, "llrrrrrl")
        starts = [start for run in self.runs for start in run.starts]
        report.paragraph(
            "Medians over the seeds; training from the last start to the last update. Used, by number of starts:"
        )
        used = (("machine", "machine"), ("versions", "versions"))
        said = [
            f"{words}: {value} ({count})"
            for words, name in used
            for value, count in Counter(getattr(start, name) for start in starts).most_common()
        ]
        report.points(said or ["nothing is recorded: these runs have no run.json."])
        commands = sorted({start.command for start in starts if start.command})
        if commands:
            report.paragraph("Commands:")
            report.code(commands)
        unfinished = [str(run.folder) for run in self.runs if ("final", True) not in run.evaluations]
        if unfinished:
            report.paragraph("Without a final evaluation; the same command goes on with them:")
            report.points(unfinished)
        if self.notes:
            report.paragraph("Of single files:")
            report.points(self.notes)


# -- cells and marks --------------------------------------------------------------------------------------------------


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _span(interval: Interval | None, sign: str = "") -> str:
    return "-" if interval is None else f"{interval.low:{sign}.2f} to {interval.high:{sign}.2f}"


def _score_cells(score: ArmScore | None) -> list[str]:
    if score is None:
        return ["missing", "-", "-", "-"]
    return [_number(score.mean), _span(score.interval), _span(score.wider), _number(score.iqm)]


def _seeds_cells(score: ArmScore | None, runs: Mapping[int, Run]) -> list[str]:
    if score is None:
        return ["none" if not runs else f"{_listed(sorted(runs))} without a score", "-"]
    missing = sorted(runs.keys() - set(score.seeds))
    return [_listed(score.seeds) + (f" ({_listed(missing)} without a score)" if missing else ""), score.over]


def _difference_cells(difference: ArmDifference | None) -> list[str]:
    if difference is None:
        return ["missing", "-", "-", "-", "-"]
    spans = (_span(difference.interval, "+"), _span(difference.wider, "+"))
    return [f"{difference.mean:+.2f}", *spans, _listed(difference.seeds), difference.over]


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _all_of(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value)) or "-"


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def _value(score: ArmScore | None) -> Value | None:
    return None if score is None else Value(score.mean, *_ends(score.interval))


def _difference_value(difference: ArmDifference | None) -> Value | None:
    return None if difference is None else Value(difference.mean, *_ends(difference.interval))


def _pair_cells(pair: tuple[float, Interval | None] | None) -> list[str]:
    return ["missing", "-"] if pair is None else [f"{pair[0]:+.2f}", _span(pair[1], "+")]


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.2f}"


def _mean(score: ArmScore | None) -> float:
    return -np.inf if score is None else score.mean


def _point(x: float, score: ArmScore) -> Point:
    return Point(x, score.mean, *_ends(score.interval))


def _mean_series(series: Sequence[Sequence[tuple[int, float]]]) -> list[Point]:
    """Mean over runs at the steps that all of them have."""
    held = [dict(points) for points in series if points]
    if not held:
        return []
    steps = sorted(set(held[0]).intersection(*held[1:]))
    return [Point(step, float(np.mean([points[step] for points in held]))) for step in steps]


def _evaluation_minutes(run: Run) -> float:
    """Of all its evaluations; that of the last saved checkpoint is the final one's again."""
    last = f"step_{run.steps:08d}"
    return sum(result.wall_seconds for (what, _), result in run.evaluations.items() if what != last) / 60


def _run_figures(run: Run) -> dict[str, Any]:
    return {
        "folder": str(run.folder),
        "arm": run.arm,
        "seed": run.seed,
        "steps": run.steps,
        "batch_size": run.batch_size,
        "updates_per_second": run.updates_per_second,
        "training_minutes": run.training_minutes,
        "finished": ("final", True) in run.evaluations,
        "starts": [asdict(start) for start in run.starts],
    }


def _plain(figure: ArmScore | ArmDifference | None) -> dict[str, Any] | None:
    return None if figure is None else asdict(figure)
