"""Metric logs, progress, tables, plots and atomic files, on real files."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tdmpc2.console import coloured
from tdmpc2.errors import UserError
from tdmpc2.fileio import atomic_file, atomic_write_bytes, atomic_write_text, write_error
from tdmpc2.reporting.charts import (
    Distribution,
    Mark,
    Point,
    Value,
    curve_charts,
    distribution_chart,
    interval_chart,
    line_chart,
)
from tdmpc2.reporting.metrics import LoggingSettings, MetricLogger
from tdmpc2.reporting.plots import SizedScore, score_by_size
from tdmpc2.reporting.progress import Progress, duration
from tdmpc2.reporting.report import Report
from tdmpc2.reporting.sinks import ConsoleSink, TensorBoardSink, WandbSink, metric_series, read_metrics
from tdmpc2.reporting.tables import format_table

QUIET = LoggingSettings(console=False)
ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# Files written whole or not at all


@contextlib.contextmanager
def small_files_only() -> Iterator[None]:
    """No file of this process may grow beyond 4 KB: a real failed write, as on a full disk.

    Not a fixture, which would still hold when pytest reports the test, perhaps into a longer file.
    """
    resource = pytest.importorskip("resource", reason="file size limits need a POSIX system")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_atomic_write_replaces_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    atomic_write_text(path, "höher\r\n")
    assert path.read_bytes() == "höher\r\n".encode()
    atomic_write_bytes(str(path), b"second")
    assert path.read_bytes() == b"second" and names(path.parent) == ["file.txt"]


def test_atomic_write_keeps_permissions_and_links(tmp_path: Path) -> None:
    path = tmp_path / "file"
    plain = tmp_path / "plain"
    plain.write_text("")
    atomic_write_text(path, "1")
    assert path.stat().st_mode == plain.stat().st_mode  # as `open` would make it
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to("file")
    atomic_write_text(link, "2")
    assert link.is_symlink() and path.read_text() == "2" and path.stat().st_mode & 0o777 == 0o640


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError, match="other"), atomic_file(path):
        (tmp_path / "other").read_bytes()
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with small_files_only(), pytest.raises(UserError, match=r"cannot write .*file: .* choose another folder"):
        atomic_write_bytes(path, b"x" * 10_000)
    assert path.read_text() == "old" and names(tmp_path) == ["file"]
    assert "disk is full" in str(write_error(path, OSError(errno.ENOSPC, "No space left on device")))


def test_a_full_disk_hidden_by_torch_is_found(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(100_000)
    with (
        small_files_only(),
        pytest.raises(UserError, match="cannot write"),
        atomic_file(tmp_path / "m.pt") as file,
    ):
        torch.save(tensor, file)  # torch reports it as a RuntimeError of its own
    assert names(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for place in ("file/below", "folder", "x" * 300):
        with pytest.raises(UserError, match="cannot write"):
            atomic_write_text(tmp_path / place, "")
    with pytest.raises(ValueError, match="mode"), atomic_file(tmp_path / "a", "a"):
        pass
    assert names(tmp_path) == ["file", "folder"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    code = (
        "import os, signal, sys\nfrom tdmpc2.fileio import atomic_file\n"
        "with atomic_file(sys.argv[1]) as file:\n"
        "    file.write(b'new'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL and path.read_text() == "old"


# Metric logs


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_both_files_hold_every_row(tmp_path: Path) -> None:
    with MetricLogger(tmp_path / "run", QUIET, 100) as logger:
        logger.log(10, {"loss": 0.5})
        logger.log(20, {"loss": 0.25, 'odd, "name"': 3})
        logger.log(20, {"score": 28.5}, "eval")
        on_disk = read_metrics(tmp_path / "run")  # before closing: a crash loses nothing
    rows = read_metrics(tmp_path / "run")
    assert rows == on_disk and [row["step"] for row in rows] == [10, 20, 20]
    assert rows[0].keys() == {"step", "category", "time", "loss"} and rows[2]["category"] == "eval"
    cells = table(tmp_path / "run")
    assert list(cells[0]) == ["step", "category", "time", "loss", 'odd, "name"', "score"]
    assert [row["loss"] for row in cells] == ["0.5", "0.25", ""]
    assert [row['odd, "name"'] for row in cells] == ["", "3.0", ""]
    assert metric_series(rows, "loss") == [(10, 0.5), (20, 0.25)]
    assert metric_series(rows, "score", "eval") == [(20, 28.5)]
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        read_metrics(tmp_path)


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    with MetricLogger(tmp_path, QUIET, 100) as logger:
        logger.log(1, {"loss": math.nan, "norm": math.inf, "fine": 1})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda word: pytest.fail(word))["norm"] is None
    assert table(tmp_path)[0]["loss"] == "nan"
    assert math.isnan(metric_series(read_metrics(tmp_path), "loss")[0][1])


def test_resume_drops_later_rows_and_a_torn_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricLogger(tmp_path, QUIET, 100) as logger:
        for step in (10, 20, 30, 40):
            logger.log(step, {"loss": step / 10, **({"late": 1.0} if step > 20 else {})})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "category": "tr')
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("50,tra")
    with MetricLogger(tmp_path, QUIET, 100, resume_step=20) as logger:
        assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20]
        logger.log(30, {"loss": 7})
    assert "1 unreadable line" in capsys.readouterr().err
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(10, 1.0), (20, 2.0), (30, 7.0)]
    cells = table(tmp_path)
    assert [row["step"] for row in cells] == ["10", "20", "30"] and "late" not in cells[0]


def test_interrupted_and_resumed_equals_never_interrupted(tmp_path: Path) -> None:
    def steps(folder: Path, first: int, last: int, resume: int | None) -> None:
        with MetricLogger(folder, QUIET, 100, resume_step=resume) as logger:
            for step in range(first, last, 10):
                logger.log(step, {"loss": 1 / step, **({"rare": 2.0} if step % 20 == 0 else {})})

    steps(tmp_path / "whole", 10, 80, None)
    steps(tmp_path / "parts", 10, 60, None)
    steps(tmp_path / "parts", 40, 80, 30)
    contents = []
    for folder in ("whole", "parts"):
        rows = [{**row, "time": 0} for row in read_metrics(tmp_path / folder)]
        contents.append((rows, [{**row, "time": "0"} for row in table(tmp_path / folder)]))
    assert contents[0] == contents[1]


def test_a_new_run_keeps_an_old_log_aside(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with MetricLogger(tmp_path, QUIET, 100) as logger:
            logger.log(1, {"loss": value})
    assert [row["loss"] for row in read_metrics(tmp_path)] == [2.0]
    assert names(tmp_path) == ["metrics.csv", "metrics.csv.old", "metrics.jsonl", "metrics.jsonl.old"]
    assert '"loss": 1.0' in (tmp_path / "metrics.jsonl.old").read_text()


def test_reserved_names_are_refused(tmp_path: Path) -> None:
    with MetricLogger(tmp_path, QUIET, 100) as logger, pytest.raises(ValueError, match="'step'"):
        logger.log(1, {"step": 1.0})


def test_a_full_disk_while_logging(tmp_path: Path) -> None:
    with (
        small_files_only(),
        MetricLogger(tmp_path, QUIET, 100) as logger,
        pytest.raises(UserError, match=r"metrics\.(jsonl|csv)"),
    ):
        for step in range(200):
            logger.log(step, {"loss": 1.0})


def test_console_line() -> None:
    stream = io.StringIO()
    sink = ConsoleSink(200_000, start_step=1000, chosen=("total_loss", "absent"), stream=stream)
    sink.log(2000, {"other": 1.0, "total_loss": 1.23456}, "train")
    sink.log(2000, {"score": 28.5}, "eval")
    train, evaluation = stream.getvalue().splitlines()
    assert train.startswith("train step 2,000/200,000    1.0%  ") and train.endswith("  total_loss 1.235")
    assert " updates/s  left 0:0" in train and "other" not in train
    assert evaluation == "eval  step 2,000/200,000    1.0%  score 28.5"


def test_console_colours_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")  # standard output itself is no terminal here
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        ConsoleSink(10, stream=stream).log(2, {"score": 1.0}, "eval")
    assert terminal.getvalue().startswith("\x1b[32meval \x1b[0m step 2/10 ")
    assert file.getvalue().startswith("eval  step 2/10 ")
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as asked:
            asked.setenv(name, value)
            asked.setenv("FORCE_COLOR", "1")
            assert coloured("eval", "green", terminal) == "eval"
    assert coloured("eval", "green", terminal) != "eval"


def test_settings_check_themselves() -> None:
    with pytest.raises(UserError, match=r"logging\.wandb_mode is 'maybe'.*online, offline, disabled"):
        LoggingSettings(wandb_mode="maybe")


def test_tensorboard_files_and_resume(tmp_path: Path) -> None:
    pytest.importorskip("torch.utils.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoardSink(tmp_path)
    for step in (10, 20, 30):
        first.log(step, {"loss": float(step)}, "train")
    first.close()
    second = TensorBoardSink(tmp_path, resume_step=20)
    second.log(30, {"loss": 33.0}, "train")
    second.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(10, 10), (20, 20), (30, 33)]


def test_wandb_offline(tmp_path: Path) -> None:
    # Its own process: wandb starts a service and keeps state of its own.
    pytest.importorskip("wandb")
    code = (
        "import sys\n"
        "from tdmpc2.reporting.metrics import LoggingSettings, MetricLogger\n"
        "settings = LoggingSettings(console=False, wandb=True, wandb_mode='offline')\n"
        "for resume in (None, 20):\n"
        "    with MetricLogger(sys.argv[1], settings, 100, configuration={'a': {'b': 1}},\n"
        "                      resume_step=resume) as logger:\n"
        "        logger.log(30, {'loss': 0.5})\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    run_id = (tmp_path / "wandb_run_id.txt").read_text().strip()
    files = list((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert files and all(file.stat().st_size > 0 for file in files)
    assert [row["step"] for row in read_metrics(tmp_path)] == [30]


def test_wandb_that_cannot_start_only_warns(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    # Without a key and without a terminal to ask for one, W&B refuses to start online.
    code = (
        "import sys\n"
        "from tdmpc2.reporting.metrics import LoggingSettings, MetricLogger\n"
        "with MetricLogger(sys.argv[1], LoggingSettings(console=False, wandb=True), 100) as logger:\n"
        "    logger.log(10, {'loss': 0.5})\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**environment, "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: Weights & Biases")]
    assert len(warnings) == 1 and "could not start" in warnings[0]
    assert [row["loss"] for row in read_metrics(tmp_path)] == [0.5]


# Progress


@pytest.mark.parametrize("kept", [b"\xff\xfe\x00", b"../evil\x1b[31m", b"", b"x" * 1000, b"abc12345\n"])
def test_a_wandb_run_id_that_is_none_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bytes) -> None:
    """A run resumes whatever the file holds; wandb itself is not needed for that."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "wandb_run_id.txt").write_bytes(kept)
    WandbSink(tmp_path, "p", None, "offline", "", {}, resume_step=5).close()
    found = (tmp_path / "wandb_run_id.txt").read_text().strip()
    assert found == "abc12345" if kept.startswith(b"abc") else re.fullmatch("[0-9a-f]{8}", found)


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.6, 3725, 360_000)] == ["0:00:00", "0:01:00", "1:02:05", "100:00:00"]
    assert [duration(s) for s in (math.inf, math.nan, -1)] == ["-", "-", "-"]


