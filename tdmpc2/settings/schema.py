"""Typed schemas of the Hydra configurations: a wrong key, type or missing value fails at once and names its key.

A key is written once, in the frozen dataclass of the package that uses it, or here where only a program does
(`tdmpc2.keys`); `derived` makes the schemas from these. Released keys keep their names. The YAML tree in `config/`
fills the schemas in; `tdmpc2.settings.convert` turns the result into frozen settings, and no package ever sees a
configuration object.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields, is_dataclass, make_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from tdmpc2.evaluation.runner import EvaluationSettings
from tdmpc2.execution import PRECISIONS, Execution
from tdmpc2.extraction import ExtractionSettings
from tdmpc2.fileio import safe_name
from tdmpc2.keys import METADATA, TDMPC2_SIZES, TDMPC_OPT, THIS_PROJECT, Key, check_keys, key, key_of, keys_in
from tdmpc2.losses import LossWeights
from tdmpc2.model import MODEL_SIZES, ModelDims
from tdmpc2.model.sizes import ModelSize
from tdmpc2.objectives import OBJECTIVES
from tdmpc2.online import OnlineSettings
from tdmpc2.places import CHECKPOINTS
from tdmpc2.planner import PlannerSettings
from tdmpc2.ranges import (
    MOST_EPISODES,
    MOST_EVALUATION_SEED,
    MOST_SCALE,
    MOST_SLICES,
    MOST_STEPS,
    OneOf,
    Share,
    Whole,
    Within,
)
from tdmpc2.reporting.metrics import LoggingSettings
from tdmpc2.tasks import known_tasks
from tdmpc2.training import EndSettings, OptimiserSettings, TrainSettings

# -- how a schema is made ----------------------------------------------------------------------------------------------


def derived(
    name: str,
    text: str,
    *parts: Any,
    only: Collection[str] | None = None,
    groups: Mapping[str, Any] | None = None,
    **defaults: Any,
) -> Any:
    """A mutable dataclass, for Hydra, of the keys of other dataclasses.

    Args:
        name, text: of the schema.
        parts: dataclasses with keys, derived ones too; a key repeated by `key_of` replaces that of an earlier part.
        only: the keys to take; None takes all.
        groups: schemas below this one, by name.
        defaults: that differ here from those of the parts; None, too, for keys whose type has no None.

    Raises:
        TypeError: for a key that is written in two places, or one named in `only` or `defaults` that no part has.
    """
    found: dict[str, tuple[Any, Any, Key]] = {}
    for part in parts:
        hints = get_type_hints(part)
        for declared, held in keys_in(part):
            if only is not None and held.name not in only:
                continue
            earlier = found.get(held.name)
            if earlier is not None and earlier[2].definition is not held.definition:
                raise TypeError(f"{name}: the key {held.name} is written in two places; repeat one by key_of")
            found[held.name] = (_config_type(hints[declared.name]), declared.default, held)
    unknown = sorted({*(only or ()), *defaults} - found.keys())
    if unknown:
        raise TypeError(f"{name}: no part has the key {unknown[0]}")
    below = [(group, schema, field(default_factory=schema)) for group, schema in (groups or {}).items()]
    members: list[Any] = []
    for key_name, (hint, given, held) in found.items():
        default = defaults.get(key_name, MISSING if given is NO_DEFAULT else given)
        member = field(default=default, metadata={METADATA: held})
        members.append((key_name, hint | None if default is None else hint, member))
    made = make_dataclass(name, [*below, *members])
    made.__doc__, made.__module__ = text, __name__
    return made


def _config_type(hint: Any) -> Any:
    """A field's type as OmegaConf knows it: a list where the frozen settings have a tuple."""
    if get_origin(hint) is tuple:
        return list[get_args(hint)[0]]  # type: ignore[misc]
    kinds = get_args(hint) if isinstance(hint, UnionType) else ()
    return functools.reduce(operator.or_, map(_config_type, kinds)) if kinds else hint


def schema_keys(schema: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any], Key]]:
    """Every key of a derived schema and of the groups below it, by its dotted name."""
    held = {declared.name: (declared, found) for declared, found in keys_in(schema)}
    for declared in fields(schema):
        if declared.name in held:
            yield f"{prefix}{declared.name}", *held[declared.name]
        elif is_dataclass(declared.type):
            yield from schema_keys(declared.type, f"{prefix}{declared.name}.")


