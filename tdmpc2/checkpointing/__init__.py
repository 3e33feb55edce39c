"""Checkpoints on disk: every released format in, this project's safetensors in and out."""

from tdmpc2.checkpointing.files import (
    Checkpoint,
    build_model,
    check_size,
    checkpoint_metadata,
    checkpoint_task_set,
    load_model,
    read_checkpoint,
    require_float,
    require_whole,
    save_checkpoint,
)
from tdmpc2.checkpointing.metadata import CheckpointMetadata
from tdmpc2.versions import package_versions

__all__ = [
    "Checkpoint",
    "CheckpointMetadata",
    "build_model",
    "check_size",
    "checkpoint_metadata",
    "checkpoint_task_set",
    "load_model",
    "package_versions",
    "read_checkpoint",
    "require_float",
    "require_whole",
    "save_checkpoint",
]
