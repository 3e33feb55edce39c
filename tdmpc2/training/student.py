"""The student that a run trains."""

from __future__ import annotations

from dataclasses import replace

import torch

from tdmpc2.checkpointing import Checkpoint, checkpoint_task_set, read_checkpoint, require_float, require_whole
from tdmpc2.checkpointing.fewer_tasks import dims_of_fewer, weights_of_fewer
from tdmpc2.errors import CheckpointError
from tdmpc2.model import WorldModel
from tdmpc2.tasks import TASK_SETS, TaskSet, task_set
from tdmpc2.training.settings import TrainSettings


def new_student(settings: TrainSettings) -> WorldModel:
    """The student to train: new weights from the seed, or those of `checkpoint`, which may know more
    tasks, and be stored by the scheme that the run trains for.

    Raises:
        CheckpointError: when the file holds a model of other dimensions or tasks.
    """
    masks = settings.task_set.action_masks() if settings.task_set.multitask else None
    model = WorldModel(settings.dims, masks)
    if settings.checkpoint is None:
        model.init_weights(torch.Generator().manual_seed(settings.seed))
        return model.to(settings.device)
    source = read_checkpoint(settings.checkpoint)
    if source.scheme is None or source.scheme.name != settings.quantise_aware:  # else its weights are what passes see
        require_float(source, "training")
    require_whole(source, "training")
    had = _tasks_of(source, settings.task_set)
    # Released files say nothing of dropout and the like: those come from the configuration.
    shaped = replace(
        source.dims if had == settings.task_set else dims_of_fewer(source.dims, settings.task_set),
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
    weights = source.float32_tensors()
    if had != settings.task_set:
        weights = weights_of_fewer(weights, source.dims, had, settings.task_set)
        print(f"{source.path}: knows {len(had)} tasks, of which the run has {len(settings.task_set)}.")
    if "target_q_heads" not in source.parts:
        q_heads = {name: tensor for name, tensor in weights.items() if name.startswith("q_heads.")}
        weights |= {f"target_{name}": tensor for name, tensor in q_heads.items()}
        print(f"{source.path} has no target Q: it starts equal to Q.")
    model.load_state_dict(weights)
    return model.to(settings.device)


def _tasks_of(source: Checkpoint, wanted: TaskSet) -> TaskSet:
    """The tasks that a file knows: those of the run, or more.

    A released file does not name its tasks: where it is not of the run's, it is taken for one of a known set whose
    widths it has.
    """
    if source.metadata is not None and source.metadata.tasks != wanted.tasks:
        had = checkpoint_task_set(source)
    elif source.metadata is None and len(wanted) != max(source.dims.num_tasks, 1):
        known = [task_set(name) for name in TASK_SETS]
        fits = [s for s in known if len(s) == source.dims.num_tasks and s.obs_dim == source.dims.obs_dim]
        had = checkpoint_task_set(source, fits[0] if fits else wanted)
    else:
        return checkpoint_task_set(source, wanted)
    missing = [task for task in wanted.tasks if task not in had.tasks]
    if missing:
        raise CheckpointError(
            f"{source.path}: knows {len(had)} task{'s' if len(had) > 1 else ''} of '{had.name}', and not "
            f"{', '.join(missing)}; give a checkpoint of all the run's tasks, or leave these out."
        )
    return had
