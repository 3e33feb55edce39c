"""docs/results.md, made from the results files of docs/evaluations and the figures of docs/study."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tdmpc2.errors import UserError, system_reason
from tdmpc2.evaluation.results import EvaluationResult, load_json
from tdmpc2.evaluation.scores import Interval, PairedDifference, paired_difference, verdict
from tdmpc2.jsontext import parse_json
from tdmpc2.reporting.tables import format_table
from tdmpc2.study.arms import CONTROL, DISTILLED, NAMES, TABLES, scratch_of

INDEX = "index.json"
"""Which results files there are, in which order, and which pairs to compare."""
ONE_EPISODE = "one-episode.csv"
_WIDTH = 98


def results_page(evaluations: Path, study: Path) -> str:
    """The page as text.

    Args:
        evaluations: folder of results files, `INDEX` and `ONE_EPISODE`.
        study: report.json of the embedded study; left out where it is not there.

    Raises:
        UserError: for a file that is missing or not as it should be.
    """
    index = _json(evaluations / INDEX)
    results = {name: load_json(evaluations / name) for name, _ in index["evaluations"]}
    parts = [
        "# Results",
        _filled(
            "Scores, published and measured here, each with its command. This page is made by `python "
            "scripts/document.py` from the results files in [evaluations/](evaluations) and the runs of the embedded "
            "study. The normalised score is the mean over tasks of the mean episode return over 10, so 0 to 100; "
            "intervals are 95% bootstraps over episodes, unless said otherwise."
        ),
        *_released(index, results),
        *_pairs(index, results),
        *_published(),
        *(_embedded(_json(study)) if study.is_file() else []),
        *_tasks(evaluations, results[index["evaluations"][0][0]]),
        "## What differs from the published programs",
        _filled(
            "See the table of deviations in "
            "[architecture](architecture.md#deviations-from-the-public-programs-and-why). Scores are compared at "
            "MuJoCo 3.17.0 and dm_control 1.0.50; the RK4 integrator of cartpole and acrobot changed in MuJoCo 3.3.6, "
            "so older scores of these tasks need not agree. README's picture and table come from `python "
            "scripts/picture.py docs/picture.json --out docs/score_by_size.svg --markdown`. What the "
            "quickstart gives is in [quickstart](quickstart.md)."
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _released(index: Mapping[str, Any], results: Mapping[str, EvaluationResult]) -> list[str]:
    rows = []
    for name, text in index["evaluations"]:
        result = results[name]
        score = result.score()
        rate = result.decisions / result.wall_seconds
        rows.append(
            [
                text,
                str(len(result.tasks)),
                str(len(result.episodes)),
                _scored(score.value, score.interval),
                f"{rate:.1f}",
                result.machine.cpu,
                f"[file](evaluations/{name})",
            ]
        )
    headers = ["what", "tasks", "episodes", "score", "decisions/s", "machine", "by episode"]
    return [
        "## The released students on MT30",
        _filled(
            "Planned with exploration noise on, but for planner=best; torch 2.13.0 (CPU), MuJoCo 3.17.0, dm_control "
            "1.0.50. Published for the FP16 student is 28.45 over ten episodes a task."
        ),
        format_table(headers, rows, align="lrrrrll", style="markdown"),
        "```bash\npython tdmpc2/evaluate.py checkpoint=mt30_1M_steps_045dist_fp16.pt task=mt30 eval_episodes=2 "
        "precision=bfloat16 compile=true\n```",
        _filled(
            "Whole runs were put together from parts by `scripts/join.py`. The ten tasks are the second of every three "
            "of MT30. Ten episodes a task of the papers' planner wait for a GPU. In float32 the FP16 student had 29.69 "
            "(26.76 to 32.64) over two episodes a task, on the starts of the first row; its episodes were not kept. "
            "One episode a task in float32 ([below](#task-by-task)) took 1 h 34 min, 2.7 decisions a second, on one "
            "thread of a 2-core Intel Xeon (AVX-512) beside other work. That was before the CPU speed-ups of SimNorm "
            "and Mish, with which a decision took 0.31 s of processor time and 0.35 s without (median of 7, batches of "
            "4 environments, one thread)."
        ),
    ]


def _pairs(index: Mapping[str, Any], results: Mapping[str, EvaluationResult]) -> list[str]:
    rows = []
    for name, first, second in index["pairs"]:
        a, b = (_both([results[file] for file in files]) for files in (first, second))
        paired = paired_difference(a, b)
        means = [sum(getattr(d, side) for d in paired.tasks.values()) / len(paired.tasks) / 10 for side in _SIDES]
        rows.append(
            [
                name,
                str(len(paired.tasks)),
                str(paired.pairs),
                *(f"{mean:.2f}" for mean in means),
                f"{paired.difference:+.2f}",
                _difference(paired),
                verdict(paired),
            ]
        )
    headers = ["difference", "tasks", "pairs", "first", "second", "points", "95% interval", "the same?"]
    return [
        "## Differences, episode by episode",
        _filled(
            "On the same starts. By the rule of this project two scores are the same where the interval, widened "
            "because a bootstrap over few episodes is narrow, lies within 3 points of 0; different where it does not "
            "hold 0; undecided else. `python scripts/compare.py A.json B.json` shows each by task."
        ),
        format_table(headers, rows, align="lrrrrrrl", style="markdown"),
    ]


_SIDES = ("mean_first", "mean_second")


def _both(results: list[EvaluationResult]) -> dict[tuple[str, int, int], float]:
    """Returns by (task, episode, seed) of one evaluation, or of several with other seeds."""
    return {key: value for result in results for key, value in result.returns_by_key().items()}


def _published() -> list[str]:
    rows = [
        [
            table.title.partition(":")[0],
            row.text,
            f"{row.published:.2f}",
            f"`experiment={table.experiment}/{row.name or row.arm}`",
            f"`{row.arm}`",
        ]
        for table in TABLES
        for row in table.rows
        if row.published is not None
    ]
    return [
        "## The published rows, and the command of each",
        _filled(
            "Every row runs by its table's name, all of a table's in one sweep, single ones as "
            "`experiment=table1/latent_pca`; each run ends with its evaluation, planned and by the prior alone, and a "
            "sweep with a report. `scale=full` needs the published data and teacher; `scale=cpu` makes its own."
        ),
        "```bash\n"
        "python tdmpc2/train.py -m experiment=table1 scale=full scale.large_checkpoint=mt30-317M.pt seed=1,2,3\n"
        "python tdmpc2/train.py -m experiment=table1 scale=cpu seed=1,2,3\n"
        "python scripts/report.py logs/quickstart/cpu\n```",
        format_table(["table", "row", "published", "by itself", "folder"], rows, align="llrll", style="markdown"),
        _filled(
            "Figure 3 is `experiment=figure3`; beside the papers stand `experiment=controls` and "
            "`experiment=objectives` ([distillation](distillation.md))."
        ),
    ]


def _embedded(figures: Mapping[str, Any]) -> list[str]:
    group = next((g for g in figures["groups"] if g["scale"] == "cpu" and not g["variant"]), None)
    if group is None:
        return []
    rows = []
    for arm, words in NAMES.items():
        held = group["arms"].get(arm)
        if held is None or held["planned"] is None:
            continue
        against = group["differences"].get(f"{arm} - {scratch_of(arm)}", {})
        cells = [words]
        for way in ("planned", "prior alone"):
            cells += [_scored_plain(held[way]), _difference_plain(against.get(way))]
        rows.append([*cells, ", ".join(map(str, held["planned"]["seeds"]))])
    headers = ["arm", "planned", "minus scratch", "prior alone", "minus scratch", "seeds"]
    control = group["differences"].get(f"{DISTILLED} - {CONTROL}", {})
    return [
        "## The embedded study",
        _filled(
            f"The arms at `scale=cpu`: three tasks, a bundled teacher, 1M students. Scores with 95% intervals over "
            f"seeds within tasks, differences from the arm of the same batch and updates paired by seed with Student's "
            f"t. The papers' reward distillation minus the "
            f"control with the dataset's own rewards: {_difference_plain(control.get('planned'))} planned, "
            f"{_difference_plain(control.get('prior alone'))} by the prior alone. [All of it](study/report.md), and as "
            f"[one page](study/report.html)."
        ),
        format_table(headers, rows, style="markdown"),
    ]


def _tasks(evaluations: Path, result: EvaluationResult) -> list[str]:
    try:
        with (evaluations / ONE_EPISODE).open(encoding="utf-8", newline="") as file:
            held = {row["task"]: row for row in csv.DictReader(file)}
    except OSError as error:
        raise UserError(f"cannot read {evaluations / ONE_EPISODE}: {system_reason(error)}.") from error
    columns = ["here, float32", "public program"]
    rows = [
        [task, *(held[task][column] for column in columns), f"{sum(values) / len(values):.1f}"]
        for task, values in result.returns().items()
    ]
    means = [sum(float(row[column]) for row in held.values()) / len(held) / 10 for column in columns]
    score = result.score().value
    return [
        "## Task by task",
        _filled(
            "Mean episode returns of the released FP16 student: one episode a task in float32 here and under the "
            "public TD-MPC2 program on the same simulator versions (other starts and noise), and two episodes in "
            "bfloat16. One episode a task leaves a standard error of about 3 points."
        ),
        format_table(
            ["task", "here, float32, 1", "public program, 1", "here, bfloat16, 2"],
            [*rows, ["**normalised score**", *(f"**{value:.2f}**" for value in (*means, score))]],
            style="markdown",
        ),
    ]


def _scored(value: float, interval: Interval | None) -> str:
    return f"{value:.2f}" if interval is None else f"{value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def _difference(paired: PairedDifference) -> str:
    return "-" if paired.interval is None else f"{paired.interval.low:+.2f} to {paired.interval.high:+.2f}"


def _scored_plain(held: Mapping[str, Any] | None) -> str:
    if held is None:
        return "-"
    return f"{held['mean']:.1f}" + (
        "" if held["interval"] is None else " ({low:.1f} to {high:.1f})".format(**held["interval"])
    )


def _difference_plain(held: Mapping[str, Any] | None) -> str:
    if held is None:
        return "-"
    span = "" if held["interval"] is None else " ({low:+.1f} to {high:+.1f})".format(**held["interval"])
    return f"{held['mean']:+.1f}{span}"


def _filled(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _json(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {system_reason(error)}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
