"""Whether a run folder holds a run, and what `resume` makes of it."""

from __future__ import annotations

from pathlib import Path

from tdmpc2.errors import UserError
from tdmpc2.training.identity import check_identity
from tdmpc2.training.settings import TrainSettings
from tdmpc2.training.state import StateFolder, TrainingState

CHECKPOINTS = "checkpoints"
FINAL_NAME = "final.safetensors"


def finished_run(settings: TrainSettings) -> Path | None:
    """The final checkpoint of a run that has ended as `settings` want it, so that resume=auto has nothing to do.

    Raises:
        UserError: when the folder holds a run of other settings.
    """
    final = settings.run_dir / CHECKPOINTS / FINAL_NAME
    states = StateFolder(settings.run_dir)
    if settings.resume != "auto" or not final.exists() or not states.exists():
        return None
    state = states.load()
    if state.step != settings.updates or state.pending:
        return None
    of_settings = settings.identity()
    check_identity(states.folder, {key: state.identity.get(key) for key in of_settings}, of_settings)
    return final


def found_state(settings: TrainSettings, states: StateFolder) -> TrainingState | None:
    """The state to go on from; None to start a new run.

    Raises:
        UserError: when the folder holds a run that `settings.resume` does not go on with.
    """
    if settings.resume == "always" or (settings.resume == "auto" and states.exists()):
        return states.load()
    kept = sorted(path.name for path in (settings.run_dir / CHECKPOINTS).glob("*.safetensors"))
    if states.exists():
        raise UserError(
            f"{settings.run_dir} holds a training run already: continue it with resume=true, "
            "or choose another exp_name or seed."
        )
    if kept:
        raise UserError(
            f"{settings.run_dir} holds checkpoints of an earlier run ({', '.join(kept[:3])}), which this one would "
            "replace: choose another exp_name or seed, or move them away."
        )
    return None