# -- keys that only programs have --------------------------------------------------------------------------------------


_COUNT = Whole(1, MOST_STEPS)


@dataclass(frozen=True)
class TaskKeys:
    """A task set: a known name, or any name with its tasks listed in the order of their ids."""

    name: str | None = key(
        MISSING,
        "name of the task set; null: the one that the checkpoint names",
        unit="name",
        source=THIS_PROJECT,
        free_text=True,
    )
    tasks: tuple[str, ...] | None = key(
        None,
        "tasks of a set of your own, in the order of their ids; null: those of the known name",
        unit="names of tasks",
        source=THIS_PROJECT,
        names_run=False,
    )


@dataclass(frozen=True)
class SizeKeys:
    """A published size, from which single dimensions may differ."""

    model_size: int | None = key(
        None,
        f"published size: {', '.join(map(str, MODEL_SIZES))}; null in a teacher: the one of its checkpoint",
        unit="millions of parameters",
        source=TDMPC2_SIZES,
    )


@dataclass(frozen=True)
class TeacherKeys:
    """The teacher of distillation; its model keys are those of the student, from the same config group."""

    name: str = key(
        MISSING,
        "name of the choice: a size, none (from scratch), labels (what scripts/label.py wrote), or a control: dataset "
        "(the data's own rewards in the teacher's place) or random (weights that teach nothing)",
        unit="name",
        source=f"{TDMPC_OPT}: 317M or 48M",
    )
    checkpoint: str | None = key(
        None, "file of its weights", unit="path", source=THIS_PROJECT, free_text=True, names_run=False
    )
    checkpoints: tuple[str, ...] | None = key(
        None,
        "files of several teachers' weights, each asked about the tasks that it knows (teacher=specialists)",
        unit="paths",
        source=THIS_PROJECT,
        names_run=False,
    )
    task: str | None = key(
        None,
        "its task set, for released files, which do not name theirs; null: the student's",
        unit="name",
        source=THIS_PROJECT,
    )
    random_weights: bool = key(
        False,
        "whether its weights are random, to measure cost without a checkpoint; such a teacher teaches nothing",
        unit="true or false",
        source=THIS_PROJECT,
    )
    precision: str | None = key(
        None,
        "arithmetic of its weights and products, float32 or bfloat16; null: float32, or with labels what they have",
        unit="name",
        source=THIS_PROJECT,
    )
    labels: str | None = key(
        None,
        "folder of the rewards that it has predicted, which teacher=labels reads and label.py writes",
        unit="path",
        source=THIS_PROJECT,
        free_text=True,
        names_run=False,
    )


@dataclass(frozen=True)
class DataKeys:
    """Where episodes lie."""

    data_dir: str = key(
        MISSING, "folder of the store of episodes", unit="path", source=THIS_PROJECT, free_text=True, names_run=False
    )


@dataclass(frozen=True)
class DeviceKeys:
    """What computes, and how exactly."""

    device: str = key(
        "auto",
        "device to compute on: auto (CUDA where there is one), cpu, cuda or cuda:1",
        unit="name of a device",
        source=THIS_PROJECT,
        names_run=False,
    )
    matmul_precision: str = key(
        "highest",
        "how torch computes float32 products: highest, high (TF32) or medium (bfloat16)",
        unit="name",
        source=THIS_PROJECT,
        check=OneOf(
            ("highest", "high", "medium"), message="{name}={value} is unknown; choose highest, high or medium."
        ),
    )


@dataclass(frozen=True)
class EvaluateKeys:
    """Keys that only programs that evaluate have."""

    checkpoint: str = key(
        MISSING, "file of the student", unit="path", source=THIS_PROJECT, free_text=True, names_run=False
    )
    output: str | None = key(
        None,
        "folder of the results; null: one under results/ that is named like the checkpoint",
        unit="path",
        source=THIS_PROJECT,
        free_text=True,
    )
    label: str | None = key(
        None, "name in tables; null: that of the checkpoint", unit="name", source=THIS_PROJECT, free_text=True
    )
    reference: str | None = key(
        None,
        "an evaluation.json, whose returns the table shows beside",
        unit="path",
        source=THIS_PROJECT,
        free_text=True,
    )
    save_video: bool = key(
        False, "whether each task's first episode is filmed", unit="true or false", source=THIS_PROJECT
    )


