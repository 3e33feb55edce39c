"""Checkpoints on disk: every released format in, this project's safetensors in and out."""

from tdmpc2.checkpointing.files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    Checkpoint,
    build_model,
    check_size,
    checkpoint_metadata,
    checkpoint_task_set,
    load_model,
    metadata_text,
    read_checkpoint,
    require_float,
    require_whole,
    save_checkpoint,
)
from tdmpc2.checkpointing.metadata import CheckpointMetadata
from tdmpc2.versions import package_versions

__all__ = [
    "CONFIG_NAME",
    "WEIGHTS_NAME",
    "Checkpoint",
    "CheckpointMetadata",
    "build_model",
    "check_size",
    "checkpoint_metadata",
    "checkpoint_task_set",
    "load_model",
    "metadata_text",
    "package_versions",
    "read_checkpoint",
    "require_float",
    "require_whole",
    "save_checkpoint",
]
