"""What one training run is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from tdmpc2.errors import UserError
from tdmpc2.evaluation.runner import EvaluationSettings
from tdmpc2.execution import Execution
from tdmpc2.extraction import ExtractionSettings
from tdmpc2.keys import TDMPC_OPT, THIS_PROJECT, check_keys, key, key_of, keys_in
from tdmpc2.losses import LossWeights
from tdmpc2.model import ModelDims
from tdmpc2.objectives import Objective
from tdmpc2.online import OnlineSettings
from tdmpc2.planner import PlannerSettings
from tdmpc2.quantisation import SCHEMES, scheme_named
from tdmpc2.ranges import MOST_EPISODES, MOST_EVALUATION_SEED, MOST_SLICES, MOST_STEPS, Whole, check_whole
from tdmpc2.reporting.metrics import LoggingSettings
from tdmpc2.tasks import TaskSet
from tdmpc2.training.execution import UPDATES
from tdmpc2.training.learner import OptimiserSettings

Resume = Literal["never", "always", "auto"]
"""What to do about a run that the folder holds: refuse, go on (and refuse if there is none), or whatever fits."""


@dataclass(frozen=True)
class EndSettings:
    """What is evaluated when a run has done its updates."""

    episodes: int = key(
        0,
        "episodes of each task that the run ends with, planned and by the policy prior alone; 0: none",
        name="final_episodes",
        unit="episodes",
        source=f"{THIS_PROJECT}; 10 in the papers",
        check=Whole(0, MOST_EPISODES),
        names_run=False,
    )
    saved: bool = key(
        False,
        "whether the run ends with evaluations of every saved checkpoint too",
        name="evaluate_saved",
        unit="true or false",
        source=f"{TDMPC_OPT}, figure 3",
        names_run=False,
    )
    schemes: tuple[str, ...] = key(
        (),
        "schemes to quantise and evaluate the final student by (docs/quantization.md)",
        name="evaluate_schemes",
        unit="names of schemes",
        source=f"{TDMPC_OPT}, table 4",
        names_run=False,
    )

    def __post_init__(self) -> None:
        check_keys(self)
        for scheme in self.schemes:
            scheme_named(scheme)


@dataclass(frozen=True)
class TrainSettings:
    """One run.

    `online` is how the run acts, for one that learns from the simulator; None learns from the store in `data_dir`.
    `extraction` is what the policy prior alone is trained to do, in a model that stays as it is; None trains all of it.
    `config` is kept with the run and every checkpoint. `objectives` are those of distillation, for a run with a
    teacher. `teacher_name` is for the record. `labels` is the folder of a teacher's predictions, for a run without the
    teacher itself. `log_name` is the file in the run's folder for what libraries log; None keeps none.
    """

    run_dir: Path
    task_set: TaskSet
    dims: ModelDims
    data_dir: Path
    steps: int = key(
        200_000,
        "updates of the run; of an online one, decisions (two environment steps each), with utd updates for each",
        unit="updates, or decisions",
        source=f"{TDMPC_OPT}, table 1; 1M in table 2",
        check=Whole(1, MOST_STEPS),
    )
    batch_size: int = key(
        256,
        "B: slices of an update; the paper also has 128 and 1024",
        unit="slices",
        source=f"{TDMPC_OPT}, experiments",
        check=Whole(1, MOST_SLICES),
    )
    horizon: int = key_of(PlannerSettings, "horizon")
    quantise_aware: str | None = key(
        None,
        "scheme of whole numbers to train for (docs/quantization.md): all passes see the weights that it would store, "
        "float32 ones are trained; null: none",
        unit="name of a scheme",
        source=THIS_PROJECT,
    )
    seed: int = key_of(EvaluationSettings, "seed")
    weights: LossWeights = field(default_factory=LossWeights)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    objectives: tuple[Objective, ...] = ()
    online: OnlineSettings | None = None
    extraction: ExtractionSettings | None = None
    execution: Execution = field(default_factory=Execution)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    teacher_name: str = "none"
    labels: Path | None = None
    checkpoint: Path | None = None
    resume: Resume = "never"
    log_freq: int = key(
        100,
        "updates between logged steps",
        unit="updates",
        source=THIS_PROJECT,
        check=Whole(1, MOST_STEPS),
        names_run=False,
    )
    eval_freq: int = key(
        0,
        "updates between evaluations, which plan eagerly in float32; 0: none while training",
        unit="updates",
        source=THIS_PROJECT,
        check=Whole(0, MOST_STEPS),
        names_run=False,
    )
    save_freq: int | None = key(
        None,
        "updates between checkpoints; null: a fifth of the run's, for the five checkpoints of the figure",
        unit="updates",
        source=f"{TDMPC_OPT}, figure 3",
        check=Whole(1, MOST_STEPS),
        names_run=False,
    )
    state_freq: int = key(
        1000,
        "updates between writings of the state that resume continues from",
        unit="updates",
        source=THIS_PROJECT,
        check=Whole(1, MOST_STEPS),
        names_run=False,
    )
    evaluation: EvaluationSettings = field(default_factory=lambda: EvaluationSettings(episodes=1))
    end: EndSettings = field(default_factory=EndSettings)
    planner: PlannerSettings = field(default_factory=PlannerSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    log_name: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        UPDATES.check_precision(self.execution.precision)
        check_keys(self)
        for objective in self.objectives:
            check_keys(objective)
        if self.quantise_aware is not None and scheme_named(self.quantise_aware, "quantise_aware").is_float:
            whole = ", ".join(name for name, scheme in SCHEMES.items() if not scheme.is_float)
            raise UserError(
                f"quantise_aware={self.quantise_aware} stores floats, which need no training for it; leave it out, "
                f"or choose one of {whole}."
            )
        if self.eval_freq or self.end.episodes or self.online is not None:
            check_whole("seed", self.seed, 0, MOST_EVALUATION_SEED)
        if self.online is not None:
            self.online.check_steps(self.steps, self.task_set)
        if self.extraction is not None:
            if self.quantise_aware is not None:
                raise UserError("quantise_aware is for training the whole model: leave it out of mode=extract.")
            self.extraction.check_objectives(len(self.objectives))
            if self.extraction.rounds > 1:
                check_whole("seed", self.seed, 0, MOST_EVALUATION_SEED)
            if self.extraction.rounds > self.steps:
                raise UserError(f"rounds={self.extraction.rounds} are more than steps={self.steps}; lower them.")
        if self.updates < 1:
            raise UserError(f"steps={self.steps:,} decisions at utd={self.utd:g} are no update; raise one of them.")

    @property
    def utd(self) -> float:
        """Updates for each of `steps`."""
        return 1.0 if self.online is None else self.online.updates_per_decision(self.task_set)

    @property
    def updates(self) -> int:
        """What the run does when it is whole."""
        if self.online is None:
            return self.steps
        return self.online.updates(self.steps, self.task_set, trained=self.trained)

    @property
    def trained(self) -> bool:
        """Whether the model has learned before the run began."""
        return self.checkpoint is not None

    @property
    def seed_behaviour(self) -> str:
        """What acts in the seed phase of an online run."""
        chosen = None if self.online is None else self.online.seed_behaviour
        return chosen or ("agent" if self.trained else "uniform")

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
            # Earlier states do not name the scale's kind: it was the published one.
            **{name: v for name, v in asdict(self.optimiser).items() if (name, v) != ("pi_scale", "batch")},
            **({} if self.quantise_aware is None else {"quantise_aware": self.quantise_aware}),
            "d_coef": 0.0,  # states have always said so of a run without this objective
            **{held.name: getattr(o, declared.name) for o in self.objectives for declared, held in keys_in(o)},
            **self._acting(),
            **self._extracting(),
        }

    def _extracting(self) -> dict[str, Any]:
        """What a policy's extraction depends on beside that: the learning rate falls over all of its updates."""
        if self.extraction is None:
            return {}
        return {"mode": "extract", "updates": self.updates, **self.extraction.identity()}

    def _acting(self) -> dict[str, Any]:
        """The settings that an online run's decisions depend on; nothing for an offline one."""
        if self.online is None:
            return {}
        chosen = {held.name: getattr(self.online, declared.name) for declared, held in keys_in(OnlineSettings)}
        chosen.pop("buffer_storage")
        resolved = {
            "utd": self.utd,
            "train_envs": self.online.envs(self.task_set),
            "seed_behaviour": self.seed_behaviour,
            **({"trained": True} if self.trained else {}),
        }
        planner = {f"planner.{name}": value for name, value in asdict(self.planner).items()}
        return {"mode": "online", **chosen, **resolved, **planner}