def test_progress_line() -> None:
    progress = Progress(300, "evaluating", "episodes", stream=io.StringIO())
    progress.update(100, note="walker-run")
    assert progress.line(50) == "evaluating: 100/300 episodes  33%  2.0/s  left 0:01:40  walker-run"
    assert Progress(0, "empty").line(0) == "empty: 0/0 steps  100%  0.0/s  took 0:00:00"
    megabytes = Progress(3_000_000_000, "fetching", "MB", stream=io.StringIO(), scale=10**6)
    megabytes.update(1_500_000_000)
    assert megabytes.line(100) == "fetching: 1,500/3,000 MB  50%  15.0/s  left 0:01:40"
    with pytest.raises(ValueError, match="negative"):
        Progress(-1, "x")


def test_progress_without_terminal_is_sparing() -> None:
    stream = io.StringIO()
    with Progress(1000, "reading", stream=stream) as progress:
        for _ in range(1000):
            progress.update()
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 2 and lines[-1].startswith("reading: 1,000/1,000 steps  100%")


def test_progress_rewrites_a_terminal_line() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress(2, "x" * 500, stream=stream) as progress:
        progress.update(2)
    text = stream.getvalue()
    assert text.startswith("\r") and text.endswith("\n") and text.count("\n") == 1
    assert len(text) < 500  # cut to the terminal's width


