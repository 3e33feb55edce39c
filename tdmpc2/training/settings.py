"""What one training run is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from tdmpc2.evaluation.runner import EvaluationSettings
from tdmpc2.execution import Execution
from tdmpc2.losses import LossWeights
from tdmpc2.model import ModelDims
from tdmpc2.planner import PlannerSettings
from tdmpc2.ranges import MOST_EVALUATION_SEED, MOST_ROUNDS, MOST_SEED, MOST_SLICES, MOST_STEPS, check_whole
from tdmpc2.reporting.metrics import LoggingSettings
from tdmpc2.tasks import TaskSet
from tdmpc2.training.execution import UPDATES
from tdmpc2.training.learner import OptimiserSettings

Resume = Literal["never", "always", "auto"]
"""What to do about a run that the folder holds: refuse, go on (and refuse if there is none), or whatever fits."""


@dataclass(frozen=True)
class TrainSettings:
    """One run; see `TrainConfig` for the keys.

    `eval_freq` of 0 evaluates never. `config` is kept with the run and every checkpoint. `teacher_name` is
    for the record. `labels` is the folder of a teacher's predictions, for a run without the teacher itself.
    `log_name` is the file in the run's folder for what libraries log; None keeps none.
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
    execution: Execution = field(default_factory=Execution)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    teacher_name: str = "none"
    labels: Path | None = None
    checkpoint: Path | None = None
    resume: Resume = "never"
    log_freq: int = 100
    eval_freq: int = 0
    save_freq: int | None = None
    state_freq: int = 1000
    evaluation: EvaluationSettings = field(default_factory=lambda: EvaluationSettings(episodes=1))
    planner: PlannerSettings = field(default_factory=PlannerSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    log_name: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        UPDATES.check_precision(self.execution.precision)
        check_whole("batch_size", self.batch_size, 1, MOST_SLICES)
        check_whole("horizon", self.horizon, 1, MOST_ROUNDS)
        for name in ("steps", "log_freq", "state_freq"):
            check_whole(name, getattr(self, name), 1, MOST_STEPS)
        if self.save_freq is not None:
            check_whole("save_freq", self.save_freq, 1, MOST_STEPS)
        check_whole("eval_freq", self.eval_freq, 0, MOST_STEPS)
        check_whole("seed", self.seed, 0, MOST_EVALUATION_SEED if self.eval_freq else MOST_SEED)

    def identity(self) -> dict[str, Any]:
        """The settings that the updates depend on, and so may not change when a run resumes; `steps` may."""
        return {
            "tasks": list(self.task_set.tasks),
            "batch_size": self.batch_size,
            "horizon": self.horizon,
            "seed": self.seed,
            "device": self.device.type,  # random states do not carry over to another kind
            "precision": self.execution.precision,
            "teacher": self.teacher_name,
            **asdict(self.dims),
            **asdict(self.weights),
            **asdict(self.optimiser),
        }
