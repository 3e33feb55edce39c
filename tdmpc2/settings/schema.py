"""Typed schemas of the Hydra configurations: a wrong key, type or missing value fails at once and names its key.

Released keys keep their names. The YAML tree in `config/` fills these in; `tdmpc2.settings.convert` turns the result
into the frozen settings of each room, and no room ever sees a configuration object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from tdmpc2.execution import Execution
from tdmpc2.fileio import safe_name
from tdmpc2.losses import LossWeights
from tdmpc2.model import ModelDims
from tdmpc2.planner import PlannerSettings
from tdmpc2.tasks import known_tasks
from tdmpc2.training import OptimiserSettings


@dataclass
class TaskConfig:
    """A task set: a known name, or any name with its tasks listed in the order of their ids."""

    name: str | None = MISSING
    tasks: list[str] | None = None


@dataclass
class ModelConfig:
    """A published size, and single dimensions that differ from its row of the table (null: as the table)."""

    model_size: int | None = None
    enc_dim: int | None = None
    mlp_dim: int | None = None
    latent_dim: int | None = None
    num_enc_layers: int | None = None
    num_q: int | None = None
    task_dim: int | None = None


@dataclass
class TeacherConfig(ModelConfig):
    """The teacher of reward distillation; `name: none` trains from scratch, `labels` on what scripts/label.py wrote.

    Its model keys are those of the student, from the same config group.
    """

    name: str = MISSING
    checkpoint: str | None = None
    task: str | None = None  # its task set, for released files, which do not name theirs
    random_weights: bool = False  # for measuring cost without a checkpoint; teaches nothing
    precision: str | None = None  # of its weights and products: float32 (default) or bfloat16; labels: must be theirs
    labels: str | None = None  # folder of the rewards it has predicted: read by teacher=labels, written by label.py


@dataclass
class LoggingConfig:
    """Where metrics go besides the CSV and JSON-lines files, which are always written."""

    console: bool = True
    tensorboard: bool = False
    wandb: bool = False
    wandb_project: str = "tdmpc-opt"
    wandb_entity: str | None = None
    wandb_mode: str = "online"  # online, offline or disabled


@dataclass
class PlannerConfig:
    """MPPI (see PlannerSettings); `horizon` is also the length of a training slice.

    `greedy` leaves the exploration noise out of planned actions; the papers' evaluation keeps it.
    """

    horizon: int = PlannerSettings.horizon
    iterations: int = PlannerSettings.iterations
    num_samples: int = PlannerSettings.num_samples
    num_elites: int = PlannerSettings.num_elites
    num_pi_trajs: int = PlannerSettings.num_pi_trajs
    min_std: float = PlannerSettings.min_std
    max_std: float = PlannerSettings.max_std
    temperature: float = PlannerSettings.temperature
    warm_start: bool = PlannerSettings.warm_start
    greedy: bool = False


@dataclass
class SharedModelConfig:
    """What student and teacher have in common, whatever their sizes."""

    simnorm_dim: int = ModelDims.simnorm_dim
    num_bins: int = ModelDims.num_bins
    vmin: float = ModelDims.vmin
    vmax: float = ModelDims.vmax
    dropout: float = ModelDims.dropout
    log_std_min: float = ModelDims.log_std_min
    log_std_max: float = ModelDims.log_std_max


@dataclass
class TrainConfig(PlannerConfig, SharedModelConfig, ModelConfig):
    """`python tdmpc2/train.py`."""

    task: TaskConfig = field(default_factory=TaskConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    checkpoint: str | None = None  # start from these weights instead of new ones
    # data and update
    data_dir: str = MISSING
    batch_size: int = 256
    steps: int = 200_000
    d_coef: float = 0.4
    lr: float = OptimiserSettings.lr
    enc_lr_scale: float = OptimiserSettings.enc_lr_scale
    grad_clip_norm: float = OptimiserSettings.grad_clip_norm
    tau: float = OptimiserSettings.tau
    consistency_coef: float = LossWeights.consistency_coef
    reward_coef: float = LossWeights.reward_coef
    value_coef: float = LossWeights.value_coef
    entropy_coef: float = LossWeights.entropy_coef
    rho: float = LossWeights.rho
    seed: int = 1
    device: str = "auto"
    matmul_precision: str = "highest"  # highest, high (TF32) or medium (bfloat16), as torch names them
    precision: str = Execution.precision  # of the update's matrix products: float32 or bfloat16
    compile: bool = Execution.compile  # torch.compile the update: a minute at the start, then faster
    cudagraphs: bool = Execution.cudagraphs  # capture the update as one CUDA graph
    # the run
    exp_name: str = "default"
    resume: bool | str | None = None  # true, false, or auto: as the folder needs; default false, in a sweep auto
    log_freq: int = 100
    eval_freq: int = 0  # 0: no evaluation while training
    eval_episodes: int = 1
    save_freq: int | None = None  # default: a fifth of steps, the five checkpoints of the paper's figure 3
    state_freq: int = 1000  # how often the state that `resume` continues from is written
    num_workers: int | None = None


@dataclass
class EvaluateConfig(PlannerConfig):
    """`python tdmpc2/evaluate.py`."""

    checkpoint: str = MISSING
    task: TaskConfig = field(default_factory=TaskConfig)
    tasks: list[str] | None = None  # evaluate only these
    eval_episodes: int = 10
    seed: int = 1
    mpc: bool = True  # false: the policy prior alone
    precision: str = Execution.precision  # of the planner's products: float32, bfloat16, or on CUDA float16
    compile: bool = Execution.compile  # one pass each for the planner's functions: a second, on CUDA more
    cudagraphs: bool = Execution.cudagraphs  # on CUDA, capture a whole plan as one graph
    matmul_precision: str = "highest"
    device: str = "auto"
    num_envs: int | None = None
    num_workers: int | None = None
    output: str | None = None  # folder of the results; default: next to the checkpoint's name under results/
    label: str | None = None
    reference: str | None = None  # another evaluation.json, whose returns the table shows beside
    save_video: bool = False


@dataclass
class QuantizeConfig(EvaluateConfig):
    """`python scripts/quantize.py`."""

    scheme: str = "fp16"
    evaluate: bool = True


@dataclass
class CollectConfig(PlannerConfig):
    """`python scripts/collect.py`."""

    data_dir: str = MISSING
    task: TaskConfig = field(default_factory=TaskConfig)
    tasks: list[str] | None = None  # collect only these
    episodes: int = 10  # of each task
    behaviour: str = "oscillate"  # oscillate, uniform, planner or prior
    checkpoint: str | None = None  # for planner and prior
    noise: float = 0.0  # std of Gaussian noise added to every action
    seed: int = 1
    device: str = "auto"
    matmul_precision: str = "highest"
    num_envs: int | None = None
    num_workers: int | None = None


@dataclass
class LabelConfig(SharedModelConfig):
    """`python scripts/label.py`."""

    data_dir: str = MISSING
    task: TaskConfig = field(default_factory=TaskConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    batch_size: int = 2048  # transitions a forward pass
    seed: int = 1  # of a teacher with random weights
    device: str = "auto"
    verify: bool = False  # label nothing: read what is there and compare its checksums


SCHEMAS: dict[str, Any] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "quantize": QuantizeConfig,
    "collect": CollectConfig,
    "label": LabelConfig,
}
"""By the name of the program and of its file in `config/`."""

TEXT_KEYS = frozenset(
    (
        *("checkpoint", "teacher.checkpoint", "teacher.labels", "data_dir", "output", "reference"),
        *("hydra.run.dir", "hydra.sweep.dir", "exp_name", "label", "task.name"),
    )
)
"""Keys whose values are paths or names: any text, which Hydra's grammar need not understand."""

IN_PATH = ("seed", "exp_name", "task", "task.name", "experiment")
"""Keys that stand in a run's path already, so that no part of it is named by them."""

NOT_IN_NAMES = (
    *("resume", "device", "task.tasks", "checkpoint", "teacher.checkpoint", "teacher.labels", "data_dir"),
    *("log_freq", "eval_freq", "eval_episodes", "save_freq", "state_freq", "num_workers", "logging"),
    *(f"logging.{name}" for name in ("console", "tensorboard", "wandb", "wandb_project", "wandb_entity", "wandb_mode")),
)
"""Keys that a run's folder is not named by, unless a sweep varies them: they say where things lie, or change nothing
about its updates."""


def register_schemas() -> None:
    """Makes the schemas, every single task as a choice of `task`, and the resolver `safe_name` known to Hydra."""
    store = ConfigStore.instance()
    for name, node in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=node)
    for task in known_tasks():
        store.store(group="task", name=task, node=TaskConfig(name=task))
    OmegaConf.register_new_resolver("safe_name", safe_name, replace=True)
