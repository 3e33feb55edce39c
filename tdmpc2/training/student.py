"""The student that a run trains."""

from __future__ import annotations

from dataclasses import replace

import torch

from tdmpc2.checkpointing import build_model, checkpoint_task_set, read_checkpoint, require_float
from tdmpc2.errors import CheckpointError
from tdmpc2.model import WorldModel
from tdmpc2.training.settings import TrainSettings


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