# Tables


def test_plain_table() -> None:
    text = format_table(["task", "score"], [["cup-spin", "9.5"], None, ["all", "10.25"]])
    assert text.split("\n") == [
        "task      score",
        "---------------",
        "cup-spin    9.5",
        "---------------",
        "all       10.25",
    ]
    assert format_table(["a", "b"], [["1", "22"]], align="rl").split("\n")[2] == "1  22"


def test_markdown_table() -> None:
    text = format_table(["a", "b"], [["x|y", "1"], None, ["z", "22"]], style="markdown")
    assert text.split("\n") == ["| a    |   b |", "| ---- | --: |", r"| x\|y |   1 |", "| z    |  22 |"]


def test_tables_refuse_ragged_rows() -> None:
    with pytest.raises(ValueError, match="1 cells, the table 2 columns"):
        format_table(["a", "b"], [["x"]])
    with pytest.raises(ValueError, match="align"):
        format_table(["a", "b"], [], align="lc")


# Plots


def pixels(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_scores_by_size_are_drawn_the_same_each_time(tmp_path: Path) -> None:
    points = [
        SizedScore("small", 1.4, 30.13, (27.56, 32.66), measured=True, side="above"),
        SizedScore("large", 5.45, 28.12, side="below"),
        SizedScore("other", 2.0, 5.0, side="left"),
    ]
    for name in ("a.svg", "b.svg"):
        score_by_size(points, tmp_path / name, "Scores")
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text() and "<dc:date>" not in drawn
    for text in ("small 30.13", "large 28.12", "published", "measured here, with 95% interval"):
        assert f"<!-- {text} -->" in drawn
    score_by_size(points[:1], tmp_path / "one.png", "One")
    assert pixels(tmp_path / "one.png")[0] > 0


def test_dollar_signs_are_no_formula(tmp_path: Path) -> None:
    odd = r"a $\frac$ b_c"
    score_by_size([SizedScore(odd, 1.0, 2.0)], tmp_path / "size.svg", odd)
    assert f"<!-- {odd}" in (tmp_path / "size.svg").read_text()


def test_plots_refuse_what_they_cannot_draw(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.gif.*\.png, \.svg, \.pdf"):
        score_by_size([SizedScore("a", 1.0, 2.0)], tmp_path / "a.gif", "")
    with pytest.raises(UserError, match="nothing to draw"):
        score_by_size([], tmp_path / "a.png", "")
    assert names(tmp_path) == []


# Reports


def test_a_report_is_written_in_order(tmp_path: Path) -> None:
    report = Report("Title")
    report.paragraph("First.")
    report.heading("Then")
    report.chart("scores", "<svg/>", "scores")
    assert names(tmp_path) == []
    report.write(tmp_path / "new", {"scores": 40.0})
    assert names(tmp_path / "new") == ["report.json", "report.md", "scores.svg"]
    assert (tmp_path / "new" / "report.md").read_text() == "# Title\n\nFirst.\n\n## Then\n\n![scores](scores.svg)\n"
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == {"scores": 40.0}


def test_a_report_refuses_what_json_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Report("Title").write(tmp_path, {"score": math.nan})
    assert names(tmp_path) == []


VOID = ("meta", "img", "br")


class Outline(HTMLParser):
    """Tags that are open, ids, and everything that a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href"):
                self.references.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_whole_in_itself(tmp_path: Path) -> None:
    report = Report('Runs of <b>& "others"')
    report.paragraph("One | two\nthree")
    report.table(["arm", "score"], [["<script>alert(1)</script>", "1.0"], ["a|b", "2.0"]])
    marks = [Mark("a", (Value(1.0, 0.5, 1.5), Value(math.nan)), 2.0), Mark("<none>", (None, None))]
    kinds = ("planned", "prior")
    report.chart("first", interval_chart(marks, kinds, "first", "Scores", "points", zero=True), "Scores")
    series = {f"line {n}": [Point(0, n), Point(1, n + 1, n, n + 2)] for n in range(9)}
    report.chart("second", line_chart(series, "second", "Lines", "updates", "score"), "Lines")
    spread = [Distribution("a <b>", (0, 3, 1), (1.0, 1.2, 1.5, 1.8, 2.9)), Distribution("none", (0, 0, 0), (1.0,) * 5)]
    report.chart("third", distribution_chart(spread, (0, 1, 2, 3), "third", "Spread", "return"), "Spread")
    curves = {**series, "one": [Point(1, 2.0, 1.0, 3.0)]}
    report.chart("fourth", curve_charts(curves, "fourth", "Curves", "episode", "return"), "Curves")
    report.points(["one", "two"])
    path = report.write_page(tmp_path)
    text = path.read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.open == [] and len(set(outline.ids)) == len(outline.ids) > 20
    assert all(reference.startswith("#") for reference in outline.references), outline.references
    assert {reference[1:] for reference in outline.references} <= {*outline.ids}
    assert "<script>" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<p>One | two three</p>" in text
    assert "missing" in text and "missing" not in interval_chart(marks[:1], kinds, "x", "t", "u")
    report.write(tmp_path, {})
    assert names(tmp_path) == [
        *("first.svg", "fourth.svg", "report.html", "report.json", "report.md", "second.svg", "third.svg")
    ]
    markdown = (tmp_path / "report.md").read_text()
    assert "![Lines](second.svg)" in markdown and r"| a\|b" in markdown and "- one\n- two" in markdown
    assert (tmp_path / "second.svg").read_text().startswith("<svg")
    again = line_chart(series, "second", "Lines", "updates", "score")
    assert again == (tmp_path / "second.svg").read_text(), "the same figures give the same chart"


def test_charts_refuse_marks_of_other_kinds() -> None:
    with pytest.raises(ValueError, match="a has 1 values, expected 2"):
        interval_chart([Mark("a", (Value(1.0),))], ("planned", "prior"), "x", "t", "u")


def test_labels_of_near_points_are_written_apart() -> None:
    series = {f"scheme {n}": [Point(1 + n / 100, 50 + n / 100)] for n in range(5)} | {"far": [Point(5, 20)]}
    svg = line_chart(series, "x", "t", "MiB", "score", lines=False, labelled=True)
    places = {text: float(y) for y, text in re.findall(r'<text [^>]* y="([\d.]+)"[^>]*>(scheme \d|far)<', svg)}
    heights = sorted(places.values())
    assert len(places) == 6 and all(b - a > 8 for a, b in itertools.pairwise(heights)), places


def test_markdown_shows_plain_texts_as_they_are() -> None:
    report = Report("A <b>")
    report.heading("*x* [y](z)\n# not a heading", 3)
    report.points(["`a` _b_ reward_0.40 a|b"])
    report.table(["arm", "what", "score"], [["<i>|", "*", "1"]], "llr")
    report.code(["train.py a=<b>", "second\nline"])
    assert report.markdown() == (
        "# A \\<b>\n\n### \\*x\\* \\[y\\](z)\\\\n# not a heading\n\n"
        "- \\`a\\` \\_b\\_ reward_0.40 a|b\n\n"
        "| arm    | what | score |\n| ------ | ---- | ----: |\n| \\<i>\\| | \\*   |     1 |\n\n"
        "    train.py a=<b>\n    second\\nline\n"
    )
    page = report.html()
    assert '<td class="left">&lt;i&gt;|</td>' in page and "<td>1</td>" in page
    assert '<pre class="wide">train.py a=&lt;b&gt;\nsecond\\nline</pre>' in page
