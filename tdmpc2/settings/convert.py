"""From Hydra configurations to the packages' frozen settings, once, in the entry script.

`from_keys` makes any of them; the rest derives what no key says: paths, devices, widths, the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from tdmpc2.agent import resolve_device
from tdmpc2.data.labels import read_labels
from tdmpc2.distillation import (
    REWARD_PARTS,
    AnyTeacher,
    DatasetRewards,
    Teacher,
    load_committee,
    load_teacher,
    random_teacher,
)
from tdmpc2.errors import CheckpointError, UserError, printable
from tdmpc2.evaluation.runner import EvaluationSettings
from tdmpc2.execution import Execution
from tdmpc2.extraction import ExtractionSettings
from tdmpc2.fileio import safe_name
from tdmpc2.keys import check_keys, keys_in
from tdmpc2.losses import LossWeights
from tdmpc2.model import ALL_PARTS, ModelDims, Part, model_dims
from tdmpc2.objectives import OBJECTIVES, Objective, RewardDistillation
from tdmpc2.online import OnlineSettings
from tdmpc2.planner import PLANS, PlannerSettings
from tdmpc2.reporting.metrics import LoggingSettings
from tdmpc2.settings.schema import SHARED_DIMS, SIZE_DIMS, RunKeys
from tdmpc2.tasks import TaskSet, task_set
from tdmpc2.training import EndSettings, OptimiserSettings, Resume, TrainSettings, local_device

S = TypeVar("S")


def from_keys(cls: type[S], config: DictConfig, /, **others: Any) -> S:
    """An instance of frozen settings: its keys from the configuration, and `others`, which no key says or which differ.

    Keys that the program does not have keep their defaults.
    """
    given = {
        declared.name: tuple(config[held.name]) if isinstance(config[held.name], ListConfig) else config[held.name]
        for declared, held in keys_in(cls)
        if held.name in config
    }
    return cls(**{**given, **others})


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain Python, to be kept with a run and its checkpoints."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    recorded = _recorded(content)
    assert isinstance(recorded, dict)
    return recorded


def _recorded(value: Any) -> Any:
    """With infinity as the text that sets it ("inf"): JSON has no number for it."""
    if isinstance(value, dict):
        return {str(key): _recorded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_recorded(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def path_of(config: DictConfig, key: str) -> Path | None:
    """The path under a key, with `~` as the user's home; None where there is none."""
    given = config[key]
    if given is None:
        return None
    if not given or "\0" in given:
        raise UserError(f"{key} is {printable(given) or 'empty'}, expected a path; leave the key out, or give one.")
    return expanded(given)


def expanded(path: str) -> Path:
    """A path with `~` as the user's home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}; write the folder's whole path.") from error


def required(config: DictConfig, key: str) -> Path:
    """The path under a key that has no default; a UserError names it when it is not given."""
    found = None if OmegaConf.is_missing(config, key) else path_of(config, key)
    if found is None:
        raise UserError(f"{key} is not set: give {key}=… on the command line.")
    return found


def chosen_task_set(config: DictConfig) -> TaskSet | None:
    """The task set of the `task` group; None for `task=own`: the one that the checkpoint names."""
    if config.task.name is None:
        return None
    return task_set(config.task.name, config.task.tasks)


def result_name(checkpoint: Path) -> str:
    """The default name of what is made from a checkpoint: two runs' final.safetensors must not share one.

    A run's folder is `logs/<task>/<exp_name>/<what a sweep varies>/<seed>`: all of it below `logs` is in the name.
    """
    if checkpoint.parent.name != "checkpoints":
        return safe_name(checkpoint.stem)
    run = checkpoint.resolve().parents[1].parts[1:]
    below_logs = run[len(run) - run[::-1].index("logs") :] if "logs" in run else run[-4:]
    return safe_name("-".join([*below_logs, checkpoint.stem]))


def planner_settings(config: DictConfig) -> PlannerSettings:
    """The planner's numbers; every configuration holds them at its top, as the released ones do."""
    return from_keys(PlannerSettings, config)


def planning_of(config: DictConfig, **others: Any) -> dict[str, Any]:
    """How to plan, as `load_agent` takes it: planner, precision, compile, cudagraphs; `others` as in `from_keys`."""
    execution = from_keys(Execution, config, **others)
    PLANS.check_precision(execution.precision)
    return {"planner": planner_settings(config), **asdict(execution)}


def evaluation_settings(config: DictConfig, video_dir: Path | None) -> EvaluationSettings:
    """What to evaluate, from the configuration of evaluate.py or quantize.py."""
    return from_keys(EvaluationSettings, config, video_dir=video_dir)


def model_dims_of(config: DictConfig, tasks: TaskSet, shared: DictConfig) -> ModelDims:
    """Dimensions of the student or the teacher.

    Args:
        config: holds the keys of `settings.schema.ModelConfig`.
        tasks: gives the widths; a single task has no embedding, whatever task_dim says.
        shared: holds the keys that student and teacher have in common.
    """
    if config.model_size is None:
        raise UserError("model_size is not set: give the published size, such as model_size=1.")
    table = model_dims(config.model_size, tasks.obs_dim, tasks.action_dim, len(tasks))
    differing = {key: config[key] for key in SIZE_DIMS if config[key] is not None}
    if not tasks.multitask:
        differing.pop("task_dim", None)
    return replace(table, **differing, **{key: shared[key] for key in SHARED_DIMS})


