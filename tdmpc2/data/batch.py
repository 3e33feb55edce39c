"""One training batch: slices of H+1 consecutive steps, laid out as the update reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import torch


@dataclass(frozen=True, eq=False)
class Batch:
    """B slices of H+1 steps (TD-MPC2, section 3).

    Step t of a slice holds the action and reward that led to its observation, so the first step's are left
    out: action[t] leads from obs[t] to obs[t + 1] and earns reward[t].
    """

    obs: torch.Tensor
    """float32 [H+1,B,O], zero-padded to the task set's width."""
    action: torch.Tensor
    """float32 [H,B,A], in [-1, 1], zero-padded likewise."""
    reward: torch.Tensor
    """float32 [H,B,1]."""
    task: torch.Tensor
    """int64 [B]: positions in the task set."""
    labels: torch.Tensor | None = None
    """float32 [H,B,1]: a teacher's rewards for the slices' actions, read from a column of labels."""
    planned: torch.Tensor | None = None
    """float32 [H+1,B,A]: what a planner would do in each observation, read from a column of labels; NaN where it was
    not asked."""
    targets: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What a teacher says for each distillation objective, as "objective.what": [...]; empty without a teacher."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on `device`; with `non_blocking`, pinned memory is copied while the caller goes on."""
        return self._each(lambda values: values.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, from which a CUDA device copies without the CPU waiting."""
        return self._each(torch.Tensor.pin_memory)

    def clone(self) -> Batch:
        """A copy in memory of its own."""
        return self._each(torch.Tensor.clone)

    def slices(self, positions: torch.Tensor) -> Batch:
        """Some of its slices: int64 [b] of their positions; without targets."""
        held = {name: values for name, values in self.tensors().items() if not name.startswith(_TARGETS)}
        return Batch.of({name: v.index_select(_slice_axis(name), positions) for name, v in held.items()})

    def followed_by(self, other: Batch) -> Batch:
        """Its slices and then another's, which holds the same things; neither has targets."""
        others = other.tensors()
        return Batch.of({n: torch.cat([v, others[n]], dim=_slice_axis(n)) for n, v in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those that it holds, by the names of the fields and "targets.<name>"; `of` makes the same batch of them."""
        held = {name: getattr(self, name) for name in _FIELDS}
        held |= {f"{_TARGETS}{name}": values for name, values in self.targets.items()}
        return {name: values for name, values in held.items() if values is not None}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Batch:
        """The batch whose `tensors` these are."""
        targets = {n.removeprefix(_TARGETS): values for n, values in tensors.items() if n.startswith(_TARGETS)}
        return cls(**{n: values for n, values in tensors.items() if not n.startswith(_TARGETS)}, targets=targets)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return Batch.of({name: change(values) for name, values in self.tensors().items()})


def _slice_axis(name: str) -> int:
    """The axis, of a field, that counts slices."""
    return 0 if name == "task" else 1


_FIELDS = tuple(declared.name for declared in fields(Batch) if declared.name != "targets")
_TARGETS = "targets."
