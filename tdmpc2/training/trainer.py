"""A training run: batches in, updates, and what follows them out."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from tdmpc2.data.source import BatchSource, Interrupted
from tdmpc2.distillation import AnyTeacher
from tdmpc2.training.interrupt import Interrupt
from tdmpc2.training.outputs import RunOutputs
from tdmpc2.training.preparing import PreparedRun, prepare
from tdmpc2.training.provenance import record_end, record_start
from tdmpc2.training.ranks import Ranks
from tdmpc2.training.run_lock import run_lock
from tdmpc2.training.schedule import Schedule
from tdmpc2.training.settings import TrainSettings


@dataclass(frozen=True)
class TrainResult:
    """Where a run ended: `interrupted` runs continue with resume=true.

    `score` is the last one that the run was evaluated to, for a run that evaluates.
    """

    step: int
    interrupted: bool
    checkpoint: Path | None
    metrics: dict[str, float]
    updates_per_second: float
    score: float | None = None


def train(settings: TrainSettings, teacher: AnyTeacher | None, ranks: Ranks | None = None) -> TrainResult:
    """Runs `settings.updates` updates, or resumes up to them.

    One loop for both kinds of run: an online one's source of batches acts as far as its next batch asks.

    Args:
        settings: the run; `batch_size` is that of all processes together.
        teacher: frozen, on the same device, or the dataset's own rewards in its place; None trains from
            `settings.labels`, or from scratch.
        ranks: the processes that take parts of every batch; default this one alone. The first one writes, logs and
            evaluates.

    Raises:
        UserError: when the run folder holds another run's state, another process trains in it, or a number of an
            update is no longer finite.
    """
    ranks = ranks or Ranks()
    with run_lock(settings.run_dir) if ranks.first else nullcontext():
        run = prepare(settings, teacher, ranks)
        ranks.wait()  # all have looked at the run folder as it was
        if run.state is not None and ranks.first:
            print(f"resuming {settings.run_dir} at step {run.start:,} of {settings.updates:,}")
        interrupt, began = Interrupt(), time.perf_counter()
        with (
            interrupt.watching(),
            run.open_batches(interrupt) as batches,
            RunOutputs(run, batches, Schedule.of(settings), interrupt) as outputs,
        ):
            records = ranks.first and (run.start < settings.updates or run.pending)  # else nothing is left to do
            if records:
                record_start(settings.run_dir, settings.device, run.start)
            step, done = run_updates(run, batches, outputs, interrupt)
            outputs.finish(step, done)
        seconds = time.perf_counter() - began
        whole = done and step == settings.updates
        if whole and records:
            record_end(settings.run_dir, step, (step - run.start) / seconds if seconds > 0 else 0.0)
    return TrainResult(
        step=step,
        interrupted=not whole,
        checkpoint=outputs.final_path if whole else None,
        metrics=outputs.latest,
        updates_per_second=(step - run.start) / seconds if seconds > 0 else 0.0,
    )


def run_updates(run: PreparedRun, batches: BatchSource, outputs: RunOutputs, interrupt: Interrupt) -> tuple[int, bool]:
    """The loop. Returns the step it came to, and whether what was due after it is done."""
    step = run.start
    done = outputs.follow(step) if run.pending else True
    while done and step < run.settings.updates and not run.asked_to_stop(step, interrupt):
        try:
            with outputs.state_kept_at(step):
                batch = next(batches)
        except Interrupted:
            break
        if run.lessons is not None:
            batch = run.lessons.of(batch, step)
        metrics = run.learner.update(batch)
        step += 1
        run.watch.add(step, metrics)
        done = outputs.follow(step, metrics)
    return step, done