def resume_mode(value: bool | str | None, sweep: bool) -> Resume:
    """What `resume` says: true, false or auto; by default auto in a sweep and false otherwise."""
    if value is None:
        return "auto" if sweep else "never"
    if value == "auto":
        return "auto"
    if not isinstance(value, bool):
        raise UserError(f"resume={printable(value)} is unknown; choose true, false or auto.")
    return "always" if value else "never"


def train_settings(config: DictConfig, run_dir: Path, *, sweep: bool = False) -> TrainSettings:
    """One run, from the configuration of train.py; `sweep` says that it is one of several."""
    tasks = chosen_task_set(config)
    if tasks is None:
        raise UserError("task=own is for evaluation: a run needs its task set, such as task=mt30.")
    return from_keys(
        TrainSettings,
        config,
        run_dir=run_dir,
        task_set=tasks,
        dims=model_dims_of(config, tasks, config),
        data_dir=required(config, "data_dir"),
        online=online_of(config),
        extraction=extraction_of(config),
        weights=from_keys(LossWeights, config),
        objectives=objectives_of(config),
        optimiser=from_keys(OptimiserSettings, config),
        execution=from_keys(Execution, config),
        device=local_device(resolve_device(config.device)),
        teacher_name=config.teacher.name,
        labels=_labels_to_train_from(config.teacher),
        checkpoint=path_of(config, "checkpoint"),
        resume=resume_mode(config.resume, sweep),
        evaluation=from_keys(EvaluationSettings, config, video_dir=run_dir / "videos" if config.save_video else None),
        end=from_keys(EndSettings, config),
        planner=planner_settings(config),
        logging=from_keys(LoggingSettings, config.logging),
        config=plain(config),
    )


def online_of(config: DictConfig) -> OnlineSettings | None:
    """How an online run acts; None for mode=offline.

    Raises:
        UserError: for a mode that is unknown, or data made for a run that makes its own.
    """
    check_keys(from_keys(RunKeys, config))
    folders = {name: path_of(config, name) for name in ("save_replay", "replay_from")}
    online = from_keys(OnlineSettings, config, **folders)
    if config.mode != "online":
        for name, folder in folders.items():
            if folder is not None:
                raise UserError(f"{name} is for the replay of an online run: add mode=online, or leave it out.")
        return None
    if config.make_data:
        raise UserError("make_data=true is for offline runs: mode=online makes its own data; set make_data=false.")
    if config.teacher.name in ("labels", "dataset"):
        raise UserError(
            f"teacher={config.teacher.name} reads a store, and mode=online has none before it ends: name a teacher "
            "with its checkpoint, or teacher=none."
        )
    return online


def extraction_of(config: DictConfig) -> ExtractionSettings | None:
    """What the policy prior is trained to do; None for another mode than extract.

    Raises:
        UserError: where there is no model to extract from.
    """
    labels = path_of(config, "imitate_labels")
    extraction = from_keys(ExtractionSettings, config, imitate_labels=labels)
    if labels is not None and (config.mode != "extract" or not extraction.e_imitate):
        raise UserError(f"imitate_labels={labels} is for mode=extract with e_imitate above 0; leave it out.")
    if config.mode != "extract":
        return None
    if config.checkpoint is None and config.resume in (None, False):
        raise UserError("mode=extract needs a trained model: give checkpoint=….")
    return extraction


def objectives_of(config: DictConfig) -> tuple[Objective, ...]:
    """Those whose coefficient is above 0; none for `teacher=none`, whatever d_coef says by default.

    Raises:
        UserError: when another one is asked for without a teacher.
    """
    known = [from_keys(kind, config) for kind in OBJECTIVES]
    for objective in known:
        check_keys(objective)
    chosen = tuple(objective for objective in known if objective.coef)
    if config.teacher.name != "none":
        return chosen
    for objective in chosen:
        if not isinstance(objective, RewardDistillation):
            raise UserError(
                f"{objective.name}={objective.coef:g} needs a teacher: name one, such as teacher=317M with "
                f"teacher.checkpoint=…, or leave {objective.name} out."
            )
    return ()


def _labels_to_train_from(teacher: DictConfig) -> Path | None:
    """The folder of `teacher=labels`; None for any other teacher, which has no use for one."""
    if teacher.name == "labels":
        if teacher.labels is None:
            raise UserError(
                "teacher=labels needs the labels: give teacher.labels=… (scripts/label.py makes them, by default in "
                "<data_dir>/labels/<teacher>)."
            )
        return path_of(teacher, "labels")
    if teacher.labels is not None:
        raise UserError(f"teacher.labels={teacher.labels} is for teacher=labels, not teacher={teacher.name}.")
    return None


