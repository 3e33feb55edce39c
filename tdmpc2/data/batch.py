"""One training batch: slices of H+1 consecutive steps, laid out as the update reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

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
    teacher_reward: torch.Tensor | None = None
    """float32 [B,1]: the frozen teacher's rewards for (obs[0], action[0]); None to train without a teacher."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on `device`; with `non_blocking`, pinned memory is copied while the caller goes on."""
        return self._each(lambda values: values.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, from which a CUDA device copies without the CPU waiting."""
        return self._each(torch.Tensor.pin_memory)

    def clone(self) -> Batch:
        """A copy in memory of its own."""
        return self._each(torch.Tensor.clone)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those that it holds, by the names of the fields: `Batch(**batch.tensors())` is the same batch."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: values for name, values in held.items() if values is not None}

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return Batch(
            obs=change(self.obs),
            action=change(self.action),
            reward=change(self.reward),
            task=change(self.task),
            teacher_reward=None if self.teacher_reward is None else change(self.teacher_reward),
        )
