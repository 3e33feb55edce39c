"""One training batch: slices of H+1 consecutive steps, laid out as the update reads them."""

from __future__ import annotations

from dataclasses import dataclass

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

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on `device`; with `non_blocking`, pinned memory is copied while the caller goes on."""
        return Batch(
            obs=self.obs.to(device, non_blocking=non_blocking),
            action=self.action.to(device, non_blocking=non_blocking),
            reward=self.reward.to(device, non_blocking=non_blocking),
            task=self.task.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, from which a CUDA device copies without the CPU waiting."""
        return Batch(
            obs=self.obs.pin_memory(),
            action=self.action.pin_memory(),
            reward=self.reward.pin_memory(),
            task=self.task.pin_memory(),
        )