@dataclass(frozen=True)
class RunKeys:
    """Keys that only `python tdmpc2/train.py` has."""

    mode: str = key(
        "offline",
        "what a run learns from: offline (the store in data_dir), online (the simulator, in which it acts meanwhile) "
        "or extract (the model of checkpoint, which stays as it is: its policy prior learns from the store's states)",
        unit="name",
        source=f"{TDMPC_OPT}; online: TD-MPC2",
        check=OneOf(("offline", "online", "extract")),
    )
    save_replay: str | None = key(
        None,
        "folder of the store that keeps every episode of an online run; null: replay in the run's folder",
        unit="path",
        source=THIS_PROJECT,
        free_text=True,
        names_run=False,
    )
    replay_from: str | None = key(
        None,
        "folder of a store of the same tasks, whose episodes the replay of an online run holds from the start and "
        "drops first; null: none",
        unit="path",
        source=THIS_PROJECT,
        free_text=True,
        names_run=False,
    )
    imitate_labels: str | None = key(
        None,
        "of mode=extract: folder of what the planner would do, which e_imitate reads and label.py what=planner writes; "
        "null: labels/planner in data_dir",
        unit="path",
        source=THIS_PROJECT,
        free_text=True,
        names_run=False,
    )
    save_video: bool = key_of(
        EvaluateKeys,
        "save_video",
        text="whether evaluations between updates film each task's first episode",
        names_run=False,
    )
    checkpoint: str | None = key(
        None,
        "file of weights to start from; null: new ones",
        unit="path",
        source=THIS_PROJECT,
        free_text=True,
        names_run=False,
    )
    exp_name: str = key(
        "default",
        "name of the experiment, in the path of the run's folder",
        unit="name",
        source=THIS_PROJECT,
        free_text=True,
    )
    resume: bool | str | None = key(
        None,
        "what to do about a run that the folder holds: true (go on), false (refuse) or auto (whatever fits); "
        "null: false, in a sweep auto",
        unit="true, false or auto",
        source=THIS_PROJECT,
        names_run=False,
    )
    eval_episodes: int = key_of(EvaluationSettings, "eval_episodes", default=1, source=THIS_PROJECT)
    deterministic: bool = key(
        False,
        "whether torch uses deterministic operations alone, so that two runs on one machine give the same bits; on a "
        "CPU they do anyway",
        unit="true or false",
        source=THIS_PROJECT,
        names_run=False,
    )
    make_data: bool = key(
        False,
        "whether the embedded data is made from the simulator, in a folder under data_dir, where it is not there yet",
        unit="true or false",
        source=THIS_PROJECT,
    )
    mpc: bool = key_of(
        EvaluationSettings,
        "mpc",
        text="whether evaluations between updates plan; false: the policy prior alone acts, at a hundredth of the cost",
        names_run=False,
    )
    compile: bool = key_of(
        Execution,
        "compile",
        text="whether torch.compile compiles the update's losses and gradients: a minute at the start, then faster; an "
        "online run's plans are compiled too, evaluations of the run plan eagerly",
    )
    cudagraphs: bool = key_of(
        Execution,
        "cudagraphs",
        text="whether the whole update is captured as one CUDA graph; evaluations of the run plan without",
    )
    precision: str = key_of(
        Execution,
        "precision",
        text="arithmetic of the matrix products of updates and of an online run's plans, float32 or bfloat16; "
        "evaluations of the run plan in float32",
    )


