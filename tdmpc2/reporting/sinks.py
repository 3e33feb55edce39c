"""Where metrics go: the console, files in the run folder, TensorBoard and Weights & Biases.

The folder after a run:

    metrics.jsonl       one JSON object a line: "step", "category", "time" (Unix seconds) and the metrics
    metrics.csv         the same as a table; a cell is empty where a row lacks that metric
    tensorboard/        event files, if asked for
    wandb/              Weights & Biases' own files, if asked for
    wandb_run_id.txt    the W&B run that a resumed training continues
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO, get_args

from tdmpc2.console import coloured
from tdmpc2.errors import UserError
from tdmpc2.fileio import atomic_file, atomic_write_text, write_error
from tdmpc2.jsontext import parse_json, whole_number
from tdmpc2.reporting.progress import duration

Category = Literal["train", "eval", "episode"]
_CATEGORIES = get_args(Category)
Row = dict[str, Any]

JSONL_NAME = "metrics.jsonl"
CSV_NAME = "metrics.csv"
WANDB_ID_NAME = "wandb_run_id.txt"
ROW_KEYS = ("step", "category", "time")
"""Keys of every row, which no metric may be called."""
_LONGEST_LINE = 1 << 20
_LONGEST_ID = 100
_LARGEST_WHOLE = 1 << 63
_COLOURS: dict[Category, str] = {"train": "cyan", "eval": "green", "episode": "yellow"}


class Sink(Protocol):
    """Takes metrics at a step; `close` makes sure that all are stored."""

    def log(self, step: int, metrics: Mapping[str, float], category: Category) -> None: ...

    def close(self) -> None: ...


class ConsoleSink:
    """One line per call: step, percent, updates per second, time left, chosen metrics.

    The rate is that since the last training line; the time left comes from the whole session, evaluations
    included. `chosen` are the metrics shown, the first six where none of them is there.
    """

    def __init__(
        self, total_steps: int, start_step: int = 0, chosen: Sequence[str] = (), stream: TextIO | None = None
    ) -> None:
        self._total = total_steps
        self._chosen = tuple(chosen)
        self._stream = stream
        self._start_step = self._last_step = start_step
        self._start_time = self._last_time = time.monotonic()

    def log(self, step: int, metrics: Mapping[str, float], category: Category) -> None:
        now = time.monotonic()
        stream = self._stream or sys.stdout
        label = coloured(f"{category:<5}", _COLOURS[category], stream)
        parts = [f"{label} step {step:,}/{self._total:,}"]
        if self._total:
            parts.append(f"{100 * step / self._total:5.1f}%")
        if category == "train":
            done, elapsed = step - self._start_step, now - self._start_time
            if step > self._last_step and now > self._last_time:
                parts.append(f"{(step - self._last_step) / (now - self._last_time):.1f} updates/s")
                parts.append(f"left {duration(max(self._total - step, 0) * elapsed / done)}")
            self._last_step, self._last_time = step, now
        shown = [name for name in self._chosen if name in metrics] or list(metrics)[:6]
        parts += [f"{name} {metrics[name]:.4g}" for name in shown]
        print("  ".join(parts), file=stream, flush=True)

    def close(self) -> None:
        """Nothing to keep."""


class FileSink:
    """`metrics.jsonl` and `metrics.csv`, always both with the same rows; a number that is not finite is
    null/nan.

    With `resume_step` the rows up to that step stay and later ones go, together with any line a crash left
    half-written, and with the step's own evaluation if that is pending. Without it the log starts anew and an old
    one gets `.old` added to its name.
    """

    def __init__(self, folder: Path, resume_step: int | None = None, resume_pending: bool = False) -> None:
        self._json_path = folder / JSONL_NAME
        self._csv_path = folder / CSV_NAME
        if resume_step is None:
            for path in (self._json_path, self._csv_path):
                if path.exists() and path.stat().st_size:
                    path.replace(path.with_name(path.name + ".old"))
        kept: list[Row] = []
        if resume_step is not None:
            stay = {"train": resume_step, "eval": resume_step - resume_pending, "episode": resume_step}
            kept = [row for row in self._read() if row["step"] <= stay[row["category"]]]
        with atomic_file(self._json_path, "w") as file:
            file.writelines(_json_line(row) for row in kept)
        self._columns: list[str] = list(ROW_KEYS)
        self._learn_columns(kept)
        self._write_csv(kept)
        self._json = self._open(self._json_path)
        self._csv = self._open(self._csv_path)

    def log(self, step: int, metrics: Mapping[str, float], category: Category) -> None:
        row: Row = {"step": step, "category": category, "time": round(time.time(), 3)}
        row.update((name, value if math.isfinite(value) else None) for name, value in metrics.items())
        self._append(self._json, self._json_path, _json_line(row))
        if self._learn_columns([row]):
            # A new column changes the header, so the table is written anew from the rows on disk.
            self._csv.close()
            self._write_csv(read_metrics(self._json_path.parent))
            self._csv = self._open(self._csv_path)
        else:
            line = io.StringIO()
            csv.writer(line, lineterminator="\n").writerow(self._cells(row))
            self._append(self._csv, self._csv_path, line.getvalue())

    def close(self) -> None:
        self._json.close()
        self._csv.close()

    def _read(self) -> Iterator[Row]:
        rows, dropped = _read_jsonl(self._json_path)
        if dropped:
            print(
                f"warning: {self._json_path}: {dropped} unreadable line(s) left out, as a crash leaves them.",
                file=sys.stderr,
            )
        return iter(rows)

    def _learn_columns(self, rows: Sequence[Row]) -> bool:
        before = len(self._columns)
        known = set(self._columns)
        for row in rows:
            self._columns += [name for name in row if name not in known]
            known.update(row)
        return len(self._columns) > before

    def _write_csv(self, rows: Sequence[Row]) -> None:
        with atomic_file(self._csv_path, "w") as file:
            csv.writer(file, lineterminator="\n").writerows([self._columns, *map(self._cells, rows)])

    def _cells(self, row: Row) -> list[str]:
        cells = ((name in row, row.get(name)) for name in self._columns)
        return ["" if not there else "nan" if value is None else str(value) for there, value in cells]

    @staticmethod
    def _open(path: Path) -> FileIO:
        # Unbuffered: a row has left this process when `log` returns, and closing cannot fail on leftovers.
        try:
            return path.open("ab", buffering=0)
        except OSError as error:
            raise write_error(path, error) from error

    @staticmethod
    def _append(file: FileIO, path: Path, line: str) -> None:
        left = line.encode()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            raise write_error(path, error) from error


class TensorBoardSink:
    """Scalars `<category>/<metric>` in the run folder's `tensorboard`."""

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                f"TensorBoard is asked for but cannot be imported ({error}); "
                "`pip install tensorboard`, or turn logging.tensorboard off."
            ) from error
        # Points of an interrupted run after the step it resumes from would be drawn twice.
        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def log(self, step: int, metrics: Mapping[str, float], category: Category) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"{category}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Scalars `<category>/<metric>` in a Weights & Biases run, against the axis `step`.

    Nothing that goes wrong in W&B stops a training: one line of warning, and no more is sent. A resumed
    training continues the same run; what that run already holds after the resumed step stays there.
    """

    def __init__(
        self,
        folder: Path,
        project: str,
        entity: str | None,
        mode: Literal["online", "offline"],
        run_name: str,
        configuration: Mapping[str, Any],
        resume_step: int | None = None,
    ) -> None:
        self._run: Any = None
        id_path = folder / WANDB_ID_NAME
        run_id = secrets.token_hex(4)
        if resume_step is not None and id_path.is_file():
            run_id = _kept_id(id_path) or run_id
        atomic_write_text(id_path, run_id + "\n")
        try:
            import wandb

            self._run = wandb.init(
                project=project,
                entity=entity,
                mode=mode,
                name=run_name or None,
                id=run_id,
                resume="allow",
                dir=str(folder),
                config=dict(configuration),
                settings=wandb.Settings(console="off"),
            )
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # whatever it is, it must not stop the training
            self._give_up("could not start", error)

    def log(self, step: int, metrics: Mapping[str, float], category: Category) -> None:
        if self._run is None:
            return
        try:
            # `step` is sent as a value: W&B drops rows whose own step goes back, as it does after a resume.
            self._run.log({"step": step, **{f"{category}/{name}": v for name, v in metrics.items()}})
        except Exception as error:
            self._give_up("stopped", error)

    def close(self) -> None:
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:
            self._give_up("did not finish", error)
        self._run = None

    def _give_up(self, what: str, error: Exception) -> None:
        self._run = None
        reason = " ".join(str(error).split()) or type(error).__name__
        print(
            f"warning: Weights & Biases {what} ({reason}); the run goes on without it.",
            file=sys.stderr,
        )


def read_metrics(folder: str | Path) -> list[Row]:
    """The rows of a run folder's `metrics.jsonl`, in order; lines a crash left half-written are left out.

    Raises a `UserError` when the folder has no such file.
    """
    path = Path(folder) / JSONL_NAME
    if not path.is_file():
        raise UserError(f"no {JSONL_NAME} in {folder}; give the folder of a run that has logged something.")
    return _read_jsonl(path)[0]


def metric_series(rows: Sequence[Row], name: str, category: Category = "train") -> list[tuple[int, float]]:
    """(step, value) of one metric; null is NaN."""
    chosen = (row for row in rows if row["category"] == category and name in row)
    return [(row["step"], math.nan if row[name] is None else float(row[name])) for row in chosen]


def _read_jsonl(path: Path) -> tuple[list[Row], int]:
    """Whole rows, and how many lines were not."""
    rows: list[Row] = []
    dropped = 0
    if not path.is_file():
        return rows, dropped
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from error
    for line in lines:
        try:
            row = parse_json(line, _LONGEST_LINE)
        except ValueError:
            row = None
        if _is_row(row) and line.endswith(b"\n"):
            rows.append(row)
        else:
            dropped += 1
    return rows, dropped


def _is_row(row: Any) -> bool:
    """Whether a line holds what `FileSink` writes: a step, a category, and numbers or null under printable names."""
    if not isinstance(row, dict) or not whole_number(row.get("step")) or row.get("category") not in _CATEGORIES:
        return False
    return all(name.isprintable() and _is_metric(value) for name, value in row.items() if name != "category")


def _is_metric(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or whole_number(value, least=-_LARGEST_WHOLE, most=_LARGEST_WHOLE)


def _kept_id(path: Path) -> str:
    """The W&B run of an interrupted training, empty where the file holds no such thing."""
    try:
        with path.open("rb") as file:
            found = file.read(2 * _LONGEST_ID).decode("ascii", "replace").strip()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from error
    return found if len(found) <= _LONGEST_ID and re.fullmatch(r"[A-Za-z0-9_-]+", found) else ""


def _json_line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
