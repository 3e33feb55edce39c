"""Several processes that train one model together, started by torchrun: each updates on its part of every batch.

What one process computes from the whole batch (mean gradients, the running scale's percentiles, metrics) is put
together from the parts, so that the update stays that of the whole batch on one process, but for rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from tdmpc2.errors import UserError

_TIMEOUT = timedelta(hours=12)
"""Others wait while the first process evaluates; torch's own limit of 10 to 30 minutes would end them."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among those of the run; the default is a run of one."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes, logs and evaluates."""
        return self.rank == 0

    def part(self, batch_size: int) -> slice:
        """This process's slices of a batch.

        Raises:
            UserError: when the batch cannot be shared out evenly.
        """
        if batch_size % self.size:
            raise UserError(f"batch_size {batch_size} cannot be shared out evenly over {self.size} processes.")
        count = batch_size // self.size
        return slice(self.rank * count, (self.rank + 1) * count)

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by their mean over all processes, in one exchange."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def gather(self, values: Tensor) -> Tensor:
        """[b, ...] of every process -> [size * b, ...], in the batch's order."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it holds for one of them at least."""
        if self.size == 1:
            return flag
        votes = torch.tensor(float(flag), device=device)
        dist.all_reduce(votes)
        return bool(votes > 0)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process: its place on this machine names it, unless a number was given."""
    if device.type != "cuda" or device.index is not None or not launched():
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun started, over NCCL on GPUs and gloo elsewhere; a run of one without torchrun."""
    if not launched():
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