@dataclass(frozen=True)
class ScaleKeys:
    """What the papers' budgets and teachers are at a scale; `scale=full|gpu|cpu` chooses, and experiments read it."""

    name: str = key(MISSING, "name of the scale, in the path of an experiment's runs", unit="name", source=THIS_PROJECT)
    short: int = key(
        MISSING, "updates that stand for the papers' 200K", unit="updates", source=f"{TDMPC_OPT}, table 1", check=_COUNT
    )
    middle: int = key(
        MISSING, "updates that stand for the papers' 337K", unit="updates", source=f"{TDMPC_OPT}, table 2", check=_COUNT
    )
    long: int = key(
        MISSING, "updates that stand for the papers' 1M", unit="updates", source=f"{TDMPC_OPT}, table 2", check=_COUNT
    )
    small_batch: int = key(
        MISSING, "slices that stand for batch 128", unit="slices", source=f"{TDMPC_OPT}, table 2", check=_COUNT
    )
    batch: int = key(
        MISSING, "slices that stand for batch 256", unit="slices", source=f"{TDMPC_OPT}, table 2", check=_COUNT
    )
    large_batch: int = key(
        MISSING, "slices that stand for batch 1024", unit="slices", source=f"{TDMPC_OPT}, table 2", check=_COUNT
    )
    small_equal: int = key(
        MISSING,
        "updates of small_batch with as many slices as the short run of batch",
        unit="updates",
        source=THIS_PROJECT,
        check=_COUNT,
    )
    large_equal: int = key(
        MISSING,
        "updates of large_batch with as many slices as the short run of batch",
        unit="updates",
        source=THIS_PROJECT,
        check=_COUNT,
    )
    episodes: int = key(
        MISSING,
        "episodes of each task that an experiment's run ends with",
        unit="episodes",
        source=f"{TDMPC_OPT}, evaluation",
        check=_COUNT,
    )
    matched_reward_coef: float = key(
        MISSING,
        "reward_coef of the control that has the gradient of d_coef 0.4 on the dataset's own rewards, as "
        "scripts/match_gradient.py measures it",
        unit="factor",
        source=THIS_PROJECT,
        check=Within(0, MOST_SCALE),
    )
    large_teacher: str = key(MISSING, "name of teacher=large", unit="name", source=f"{TDMPC_OPT}, table 3")
    large_size: int | None = key(
        MISSING,
        "its published size; null: the one of its checkpoint",
        unit="millions of parameters",
        source=f"{TDMPC_OPT}, table 3",
    )
    large_checkpoint: str = key(MISSING, "its file", unit="path", source=THIS_PROJECT, free_text=True, names_run=False)
    small_teacher: str = key(MISSING, "name of teacher=small", unit="name", source=f"{TDMPC_OPT}, table 3")
    small_size: int | None = key(
        MISSING,
        "its published size; null: the one of its checkpoint",
        unit="millions of parameters",
        source=f"{TDMPC_OPT}, table 3",
    )
    small_checkpoint: str = key(MISSING, "its file", unit="path", source=THIS_PROJECT, free_text=True, names_run=False)


@dataclass(frozen=True)
class QuantizeKeys:
    """Keys that only `python scripts/quantize.py` has."""

    scheme: str = key(
        "fp16", "name of the way of storing numbers (docs/quantization.md)", unit="name", source=f"{TDMPC_OPT}, table 4"
    )
    calibrate: str | None = key(
        None,
        "folder of a store of episodes of the student's tasks: integers and scales are chosen by what layers are given "
        "on its states; null: to nearest",
        unit="path",
        source=THIS_PROJECT,
        free_text=True,
        names_run=False,
    )
    calibrate_states: int = key(
        2048,
        "states of that store to look at, and what follows them under three kinds of actions",
        unit="states",
        source=THIS_PROJECT,
        check=Whole(1, MOST_SLICES),
    )
    evaluate: bool = key(
        True, "whether the student is evaluated before and after", unit="true or false", source=THIS_PROJECT
    )
    precision: str = key_of(
        Execution,
        "precision",
        default="auto",
        text="arithmetic of the quantised student's plans: auto (float16 on CUDA, else float32 on the cast weights), "
        "float32, bfloat16, or on CUDA float16",
        check=OneOf(("auto", *PRECISIONS)),
    )

    def __post_init__(self) -> None:
        check_keys(self, but=("precision",))  # which of them a device has, planning tells


