"""What a run writes: logs, evaluations, checkpoints, its state."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType

import torch
from torch import Tensor

from tdmpc2.agent import Agent
from tdmpc2.checkpointing import CheckpointMetadata, save_checkpoint
from tdmpc2.checkpointing.files import save_tensors
from tdmpc2.data.source import BatchSource, Interrupted
from tdmpc2.errors import DataError
from tdmpc2.evaluation.runner import evaluate
from tdmpc2.fileio import atomic_write_text
from tdmpc2.model import published_size
from tdmpc2.reporting.log_file import logged_to
from tdmpc2.reporting.metrics import MetricLogger
from tdmpc2.training.interrupt import Interrupt
from tdmpc2.training.preparing import PreparedRun
from tdmpc2.training.resuming import CHECKPOINTS, FINAL_NAME
from tdmpc2.training.schedule import Schedule
from tdmpc2.training.state import TrainingState

CONSOLE_METRICS = (
    "total_loss",
    "consistency_loss",
    "reward_loss",
    "value_loss",
    "distillation_loss",
    "pi_loss",
    "imagined_return",
)
CONFIG_NAME = "config.json"
OBJECTIVES_NAME = "objectives.safetensors"
"""What distillation objectives learned or fitted beside the student: a projection, principal components."""


class RunOutputs:
    """Logs, evaluates and saves what is due: the first process does, the others take part where all must.

    As a context it closes the logs.

    Args:
        run: the run; its folder is locked.
        batches: what it learns from.
        schedule: what follows an update.
        interrupt: asked within evaluations.
    """

    def __init__(self, run: PreparedRun, batches: BatchSource, schedule: Schedule, interrupt: Interrupt) -> None:
        self._run = run
        self._batches = batches
        self._schedule = schedule
        self._interrupt = interrupt
        self._writes = run.ranks.first
        self._folder = run.settings.run_dir / CHECKPOINTS
        self.final_path = self._folder / FINAL_NAME
        self.latest: dict[str, float] = {}
        """The metrics last logged."""
        self._logger: MetricLogger | None = None
        self._open_logs = ExitStack()

    def __enter__(self) -> RunOutputs:
        if not self._writes:
            return self
        s, state = self._run.settings, self._run.state
        with ExitStack() as opened:
            if s.log_name is not None:
                opened.enter_context(logged_to(s.run_dir / s.log_name))
            atomic_write_text(s.run_dir / CONFIG_NAME, json.dumps(dict(s.config), indent=2) + "\n")
            self._logger = opened.enter_context(
                MetricLogger(
                    s.run_dir,
                    s.logging,
                    s.updates,
                    run_name=s.run_dir.name,
                    configuration=s.config,
                    resume_step=None if state is None else state.step,
                    resume_pending=self._run.pending,
                    console_metrics=CONSOLE_METRICS,
                )
            )
            self._open_logs = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_logs.close()

    def follow(self, step: int, metrics: Mapping[str, Tensor] | None = None) -> bool:
        """Does what is due after the update that ended at `step`; False if a signal stopped its evaluation.

        Args:
            step: updates done.
            metrics: of the update; None to do what an interruption left undone, when the update was logged already.

        Raises:
            UserError: when a number of an update was not finite; nothing of it is written.
        """
        self._tell(step)
        due = self._schedule.due(step)
        if due:
            self._run.watch.check()
        if "log" in due and metrics is not None:
            self._log(step, metrics)
        score = None
        # Without a state, checkpoints of a run that is killed would be taken for another's.
        if metrics is not None and ("eval" in due or ("save" in due and not self._run.states.exists())):
            self.save_state(step, pending=True)
        if "eval" in due:
            score = self._evaluate(step)
            if self._run.ranks.any(self._writes and score is None, self._run.settings.device):
                return False
        if "save" in due:
            self._save(step, score)
        if due & {"state", "eval"}:
            self.save_state(step)
        return True

    def finish(self, step: int, done: bool) -> None:
        """Ends the run at `step`; `done` is what the last `follow` said."""
        if not done or step < self._run.settings.updates:
            if done:
                self.save_state(step)
            if self._writes:
                print(f"interrupted at step {step:,}; the state is written, continue with resume=true")
        elif not self.final_path.exists():
            self._save(step, None)  # the run was resumed with `steps` cut down to where it stood
        self._run.ranks.wait()  # the first one has written

    @contextmanager
    def state_kept_at(self, step: int) -> Iterator[None]:
        """Writes the state if the data fails within the block: what was learned from it so far is kept."""
        try:
            yield
        except DataError:
            self.save_state(step)
            raise

    def save_state(self, step: int, *, pending: bool = False) -> None:
        """Keeps what the run goes on from; `pending` says that what is due after the update is still to be done."""
        self._tell(step)
        state = self._run.learner.state_dict()
        self._run.watch.check_state(step, state)
        if self._writes:
            self._run.states.save(TrainingState(step, state, self._run.identity, pending, self._batches.state()))

    def _tell(self, step: int) -> None:
        """Logs what the source of batches has to say."""
        for row in self._batches.news():
            if self._logger is not None:
                self._logger.log(step, row, "episode")

    def _log(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """All metrics in one transfer from the device."""
        values = torch.stack([value.float() for value in metrics.values()]).tolist()
        self.latest = dict(zip(metrics, values, strict=True)) | self._batches.standing()
        if self._logger is not None:
            self._logger.log(step, self.latest)

    def _evaluate(self, step: int) -> float | None:
        """Evaluates and logs the score; None when a signal asked to stop within, and for all but the first process."""
        if self._logger is None:
            return None

        def on_decisions(count: int) -> None:
            if self._interrupt.signal is not None:
                raise Interrupted

        s = self._run.settings
        agent = Agent(self._run.learner.model, s.task_set, s.planner)
        films = s.evaluation.video_dir
        settings = replace(s.evaluation, video_dir=None if films is None else films / f"step_{step:08d}")
        try:
            result = evaluate(agent, settings, label=f"step {step}", on_decisions=on_decisions)
        except Interrupted:
            return None
        returns = {f"return/{task}": sum(r) / len(r) for task, r in result.returns().items()}
        score = result.score().value
        self._logger.log(step, {"normalised_score": score, **returns, **self._batches.standing()}, "eval")
        return score

    def _save(self, step: int, score: float | None) -> None:
        weights = self._run.learner.master.state_dict()
        self._run.watch.check_state(step, weights)
        if not self._writes:
            return
        s = self._run.settings
        metadata = CheckpointMetadata(
            task_set=s.task_set.name,
            tasks=s.task_set.tasks,
            dims=s.dims,
            model_size=published_size(s.dims),
            step=step,
            config=dict(s.config),
            normalised_score=score if score is not None and math.isfinite(score) else None,
        )
        save_checkpoint(self._folder / f"step_{step:08d}.safetensors", weights, metadata)
        if own := self._run.learner.own.state_dict():
            save_tensors(s.run_dir / OBJECTIVES_NAME, own)
        if step == s.updates:
            save_checkpoint(self.final_path, weights, metadata)
