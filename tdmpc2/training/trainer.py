"""A training run: batches in, updates, logs, evaluations, checkpoints and resumable state out."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from tdmpc2.agent import Agent
from tdmpc2.checkpointing import (
    CheckpointMetadata,
    build_model,
    checkpoint_task_set,
    read_checkpoint,
    require_float,
    save_checkpoint,
)
from tdmpc2.data.labels import LabelColumn
from tdmpc2.data.sampler import Prefetcher, SliceSampler
from tdmpc2.data.store import EpisodeStore
from tdmpc2.distillation import RewardTeacher
from tdmpc2.errors import CheckpointError, DataError, UserError
from tdmpc2.evaluation.runner import evaluate
from tdmpc2.fileio import atomic_write_text
from tdmpc2.memory import check_memory
from tdmpc2.model import WorldModel, model_bytes, published_size, update_bytes
from tdmpc2.reporting.log_file import logged_to
from tdmpc2.reporting.metrics import MetricLogger
from tdmpc2.training.finite import FiniteWatch
from tdmpc2.training.identity import check_identity, content_identity, recorded_store, resumed_start, start_identity
from tdmpc2.training.interrupt import Interrupt, Stopped
from tdmpc2.training.learner import Learner
from tdmpc2.training.peers import Peers
from tdmpc2.training.run_lock import run_lock
from tdmpc2.training.settings import TrainSettings
from tdmpc2.training.state import StateFolder, TrainingState

CONSOLE_METRICS = (
    "total_loss",
    "consistency_loss",
    "reward_loss",
    "value_loss",
    "distillation_loss",
    "pi_loss",
)
CONFIG_NAME = "config.json"
FINAL_NAME = "final.safetensors"
_VOTE_FREQ = 10


@dataclass(frozen=True)
class TrainResult:
    """Where a run ended: `interrupted` runs continue with resume=true."""

    step: int
    interrupted: bool
    checkpoint: Path | None
    metrics: dict[str, float]
    updates_per_second: float


def new_student(settings: TrainSettings) -> WorldModel:
    """The student to train: new weights from the seed, or those of `checkpoint`.

    Raises:
        CheckpointError: when the file holds a model of other dimensions or tasks.
    """
    masks = settings.task_set.action_masks() if settings.task_set.multitask else None
    model = WorldModel(settings.dims, masks)
    if settings.checkpoint is None:
        model.init_weights(torch.Generator().manual_seed(settings.seed))
        return model.to(settings.device)
    source = read_checkpoint(settings.checkpoint)
    require_float(source, "training")
    checkpoint_task_set(source, settings.task_set)
    # Released files say nothing of dropout and the like: those come from the configuration.
    shaped = replace(
        source.dims,
        dropout=settings.dims.dropout,
        vmin=settings.dims.vmin,
        vmax=settings.dims.vmax,
        simnorm_dim=settings.dims.simnorm_dim,
    )
    if shaped != settings.dims:
        raise CheckpointError(
            f"{source.path}: holds {source.describe()}, but the run is configured otherwise: "
            f"{shaped.differences(settings.dims)}. Set model_size (and the keys named) to the file's."
        )
    loaded = build_model(replace(source, dims=shaped), settings.task_set)
    weights = loaded.state_dict()
    if not loaded.has_target_q:
        weights |= {f"target_q_heads.{name}": tensor for name, tensor in loaded.q_heads.state_dict().items()}
        print(f"{source.path} has no target Q: it starts equal to Q.")
    model.load_state_dict(weights)
    return model.to(settings.device)


def _check_memory(settings: TrainSettings, peers: Peers) -> None:
    """Raises a `UserError` where the model, or an update of it on a CPU, cannot fit into this machine's memory."""
    d = settings.dims
    widths = f"enc_dim={d.enc_dim}, mlp_dim={d.mlp_dim}, latent_dim={d.latent_dim}, num_q={d.num_q}"
    on_cpu = settings.device.type == "cpu"
    check_memory(
        f"a model of {widths}", model_bytes(d, training=on_cpu), "choose a smaller model_size, or lower these keys"
    )
    if on_cpu:
        size = settings.batch_size // peers.size
        check_memory(
            f"an update of batch_size={settings.batch_size}, horizon={settings.horizon}",
            update_bytes(d, size, settings.horizon),
            "lower batch_size",
        )