def teacher_of(config: DictConfig, tasks: TaskSet, device: torch.device) -> AnyTeacher | None:
    """The teacher that the configuration names, or several, with the parts that its objectives ask.

    None for `teacher=none` and `teacher=labels`, and where no objective has a coefficient above 0.

    Raises:
        UserError: when a teacher is named without a checkpoint, or the labels are not the ones its other keys name.
        CheckpointError: when its checkpoint is of another size or task set.
    """
    if config.teacher.name == "none":
        _check_no_teacher(config.teacher)
        return None
    if config.teacher.name == "labels":
        _check_labels(config, tasks)
        return None
    if config.teacher.name == "dataset":
        _check_no_teacher(config.teacher)
        return DatasetRewards()
    objectives = objectives_of(config)
    if not objectives:
        return None
    parts = [part for part in ALL_PARTS if any(part in objective.parts for objective in objectives)]
    if config.teacher.checkpoints is None:
        return live_teacher(config, tasks, device, parts)
    if config.teacher.checkpoint is not None or config.teacher.random_weights:
        raise UserError("teacher.checkpoints are several teachers' files: leave teacher.checkpoint and random_weights.")
    if not config.teacher.checkpoints:
        raise UserError("teacher.checkpoints is empty, expected the file of at least one teacher.")
    return load_committee(
        [expanded(path) for path in config.teacher.checkpoints],
        tasks,
        task=None if config.teacher.task is None else task_set(config.teacher.task),
        device=device,
        precision=config.teacher.precision or "float32",
        parts=parts,
    )


def _check_no_teacher(teacher: DictConfig) -> None:
    """Raises a UserError for keys of a teacher where there is to be none."""
    given = [key for key in ("checkpoint", "checkpoints", "labels", "task", "precision") if teacher[key] is not None]
    given += ["random_weights"] if teacher.random_weights else []
    if given:
        raise UserError(
            f"teacher.{given[0]} is set, but teacher={teacher.name} trains without one: name the teacher, such as "
            "teacher=317M, or leave the key out."
        )


def _check_labels(config: DictConfig, tasks: TaskSet) -> None:
    """Raises a UserError unless the labels are of the weights and precision that the teacher's other keys name."""
    teacher = config.teacher
    if teacher.random_weights:
        raise UserError("teacher.random_weights is for a live teacher, not for teacher=labels.")
    path = _labels_to_train_from(teacher)
    assert path is not None
    facts = read_labels(path).facts
    if teacher.precision not in (None, facts.precision):
        raise UserError(
            f"{path}: its labels were made in {facts.precision}, not in teacher.precision={teacher.precision}; "
            "leave that key out, or give labels of that precision."
        )
    if teacher.checkpoint is None:
        return
    given = live_teacher(config, tasks, torch.device("cpu"))
    if given.checksum != facts.teacher_checksum:
        raise UserError(
            f"{path}: its labels were made by another teacher: {facts.teacher} with checksum {facts.teacher_checksum}, "
            f"not {teacher.checkpoint} with checksum {given.checksum}; give the labels of that teacher, or leave "
            "teacher.checkpoint out."
        )


def live_teacher(
    config: DictConfig, tasks: TaskSet, device: torch.device, parts: Collection[Part] = REWARD_PARTS
) -> Teacher:
    """The teacher with the weights that the `teacher` keys name, and these parts; raises as `teacher_of`."""
    teacher = config.teacher
    precision = teacher.precision or "float32"
    teacher_tasks = None if teacher.task is None else task_set(teacher.task)
    if teacher.checkpoints is not None:
        raise UserError("teacher.checkpoints are for training with several teachers; here give teacher.checkpoint.")
    if teacher.random_weights:
        dims = model_dims_of(teacher, teacher_tasks or tasks, config)
        return random_teacher(dims, teacher_tasks or tasks, tasks, config.seed, device, precision, parts)
    path = path_of(teacher, "checkpoint")
    several = teacher.name == "specialists"
    if path is None:
        raise UserError(
            f"teacher={teacher.name} needs its weights: give teacher.checkpoint{'s' * several}=… "
            "(scripts/download.py fetches the published ones), or teacher=none to train from scratch."
        )
    changed = any(teacher[key] is not None for key in SIZE_DIMS)
    loaded = load_teacher(
        path,
        tasks,
        task=teacher_tasks or tasks,
        model_size=None if changed else teacher.model_size,
        device=device,
        precision=precision,
        parts=parts,
    )
    if changed and teacher.model_size is not None:
        expected = model_dims_of(teacher, teacher_tasks or tasks, config)
        pairs = ((key, getattr(loaded.dims, key), getattr(expected, key)) for key in SIZE_DIMS)
        differing = [f"teacher.{key} {held} (not {wanted})" for key, held, wanted in pairs if held != wanted]
        if differing:
            raise CheckpointError(
                f"{teacher.checkpoint}: holds a model of {', '.join(differing)}; choose the teacher that it holds, "
                "or set the keys named to the file's."
            )
    return loaded
