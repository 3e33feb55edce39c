"""Metrics of a training run, sent to every place that was asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tdmpc2.keys import THIS_PROJECT, check_keys, key
from tdmpc2.ranges import OneOf
from tdmpc2.reporting.sinks import (
    ROW_KEYS,
    Category,
    ConsoleSink,
    FileSink,
    Sink,
    TensorBoardSink,
    WandbSink,
)


@dataclass(frozen=True)
class LoggingSettings:
    """Where metrics go besides `metrics.jsonl` and `metrics.csv`, which every run has."""

    console: bool = key(
        True,
        "whether a line for each logged step goes to standard output",
        unit="true or false",
        source=THIS_PROJECT,
        names_run=False,
    )
    tensorboard: bool = key(
        False,
        "whether event files of TensorBoard go to the run's folder",
        unit="true or false",
        source=THIS_PROJECT,
        names_run=False,
    )
    wandb: bool = key(
        False,
        "whether metrics go to Weights & Biases, as wandb_mode says",
        unit="true or false",
        source=THIS_PROJECT,
        names_run=False,
    )
    wandb_project: str = key("tdmpc-opt", "the W&B project", unit="name of W&B", source=THIS_PROJECT, names_run=False)
    wandb_entity: str | None = key(
        None,
        "the W&B user or team; null is the account's default",
        unit="name of W&B",
        source=THIS_PROJECT,
        names_run=False,
    )
    wandb_mode: str = key(
        "online",
        "how W&B gets them: online, offline (files to `wandb sync` later) or disabled",
        unit="name",
        source=THIS_PROJECT,
        check=OneOf(("online", "offline", "disabled"), message="{name} is '{value}', expected one of: {choices}."),
        names_run=False,
    )

    def __post_init__(self) -> None:
        check_keys(self, "logging.")


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