def train(settings: TrainSettings, teacher: RewardTeacher | None, peers: Peers | None = None) -> TrainResult:
    """Runs `settings.steps` updates, or resumes up to them.

    Args:
        settings: the run; `batch_size` is that of all processes together.
        teacher: frozen, on the same device; None trains from `settings.labels`, or from scratch.
        peers: the processes that share out every batch; default this one alone. The first one writes, logs and
            evaluates.

    Raises:
        UserError: when the run folder holds another run's state, another process trains in it, or a number of an
            update is no longer finite.
    """
    peers = peers or Peers()
    with run_lock(settings.run_dir) if peers.first else nullcontext():
        return _train(settings, teacher, peers)


def finished_run(settings: TrainSettings) -> Path | None:
    """The final checkpoint of a run that has ended as `settings` want it, so that resume=auto has nothing to do.

    Raises:
        UserError: when the folder holds a run of other settings.
    """
    final = settings.run_dir / "checkpoints" / FINAL_NAME
    states = StateFolder(settings.run_dir)
    if settings.resume != "auto" or not final.exists() or not states.exists():
        return None
    state = states.load()
    if state.step != settings.steps or state.pending:
        return None
    of_settings = settings.identity()
    check_identity(states.folder, {key: state.identity.get(key) for key in of_settings}, of_settings)
    return final


def _found_state(settings: TrainSettings, states: StateFolder) -> TrainingState | None:
    """The state to go on from; None to start a new run.

    Raises:
        UserError: when the folder holds a run that `settings.resume` does not go on with.
    """
    if settings.resume == "always" or (settings.resume == "auto" and states.exists()):
        return states.load()
    kept = sorted(path.name for path in (settings.run_dir / "checkpoints").glob("*.safetensors"))
    if states.exists():
        raise UserError(
            f"{settings.run_dir} holds a training run already: continue it with resume=true, "
            "or choose another exp_name or seed."
        )
    if kept:
        raise UserError(
            f"{settings.run_dir} holds checkpoints of an earlier run ({', '.join(kept[:3])}), which this one would "
            "replace: choose another exp_name or seed, or move them away."
        )
    return None


def _train(settings: TrainSettings, teacher: RewardTeacher | None, peers: Peers) -> TrainResult:
    states = StateFolder(settings.run_dir)
    state = _found_state(settings, states)
    if teacher is not None:
        teacher.check_frozen()
    store = EpisodeStore.open(settings.data_dir)
    if state is not None:
        store = recorded_store(store, state.identity)
    peers.share(settings.batch_size)  # or one error before anything is written
    _check_memory(settings, peers)
    labels = None if settings.labels is None else LabelColumn.open(settings.labels, store, settings.task_set.tasks)
    sampler = SliceSampler(
        store,
        settings.task_set,
        settings.batch_size,
        settings.horizon,
        settings.seed,
        rank=peers.rank,
        world_size=peers.size,
        labels=labels,
    )
    content = content_identity(store, teacher, labels)
    if state is None:
        student = new_student(settings)
        identity = settings.identity() | start_identity(settings.checkpoint) | content
    else:
        identity = settings.identity() | resumed_start(state.identity, settings.checkpoint) | content
        check_identity(states.folder, state.identity, identity)
        # A resumed student's weights are in the state; the file it once started from need not be there any more.
        student = new_student(replace(settings, checkpoint=None))
    start = 0 if state is None else state.step
    if start > settings.steps:
        raise UserError(f"{settings.run_dir} is at step {start:,} already, beyond steps={settings.steps:,}.")
    discounts = torch.from_numpy(settings.task_set.discounts())
    learner = Learner(
        student, discounts, settings.weights, settings.optimiser, settings.seed, settings.execution, peers
    )
    if state is not None:
        states.restore(learner, state)
    peers.wait()  # all have looked at the run folder as it was
    if state is not None and peers.first:
        print(f"resuming {settings.run_dir} at step {start:,} of {settings.steps:,}")

    watch = FiniteWatch(sampler, settings.device)
    run = _Run(settings, learner, states, identity, peers, watch, resumed=state)
    interrupt = Interrupt()
    latest: dict[str, float] = {}
    step, clock = start, time.perf_counter()
    # What is due after an update, and was not done before an interruption, is done first.
    pending = state is not None and state.pending
    stopped = False
    with run, Prefetcher(sampler, settings.device, start) as batches, interrupt.watching():
        while not stopped and (pending or step < settings.steps):
            if not pending:
                try:
                    batch = next(batches)
                except DataError:  # the data is not what it was: what has been learned from it is kept
                    run.save_state(step)
                    raise
                if teacher is not None:
                    batch = teacher.teach(batch)
                metrics = learner.update(batch)
                step += 1
                watch.add(step, metrics)
            due = run.due(step)
            if due:
                watch.check()
            if "log" in due and not pending:
                latest = _read(metrics)
                run.log(step, latest)
            score = None
            if "eval" in due:
                if not pending:
                    run.save_state(step, pending=True)
                pending = True
                score = run.evaluate(step, interrupt)
                if peers.any(peers.first and score is None, settings.device):
                    break
            if "save" in due:
                run.save(step, score, final=step == settings.steps)
            if due & {"state", "eval"}:
                run.save_state(step)
            pending = False
            # Several processes must stop at the same step, and asking each other waits for the device.
            if peers.size == 1 or step % _VOTE_FREQ == 0:
                stopped = peers.any(interrupt.signal is not None, settings.device)
        if pending or step < settings.steps:
            if not pending:
                run.save_state(step)
            if peers.first:
                print(f"interrupted at step {step:,}; the state is written, continue with resume=true")
        elif not run.final_path.exists():
            run.save(step, None, final=True)  # the run was resumed with `steps` cut down to where it stood
        peers.wait()  # the first one has written
    seconds = time.perf_counter() - clock
    return TrainResult(
        step=step,
        interrupted=pending or step < settings.steps,
        checkpoint=run.final_path if step == settings.steps and not pending else None,
        metrics=latest,
        updates_per_second=(step - start) / seconds if seconds > 0 else 0.0,
    )


