"""The training state on disk: what an interrupted run continues from.

<run folder>/
    state/latest.pt      the last whole state
    state/previous.pt    the one before, used if the last cannot be read
    checkpoints/         models by step, and final.safetensors
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tdmpc2.errors import CheckpointError, UserError
from tdmpc2.fileio import atomic_write_bytes

_VERSION = 1


@dataclass(frozen=True)
class TrainingState:
    """Updates done, the learner's state, and the facts a run may not change when it resumes.

    `pending` says that the evaluation and checkpoint due after the last update were not done when it was written.
    """

    step: int
    learner: dict[str, Any]
    identity: dict[str, Any]
    pending: bool = False


class StateFolder:
    """Writes and reads the training state of one run."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "state"
        self._latest = self._folder / "latest.pt"
        self._previous = self._folder / "previous.pt"

    def exists(self) -> bool:
        return self._latest.exists() or self._previous.exists()

    def save(self, state: TrainingState) -> None:
        """Writes the state whole; at every moment a whole one is on disk."""
        buffer = io.BytesIO()
        torch.save(
            {
                "version": _VERSION,
                "step": state.step,
                "learner": state.learner,
                "identity": state.identity,
                "pending": state.pending,
            },
            buffer,
        )
        if self._latest.exists():
            self._latest.replace(self._previous)
        atomic_write_bytes(self._latest, buffer.getvalue())

    def load(self, identity: Mapping[str, Any]) -> TrainingState:
        """The last whole state.

        Raises:
            CheckpointError: when there is none that can be read.
            UserError: when it belongs to a run with other settings; names them.
        """
        problems = []
        for path in (self._latest, self._previous):
            if not path.exists():
                continue
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
                if content["version"] != _VERSION:
                    raise CheckpointError(f"version {content['version']}, expected {_VERSION}")
                state = TrainingState(content["step"], content["learner"], content["identity"], content["pending"])
            except Exception as error:  # torch raises many types on damaged archives
                problems.append(f"{path}: {(str(error).strip().splitlines() or [type(error).__name__])[0]}")
                print(f"warning: cannot read the state {problems[-1]}", file=sys.stderr)
                # Out of the way: the next save must not put it in the place of the good one before it.
                path.replace(path.with_suffix(".damaged"))
                continue
            _check_identity(path, state.identity, identity)
            return state
        found = "; ".join(problems) or "none was written"
        raise CheckpointError(
            f"{self._folder}: no training state to resume from ({found}); start it without resume=true."
        )


def _check_identity(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = [
        f"{key} was {saved.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    ]
    if differing:
        raise UserError(
            f"{path}: cannot resume with other settings: {'; '.join(differing)}. "
            "Set them back, or start another run with another exp_name."
        )
