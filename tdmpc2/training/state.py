"""The training state on disk: what an interrupted run continues from.

<run folder>/
    run.lock             held while a process trains here
    state/latest.pt      the last whole state
    state/previous.pt    the one before, used if the last cannot be read
    checkpoints/         models by step, and final.safetensors
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc2.checkpointing.torchfile import read_torch_file
from tdmpc2.errors import CheckpointError, first_line, printable
from tdmpc2.fileio import atomic_file
from tdmpc2.training.identity import check_identity
from tdmpc2.training.learning import Learning

_VERSION = 1


@dataclass(frozen=True)
class TrainingState:
    """Updates done, the learner's state, that of its source of batches, and what may not change when a run resumes.

    `pending` says that the evaluation and checkpoint due after the last update were not done when it was written.
    """

    step: int
    learner: dict[str, Any]
    identity: dict[str, Any]
    pending: bool = False
    source: dict[str, Any] = field(default_factory=dict)


class StateFolder:
    """Writes and reads the training state of one run, whose folder this process has locked."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "state"
        self._latest = self.folder / "latest.pt"
        self._previous = self.folder / "previous.pt"
        self._latest_is_damaged = False

    def exists(self) -> bool:
        return self._latest.exists() or self._previous.exists()

    def save(self, state: TrainingState) -> None:
        """Writes the state whole; at every moment, and after any error, the last whole one is on disk.

        Tensors go straight to the file, one by one: no second copy of the state is made in memory.
        """
        content = {
            "version": _VERSION,
            "step": state.step,
            "learner": state.learner,
            "identity": state.identity,
            "pending": state.pending,
            **({"source": state.source} if state.source else {}),
        }
        with atomic_file(self._latest) as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
            # Only now: had the disk been full, both states would still be in their places.
            if self._latest_is_damaged:
                _set_aside(self._latest)
                self._latest_is_damaged = False
            elif self._latest.exists():
                self._latest.replace(self._previous)

    def load(self, identity: Mapping[str, Any] | None = None) -> TrainingState:
        """The last whole state: every byte of it has matched its checksum; of this identity, where one is given.

        Nothing is changed: where the one before takes a damaged one's place, `save` keeps that under another name.

        Raises:
            CheckpointError: when there is none that can be read.
            UserError: when it belongs to a run with other settings; names them.
        """
        problems: list[str] = []
        for path in (self._latest, self._previous):
            if not path.exists():
                continue
            try:
                state = _parsed(path, read_torch_file(path, mapped=False))
            except CheckpointError as error:
                problems.append(str(error))
                continue
            if identity is not None:
                check_identity(path, state.identity, identity)
            for problem in problems:
                self._latest_is_damaged = True
                print(f"warning: {problem} {path.name} takes its place.", file=sys.stderr)
            return state
        if not problems:
            raise CheckpointError(
                f"{self.folder}: no training state to resume from (none was written); start it without resume=true."
            )
        raise CheckpointError(
            f"{self.folder}: no training state to resume from ({' '.join(problems)}) They were left as they "
            "are: copy them again from where they came, or start another run (exp_name=…), with checkpoint=… from "
            "the folder's last checkpoint if you like."
        )

    def restore(self, learner: Learning, state: TrainingState) -> None:
        """Puts a loaded state into a learner of the same model; a `CheckpointError` if it does not fit."""
        odd = _misfit(state.learner, learner.state_dict(), "")
        if odd is None:
            try:
                learner.load_state_dict(state.learner)
                odd = _misfit_moments(learner)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                odd = first_line(error)
        if odd is not None:
            raise CheckpointError(
                f"{self.folder}: the training state does not fit this version's learner ({printable(odd)}); use the "
                "version that wrote it, or start another run (exp_name=…)."
            )


def _parsed(path: Path, content: object) -> TrainingState:
    match content:
        case {
            "version": int(version),
            "step": int(step),
            "learner": dict(learner),
            "identity": dict(identity),
            "pending": bool(pending),
            **others,
        } if version == _VERSION and type(step) is int and step >= 0:
            source = others.get("source", {})
            if isinstance(source, dict) and all(
                isinstance(key, str) and key.isprintable() for key in (*learner, *identity, *source)
            ):
                return TrainingState(step, learner, identity, pending, source)
        case {"version": int(version)} if version != _VERSION:
            raise CheckpointError(f"{path}: has version {version}, expected {_VERSION}.")
    raise CheckpointError(f"{path}: holds something other than a training state.")


def _set_aside(path: Path) -> None:
    """Renames a damaged state; never over one set aside earlier."""
    number = 1
    while (kept := path.with_suffix(f".damaged{number}")).exists():
        number += 1
    path.replace(kept)


def _misfit(saved: object, now: object, name: str) -> str | None:
    """What of a learner's state differs in structure from that of the learner at hand, None if nothing does."""
    if type(saved) is not type(now) and not (isinstance(saved, dict) and isinstance(now, dict)):
        return f"{name or 'it'} is a {type(saved).__name__}, expected {type(now).__name__}"
    if isinstance(saved, Tensor) and isinstance(now, Tensor):
        if saved.shape != now.shape or saved.dtype != now.dtype:
            return f"{name} is {saved.dtype} {list(saved.shape)}, expected {now.dtype} {list(now.shape)}"
    elif isinstance(saved, dict) and isinstance(now, dict):
        if name.endswith("_optimiser.state"):
            return None  # empty before the first update; see `_misfit_moments`
        if saved.keys() != now.keys():
            odd = sorted(str(key) for key in saved.keys() ^ now.keys())
            return f"{name or 'it'} has other entries: {', '.join(odd[:5])}"
        found = (_misfit(saved[key], now[key], f"{name}.{key}".lstrip(".")) for key in saved)
        return next((odd for odd in found if odd), None)
    elif isinstance(saved, list | tuple) and isinstance(now, list | tuple):
        if len(saved) != len(now):
            return f"{name} has {len(saved)} entries, expected {len(now)}"
        found = (_misfit(a, b, f"{name}.{i}") for i, (a, b) in enumerate(zip(saved, now, strict=True)))
        return next((odd for odd in found if odd), None)
    return None


def _misfit_moments(learner: Learning) -> str | None:
    """Adam takes over moments of any shape: here each must be its parameter's."""
    for optimiser in learner.optimisers:
        for parameter, entry in optimiser.state.items():
            for name, value in entry.items():
                if not isinstance(value, Tensor) or (name != "step" and value.shape != parameter.shape):
                    return f"{name} of a parameter of shape {list(parameter.shape)} has another shape"
    return None
