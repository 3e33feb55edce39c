"""A training run: batches in, updates, logs, evaluations, checkpoints and resumable state out."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from tdmpc2.agent import Agent
from tdmpc2.checkpointing import (
    CheckpointMetadata,
    build_model,
    checkpoint_task_set,
    read_checkpoint,
    save_checkpoint,
)
from tdmpc2.data.sampler import Prefetcher, SliceSampler
from tdmpc2.data.store import EpisodeStore
from tdmpc2.distillation import RewardTeacher
from tdmpc2.errors import CheckpointError, UserError
from tdmpc2.evaluation.runner import EvaluationSettings, evaluate
from tdmpc2.losses import LossWeights
from tdmpc2.model import ModelDims, WorldModel, published_size
from tdmpc2.planner import PlannerSettings
from tdmpc2.reporting.metrics import LoggingSettings, MetricLogger
from tdmpc2.tasks import TaskSet
from tdmpc2.training.learner import Learner, OptimiserSettings
from tdmpc2.training.state import StateFolder, TrainingState

CONSOLE_METRICS = ("total_loss", "consistency_loss", "reward_loss", "value_loss", "distillation_loss", "pi_loss")


@dataclass(frozen=True)
class TrainSettings:
    """One run; see `TrainConfig` for the keys.

    `eval_freq` of 0 evaluates never. `config` is kept with every checkpoint. `teacher_name` is for the record.
    """

    run_dir: Path
    task_set: TaskSet
    dims: ModelDims
    data_dir: Path
    steps: int
    batch_size: int = 256
    horizon: int = 3
    seed: int = 1
    weights: LossWeights = field(default_factory=LossWeights)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    teacher_name: str = "none"
    checkpoint: Path | None = None
    resume: bool = False
    log_freq: int = 100
    eval_freq: int = 0
    save_freq: int | None = None
    state_freq: int = 1000
    evaluation: EvaluationSettings = field(default_factory=lambda: EvaluationSettings(episodes=1))
    planner: PlannerSettings = field(default_factory=PlannerSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "horizon", "log_freq", "state_freq"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.save_freq is not None and self.save_freq < 1:
            raise UserError(f"save_freq must be at least 1, not {self.save_freq}.")
        if self.eval_freq < 0:
            raise UserError(f"eval_freq must be 0 (never) or more, not {self.eval_freq}.")

    def identity(self) -> dict[str, Any]:
        """What the update sequence depends on, and so may not change when a run resumes; `steps` may."""
        return {
            "tasks": list(self.task_set.tasks),
            "model": asdict(self.dims),
            "data_dir": str(self.data_dir),
            "batch_size": self.batch_size,
            "horizon": self.horizon,
            "seed": self.seed,
            "teacher": self.teacher_name,
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "weights": asdict(self.weights),
            "optimiser": asdict(self.optimiser),
        }


@dataclass(frozen=True)
class TrainResult:
    """Where a run ended: `interrupted` runs continue with resume=true."""

    step: int
    interrupted: bool
    checkpoint: Path | None
    metrics: dict[str, float]
    updates_per_second: float


class Interrupt:
    """Set by SIGINT or SIGTERM, so that a run stops between two updates with its state written."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt  # asked twice: do not wait for the update to end
        self.signal = number

    @contextmanager
    def watching(self) -> Iterator[Interrupt]:
        """Handles both signals within the block, where this thread may."""
        try:
            old = {n: signal.signal(n, self._on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever runs this one handles signals
            yield self
            return
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def new_student(settings: TrainSettings) -> WorldModel:
    """The student to train: new weights from the seed, or those of `checkpoint`.

    Raises:
        CheckpointError: when the file holds a model of other dimensions or tasks.
    """
    masks = settings.task_set.action_masks() if settings.task_set.multitask else None
    if settings.checkpoint is None:
        model = WorldModel(settings.dims, masks)
        model.init_weights(torch.Generator().manual_seed(settings.seed))
        return model.to(settings.device)
    source = read_checkpoint(settings.checkpoint)
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
    if loaded.has_target_q:
        return loaded.to(settings.device)
    model = WorldModel(settings.dims, masks)
    model.init_weights(torch.Generator().manual_seed(settings.seed))
    model.load_state_dict(loaded.state_dict(), strict=False)
    model.target_q_heads.load_state_dict(loaded.q_heads.state_dict(), strict=True)
    print(f"{source.path} has no target Q: it starts equal to Q.")
    return model.to(settings.device)


def train(settings: TrainSettings, teacher: RewardTeacher | None) -> TrainResult:
    """Runs `settings.steps` updates, or resumes up to them.

    Args:
        settings: the run.
        teacher: frozen, on the same device; None trains from scratch.

    Raises:
        UserError: when the run folder holds another run's state, or a loss is no longer a number.
    """
    states = StateFolder(settings.run_dir)
    identity = settings.identity()
    start = 0
    if settings.resume:
        state = states.load(identity)
        start = state.step
    elif states.exists():
        raise UserError(
            f"{settings.run_dir} holds a training run already: continue it with resume=true, "
            "or choose another exp_name or seed."
        )
    if teacher is not None:
        teacher.check_frozen()
    torch.manual_seed(settings.seed)
    store = EpisodeStore.open(settings.data_dir)
    sampler = SliceSampler(store, settings.task_set, settings.batch_size, settings.horizon, settings.seed)
    discounts = torch.from_numpy(settings.task_set.discounts())
    learner = Learner(new_student(settings), discounts, settings.weights, settings.optimiser, settings.seed)
    if settings.resume:
        learner.load_state_dict(state.learner)
        print(f"resuming {settings.run_dir} at step {start:,} of {settings.steps:,}")

    run = _Run(settings, learner, states)
    logger = MetricLogger(
        settings.run_dir,
        settings.logging,
        settings.steps,
        run_name=settings.run_dir.name,
        configuration=settings.config,
        resume_step=start if settings.resume else None,
        console_metrics=CONSOLE_METRICS,
    )
    interrupt = Interrupt()
    latest: dict[str, float] = {}
    step, clock = start, time.perf_counter()
    with logger, Prefetcher(sampler, settings.device, start) as batches, interrupt.watching():
        while step < settings.steps and interrupt.signal is None:
            batch = next(batches)
            target = None if teacher is None else teacher.rewards(batch.obs[0], batch.action[0], batch.task)
            metrics = learner.update(batch, target)
            step += 1
            last = step == settings.steps
            if step % settings.log_freq == 0 or last:
                latest = _read(metrics)
                _check_finite(latest, step, sampler)
                logger.log(step, latest)
            score = None
            if settings.eval_freq and (step % settings.eval_freq == 0 or last):
                score = run.evaluate(logger, step)
            if step % run.save_freq == 0 or last:
                run.save(step, score, final=last)
            if step % settings.state_freq == 0 or last:
                run.save_state(step, identity)
        if interrupt.signal is not None and step < settings.steps:
            run.save_state(step, identity)
            print(f"interrupted at step {step:,}; the state is written, continue with resume=true")
    seconds = time.perf_counter() - clock
    return TrainResult(
        step=step,
        interrupted=step < settings.steps,
        checkpoint=run.final_path if step >= settings.steps else None,
        metrics=latest,
        updates_per_second=(step - start) / seconds if seconds > 0 else 0.0,
    )


class _Run:
    """What a run writes besides its metrics."""

    def __init__(self, settings: TrainSettings, learner: Learner, states: StateFolder) -> None:
        self._settings = settings
        self._learner = learner
        self._states = states
        # Five checkpoints, as in the paper's figure 3, unless told otherwise.
        self.save_freq = settings.save_freq or max(1, math.ceil(settings.steps / 5))
        self._folder = settings.run_dir / "checkpoints"
        self.final_path = self._folder / "final.safetensors"

    def evaluate(self, logger: MetricLogger, step: int) -> float:
        agent = Agent(self._learner.model, self._settings.task_set, self._settings.planner)
        result = evaluate(agent, self._settings.evaluation, label=f"step {step}")
        returns = {f"return/{task}": sum(r) / len(r) for task, r in result.returns().items()}
        score = result.score().value
        logger.log(step, {"normalised_score": score, **returns}, "eval")
        return score

    def save(self, step: int, score: float | None, *, final: bool) -> None:
        s = self._settings
        metadata = CheckpointMetadata(
            task_set=s.task_set.name,
            tasks=s.task_set.tasks,
            dims=s.dims,
            model_size=published_size(s.dims),
            step=step,
            config=dict(s.config),
            normalised_score=score,
        )
        weights = self._learner.model.state_dict()
        save_checkpoint(self._folder / f"step_{step:08d}.safetensors", weights, metadata)
        if final:
            save_checkpoint(self.final_path, weights, metadata)

    def save_state(self, step: int, identity: dict[str, Any]) -> None:
        self._states.save(TrainingState(step, self._learner.state_dict(), identity))


def _read(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """All metrics in one transfer from the device."""
    values = torch.stack([m.float() for m in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))


def _check_finite(metrics: Mapping[str, float], step: int, sampler: SliceSampler) -> None:
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        episodes = sorted(set(sampler.indices(step - 1)[0].tolist()))
        shown = ", ".join(map(str, episodes[:10]))
        raise UserError(
            f"step {step}: {', '.join(bad)} {'is' if len(bad) == 1 else 'are'} not finite; its batch drew episodes "
            f"{shown}{', …' if len(episodes) > 10 else ''}. The last state written is kept; check these episodes with "
            "scripts/import_data.py --verify, or lower lr."
        )