@dataclass(frozen=True)
class CollectKeys:
    """Keys that only `python scripts/collect.py` has."""

    tasks: tuple[str, ...] | None = key_of(EvaluationSettings, "tasks")
    episodes: int = key(
        10,
        "number of episodes to collect of each task",
        unit="episodes",
        source=THIS_PROJECT,
        check=Whole(1, MOST_EPISODES),
    )
    behaviour: str = key(
        "oscillate",
        "what acts: oscillate (a sine in each action), uniform (random actions), planner or prior (of a checkpoint)",
        unit="name",
        source=THIS_PROJECT,
        check=OneOf(("oscillate", "uniform", "planner", "prior")),
    )
    commit_freq: int = key(
        100,
        "episodes between commits to the store, which keeps them whatever happens next; 0: one at the end, all or "
        "nothing; no episode depends on it",
        unit="episodes",
        source=THIS_PROJECT,
        check=Whole(0, MOST_EPISODES),
        names_run=False,
    )
    checkpoint: str | None = key(
        None,
        "file of the student, for behaviour=planner or prior",
        unit="path",
        source=THIS_PROJECT,
        free_text=True,
        names_run=False,
    )
    noise: float = key(
        0.0,
        "std of Gaussian noise added to every action",
        unit="action units",
        source=THIS_PROJECT,
        check=Within(0, MOST_SCALE),
    )
    seed: int = key_of(EvaluationSettings, "seed", check=Whole(0, MOST_EVALUATION_SEED))
    num_envs: int | None = key_of(EvaluationSettings, "num_envs")
    num_workers: int | None = key_of(EvaluationSettings, "num_workers")

    def __post_init__(self) -> None:
        check_keys(self)


@dataclass(frozen=True)
class LabelKeys:
    """Keys that only `python scripts/label.py` has."""

    what: str = key(
        "rewards",
        "what is written: rewards (a teacher's, for every transition) or planner (what the planner of checkpoint would "
        "do in every state, as the planner's keys say)",
        unit="name",
        source=THIS_PROJECT,
        check=OneOf(("rewards", "planner")),
    )
    checkpoint: str | None = key_of(
        CollectKeys, "checkpoint", text="file of the student whose planner acts, for what=planner"
    )
    labels: str | None = key(
        None,
        "folder to write the planner's actions into; null: labels/planner in data_dir (of a teacher's rewards: "
        "teacher.labels)",
        unit="path",
        source=THIS_PROJECT,
        free_text=True,
        names_run=False,
    )
    share: float = key(
        1.0,
        "of what=planner: part of each episode's states that is planned from, drawn by the seed",
        unit="ratio",
        source=THIS_PROJECT,
        check=Share(zero=False),
    )
    batch_size: int | None = key(
        None,
        "transitions of a forward pass, or states that are planned from at a time; null: 2048, or 256",
        unit="transitions, or states",
        source=THIS_PROJECT,
        check=Whole(1, MOST_SLICES),
    )
    seed: int = key_of(
        EvaluationSettings,
        "seed",
        text="start of the random numbers: of a teacher with random weights, or of plans and of the states drawn",
    )
    verify: bool = key(
        False,
        "whether to label nothing, but to read what is there and compare its checksums",
        unit="true or false",
        source=THIS_PROJECT,
    )

    def __post_init__(self) -> None:
        check_keys(self)


@dataclass(frozen=True)
class PlayKeys:
    """Keys that only `python scripts/play.py` has."""

    checkpoint: str = key_of(EvaluateKeys, "checkpoint")
    tasks: tuple[str, ...] | None = key_of(
        EvaluationSettings, "tasks", text="tasks that the page offers, the first of them first; null: all"
    )
    port: int | None = key(
        None,
        "port of 127.0.0.1 that the page is at; null: a free one",
        unit="number of a port",
        source=THIS_PROJECT,
        check=Whole(1, 65535),
        names_run=False,
    )
    browser: bool = key(
        True,
        "whether the page is opened in a browser, where there is a display",
        unit="true or false",
        source=THIS_PROJECT,
        names_run=False,
    )

    def __post_init__(self) -> None:
        check_keys(self)


# -- schemas -----------------------------------------------------------------------------------------------------------

SIZE_DIMS = tuple(declared.name for declared in fields(ModelSize))
SHARED_DIMS = tuple(declared.name for declared in fields(ModelDims) if declared.default is not NO_DEFAULT)

