"""What a run needs, read and checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from tdmpc2.data.source import BatchSource
from tdmpc2.distillation import AnyTeacher, Committee, LabelledRewards, Lessons, Teacher
from tdmpc2.errors import UserError
from tdmpc2.extraction import check_planned
from tdmpc2.memory import check_memory
from tdmpc2.model import ModelDims, WorldModel, model_bytes, update_bytes
from tdmpc2.objectives import Objective
from tdmpc2.quantisation import scheme_named
from tdmpc2.training.finite import FiniteWatch
from tdmpc2.training.identity import check_identity, content_identity, resumed_start, start_identity
from tdmpc2.training.interrupt import Interrupt
from tdmpc2.training.learner import Learner
from tdmpc2.training.learning import Learning
from tdmpc2.training.policy_learner import PolicyLearner
from tdmpc2.training.ranks import Ranks
from tdmpc2.training.resuming import found_state
from tdmpc2.training.settings import TrainSettings
from tdmpc2.training.sources import RunData, run_data
from tdmpc2.training.state import StateFolder, TrainingState
from tdmpc2.training.student import new_student

_VOTE_FREQ = 10


@dataclass(frozen=True)
class PreparedRun:
    """A run that can begin.

    Attributes:
        settings: what it was told.
        ranks: the processes that train it together.
        lessons: what a teacher says of every batch; None without one.
        learner: as new, or as the state left it.
        data: what its batches come from.
        states: where its state is kept.
        identity: what it may not change when it resumes.
        state: what it goes on from; None for a new run.
        watch: finds the first update whose numbers are not finite.
    """

    settings: TrainSettings
    ranks: Ranks
    lessons: Lessons | None
    learner: Learning
    data: RunData
    states: StateFolder
    identity: dict[str, Any]
    state: TrainingState | None
    watch: FiniteWatch

    @property
    def start(self) -> int:
        """Updates done already."""
        return 0 if self.state is None else self.state.step

    @property
    def pending(self) -> bool:
        """Whether what is due after the last update was not done when the state was written."""
        return self.state is not None and self.state.pending

    def open_batches(self, interrupt: Interrupt) -> BatchSource:
        """The source of batches from the first update to do on."""
        state = None if self.state is None else self.state.source
        return self.data.open(self.learner.model, self.start, state, lambda: interrupt.signal is not None)

    def asked_to_stop(self, step: int, interrupt: Interrupt) -> bool:
        """Whether a signal came. Several processes must stop at the same step, and asking waits for the device."""
        if self.ranks.size > 1 and step % _VOTE_FREQ:
            return False
        return self.ranks.any(interrupt.signal is not None, self.settings.device)


def prepare(settings: TrainSettings, teacher: AnyTeacher | None, ranks: Ranks) -> PreparedRun:
    """Reads and checks the state, the data, the labels and the student.

    Raises:
        UserError: for a folder that holds another run, data or labels that do not fit, or too little memory.
        CheckpointError: for a state or a first checkpoint that cannot be read or does not fit.
    """
    states = StateFolder(settings.run_dir)
    state = found_state(settings, states)
    if isinstance(teacher, Teacher | Committee):
        teacher.check_frozen()
    part = ranks.part(settings.batch_size)
    _check_memory(settings, ranks)

    if settings.extraction is not None and ranks.size > 1:
        raise UserError("mode=extract runs in one process: start it without torchrun.")
    data = run_data(settings, state, ranks)
    content = content_identity(data.store, teacher, data.labels, data.planned)
    if state is None:
        student = new_student(settings)
        identity = settings.identity() | start_identity(settings.checkpoint) | content
    else:
        identity = settings.identity() | resumed_start(state.identity, settings.checkpoint) | content
        check_identity(states.folder, state.identity, identity)
        if state.step > settings.updates:
            raise UserError(
                f"{settings.run_dir} is at step {state.step:,} already, beyond steps={settings.steps:,}"
                f"{'' if settings.online is None else f' decisions with {settings.utd:g} updates each'}."
            )
        # A resumed student's weights are in the state; the file it once started from need not be there any more.
        student = new_student(replace(settings, checkpoint=None))

    if data.planned is not None:
        check_planned(data.planned, student, settings.task_set)
    source = teacher if data.labels is None else LabelledRewards()
    if settings.objectives and source is None:
        raise UserError(f"{settings.objectives[0].name} needs a teacher, and this run has none.")
    objectives = settings.objectives
    for dims in _dims_of(teacher):
        objectives = tuple(objective.bound(student.dims, dims, settings.seed) for objective in objectives)
    lessons = None
    if source is not None:
        lessons = Lessons(source, objectives, settings.seed, settings.batch_size, part)
    learner = _learner(settings, student, ranks, objectives, state)
    if state is not None:
        states.restore(learner, state)
    elif lessons is not None and lessons.fits:
        if data.whole is None:
            raise UserError(
                f"{lessons.fits} is fitted on data before the first update, which an online run does not have; leave "
                "it out, or train from the store that such a run leaves (mode=offline data_dir=…)."
            )
        lessons.fit(data.whole())  # every process sees the whole batches, so that all fit the same
    return PreparedRun(
        settings=settings,
        ranks=ranks,
        lessons=lessons,
        learner=learner,
        data=data,
        states=states,
        identity=identity,
        state=state,
        watch=FiniteWatch(data.drawn, settings.device),
    )


def _dims_of(teacher: AnyTeacher | None) -> tuple[ModelDims | None, ...]:
    if isinstance(teacher, Committee):
        return teacher.all_dims
    return (teacher.dims if isinstance(teacher, Teacher) else None,)


def _learner(
    settings: TrainSettings,
    student: WorldModel,
    ranks: Ranks,
    objectives: tuple[Objective, ...],
    state: TrainingState | None,
) -> Learning:
    """As new; what `state` holds is still to be put into it."""
    discounts = torch.from_numpy(settings.task_set.discounts())
    if settings.extraction is not None:
        return PolicyLearner(
            student,
            discounts,
            settings.extraction,
            settings.optimiser,
            settings.weights.entropy_coef,
            settings.updates,
            settings.seed,
            settings.execution,
            objectives,
        )
    return Learner(
        student,
        discounts,
        settings.weights,
        settings.optimiser,
        settings.seed,
        settings.execution,
        ranks,
        objectives,
        measure_scale=settings.checkpoint is not None if state is None else "scale_updates" in state.learner,
        scheme=None if settings.quantise_aware is None else scheme_named(settings.quantise_aware),
    )


def _check_memory(settings: TrainSettings, ranks: Ranks) -> None:
    """Raises a `UserError` where the model, or an update of it on a CPU, cannot fit into this machine's memory."""
    d = settings.dims
    widths = f"enc_dim={d.enc_dim}, mlp_dim={d.mlp_dim}, latent_dim={d.latent_dim}, num_q={d.num_q}"
    on_cpu = settings.device.type == "cpu"
    check_memory(
        f"a model of {widths}", model_bytes(d, training=on_cpu), "choose a smaller model_size, or lower these keys"
    )
    if on_cpu:
        size = settings.batch_size // ranks.size
        check_memory(
            f"an update of batch_size={settings.batch_size}, horizon={settings.horizon}",
            update_bytes(d, size, settings.horizon),
            "lower batch_size",
        )