class _Run:
    """What a run writes, logs and evaluates: the first process does, the others let it. As a context, closes logs."""

    def __init__(
        self,
        settings: TrainSettings,
        learner: Learner,
        states: StateFolder,
        identity: dict[str, Any],
        peers: Peers,
        watch: FiniteWatch,
        resumed: TrainingState | None,
    ) -> None:
        self._settings = settings
        self._learner = learner
        self._states = states
        self._identity = identity
        self._watch = watch
        self._writes = peers.first
        # Five checkpoints, as in the paper's figure 3, unless told otherwise.
        self.save_freq = settings.save_freq or max(1, math.ceil(settings.steps / 5))
        self._folder = settings.run_dir / "checkpoints"
        self.final_path = self._folder / FINAL_NAME
        self._logger: MetricLogger | None = None
        self._log_file: AbstractContextManager[None] = nullcontext()
        if self._writes and settings.log_name is not None:
            self._log_file = logged_to(settings.run_dir / settings.log_name)
        if self._writes:
            atomic_write_text(settings.run_dir / CONFIG_NAME, json.dumps(dict(settings.config), indent=2) + "\n")
            self._logger = MetricLogger(
                settings.run_dir,
                settings.logging,
                settings.steps,
                run_name=settings.run_dir.name,
                configuration=settings.config,
                resume_step=None if resumed is None else resumed.step,
                resume_pending=resumed is not None and resumed.pending,
                console_metrics=CONSOLE_METRICS,
            )

    def __enter__(self) -> _Run:
        self._log_file.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._log_file.__exit__(kind, error, traceback)
        if self._logger is not None:
            self._logger.__exit__(kind, error, traceback)

    def due(self, step: int) -> set[str]:
        """What follows the update that ended at `step`: all of it after the last one."""
        s = self._settings
        every = {"log": s.log_freq, "eval": s.eval_freq, "save": self.save_freq, "state": s.state_freq}
        return {kind for kind, count in every.items() if count and (step == s.steps or step % count == 0)}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._logger is not None:
            self._logger.log(step, metrics)

    def evaluate(self, step: int, interrupt: Interrupt) -> float | None:
        """Evaluates and logs the score; None when a signal asked to stop within, and for all but the first process."""
        if self._logger is None:
            return None

        def on_decisions(count: int) -> None:
            if interrupt.signal is not None:
                raise Stopped

        agent = Agent(self._learner.model, self._settings.task_set, self._settings.planner)
        try:
            result = evaluate(agent, self._settings.evaluation, label=f"step {step}", on_decisions=on_decisions)
        except Stopped:
            return None
        returns = {f"return/{task}": sum(r) / len(r) for task, r in result.returns().items()}
        score = result.score().value
        self._logger.log(step, {"normalised_score": score, **returns}, "eval")
        return score

    def save(self, step: int, score: float | None, *, final: bool) -> None:
        weights = self._learner.model.state_dict()
        self._watch.check_state(step, weights)
        if not self._writes:
            return
        s = self._settings
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
        if final:
            save_checkpoint(self.final_path, weights, metadata)

    def save_state(self, step: int, *, pending: bool = False) -> None:
        state = self._learner.state_dict()
        self._watch.check_state(step, state)
        if self._writes:
            self._states.save(TrainingState(step, state, self._identity, pending))


def _read(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """All metrics in one transfer from the device."""
    values = torch.stack([m.float() for m in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))