TaskConfig = derived("TaskConfig", "A task set.", TaskKeys)
ModelConfig = derived(
    "ModelConfig",
    "A published size, and single dimensions that differ from its row of the table (null: as the table).",
    SizeKeys,
    derived("SizeDims", "", ModelDims, only=SIZE_DIMS, **dict.fromkeys(SIZE_DIMS)),
)
SharedModelConfig = derived(
    "SharedModelConfig", "What student and teacher have in common, whatever their sizes.", ModelDims, only=SHARED_DIMS
)
ScaleConfig = derived("ScaleConfig", "The papers' budgets and teachers at one scale.", ScaleKeys)
TeacherConfig = derived("TeacherConfig", "The teacher of distillation.", ModelConfig, TeacherKeys)
LoggingConfig = derived("LoggingConfig", "Where metrics go besides the files that are always written.", LoggingSettings)
PlannerConfig = derived(
    "PlannerConfig",
    "MPPI, and whether its actions are greedy.",
    PlannerSettings,
    derived("Greedy", "", EvaluationSettings, only=("greedy",)),
)
PlanningConfig = derived(
    "PlanningConfig",
    "What every program has that plans with a checkpoint.",
    PlannerConfig,
    Execution,
    DeviceKeys,
)
PoolConfig = derived(
    "PoolConfig",
    "What every program has that runs environments.",
    EvaluationSettings,
    only=("seed", "num_envs", "num_workers"),
)
TrainConfig = derived(
    "TrainConfig",
    "`python tdmpc2/train.py`.",
    ModelConfig,
    SharedModelConfig,
    PlannerConfig,
    RunKeys,
    DataKeys,
    TrainSettings,
    LossWeights,
    *OBJECTIVES,
    OnlineSettings,
    ExtractionSettings,
    EndSettings,
    OptimiserSettings,
    DeviceKeys,
    PoolConfig,
    groups={"task": TaskConfig, "scale": ScaleConfig, "teacher": TeacherConfig, "logging": LoggingConfig},
    data_dir="data/mt30",
    d_coef=0.4,
)
EvaluateConfig = derived(
    "EvaluateConfig",
    "`python tdmpc2/evaluate.py`.",
    PlanningConfig,
    EvaluationSettings,
    EvaluateKeys,
    groups={"task": TaskConfig},
)
QuantizeConfig = derived(
    "QuantizeConfig", "`python scripts/quantize.py`.", EvaluateConfig, QuantizeKeys, groups={"task": TaskConfig}
)
CollectConfig = derived(
    "CollectConfig",
    "`python scripts/collect.py`.",
    PlanningConfig,
    DataKeys,
    PoolConfig,
    CollectKeys,
    groups={"task": TaskConfig},
)
LabelConfig = derived(
    "LabelConfig",
    "`python scripts/label.py`.",
    SharedModelConfig,
    PlanningConfig,
    DataKeys,
    LabelKeys,
    groups={"task": TaskConfig, "teacher": TeacherConfig},
    data_dir="data/mt30",
)
PlayConfig = derived(
    "PlayConfig",
    "`python scripts/play.py`.",
    PlanningConfig,
    derived("Acting", "", EvaluationSettings, only=("tasks", "seed", "mpc")),
    PlayKeys,
    groups={"task": TaskConfig},
)

SCHEMAS: dict[str, Any] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "quantize": QuantizeConfig,
    "collect": CollectConfig,
    "label": LabelConfig,
    "play": PlayConfig,
}
"""By the name of the program and of its file in `config/`."""

_FREE_TEXT = (name for schema in SCHEMAS.values() for name, _, held in schema_keys(schema) if held.free_text)
TEXT_KEYS = frozenset(("hydra.run.dir", "hydra.sweep.dir", *_FREE_TEXT))
"""Keys whose values are paths or names: any text, which Hydra's grammar need not understand."""

IN_PATH = ("seed", "exp_name", "task", "task.name", "experiment", "scale")
"""Keys that stand in a run's path already, so that no part of it is named by them."""

NOT_IN_NAMES = ("logging", *(name for name, _, held in schema_keys(TrainConfig) if not held.names_run))
"""Keys that a run's folder is not named by, unless a sweep varies them: they say where things lie, or change nothing
about its updates."""


def register_schemas() -> None:
    """Makes known to Hydra: the schemas, every single task as a choice of `task`, and two resolvers.

    `safe_name` is for folders; `bundled` gives the path of a bundled checkpoint.
    """
    store = ConfigStore.instance()
    for name, node in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=node)
    for task in known_tasks():
        store.store(group="task", name=task, node=TaskConfig(name=task))
    OmegaConf.register_new_resolver("safe_name", safe_name, replace=True)
    OmegaConf.register_new_resolver("bundled", lambda name: str(CHECKPOINTS / name), replace=True)
