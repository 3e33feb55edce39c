"""Metrics of a training run, sent to every place that was asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tdmpc2.errors import UserError
from tdmpc2.reporting.sinks import (
    ROW_KEYS,
    Category,
    ConsoleSink,
    FileSink,
    Sink,
    TensorBoardSink,
    WandbSink,
)

WANDB_MODES = ("online", "offline", "disabled")


@dataclass(frozen=True)
class LoggingSettings:
    """Where metrics go besides `metrics.jsonl` and `metrics.csv`, which every run has."""

    console: bool = True
    """One line per logged step on standard output."""
    tensorboard: bool = False
    """Event files in the run folder."""
    wandb: bool = False
    """Weights & Biases; `wandb_mode` says how."""
    wandb_project: str = "tdmpc-opt"
    wandb_entity: str | None = None
    """W&B user or team; None is the account's default."""
    wandb_mode: str = "online"
    """`online`, `offline` (files to `wandb sync` later) or `disabled`."""

    def __post_init__(self) -> None:
        if self.wandb_mode not in WANDB_MODES:
            raise UserError(f"logging.wandb_mode is '{self.wandb_mode}', expected one of: {', '.join(WANDB_MODES)}.")


class MetricLogger:
    """Sends metrics to all sinks of `settings`; close it (or use `with`) at the end.

    `folder` is the run's, made if missing. `resume_step` is the step of the checkpoint a resumed run starts
    from, None for a new run: rows logged after it are dropped, so that no step is logged twice. `resume_pending`
    says that the evaluation at that step has yet to be done: what was logged of it goes too.
    `console_metrics` are the metrics the console shows, `configuration` what W&B files with the run.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: LoggingSettings,
        total_steps: int,
        *,
        run_name: str = "",
        configuration: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
        resume_pending: bool = False,
        console_metrics: Sequence[str] = (),
    ) -> None:
        place = Path(folder)
        self._sinks: list[Sink] = [FileSink(place, resume_step, resume_pending)]
        if settings.tensorboard:
            self._sinks.append(TensorBoardSink(place, resume_step))
        if settings.wandb and settings.wandb_mode != "disabled":
            self._sinks.append(
                WandbSink(
                    place,
                    project=settings.wandb_project,
                    entity=settings.wandb_entity,
                    mode="offline" if settings.wandb_mode == "offline" else "online",
                    run_name=run_name,
                    configuration=configuration or {},
                    resume_step=resume_step,
                )
            )
        if settings.console:  # last: its clock starts when the others are ready
            self._sinks.append(ConsoleSink(total_steps, resume_step or 0, console_metrics))

    def log(self, step: int, metrics: Mapping[str, float], category: Category = "train") -> None:
        """Logs named numbers at a step (updates done so far); anything `float` takes is accepted."""
        reserved = [name for name in metrics if name in ROW_KEYS]
        if reserved:
            raise ValueError(f"a metric may not be called '{reserved[0]}', which every row has")
        numbers = {name: float(value) for name, value in metrics.items()}
        for sink in self._sinks:
            sink.log(step, numbers, category)

    def close(self) -> None:
        """Stores what is still under way; more calls do nothing."""
        sinks, self._sinks = self._sinks, []
        with contextlib.ExitStack() as stack:  # closes the others even where one cannot
            for sink in sinks:
                stack.callback(sink.close)

    def __enter__(self) -> MetricLogger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
