"""The numbers that an `EnvPool` and its workers share: one memory block, one row for each slot."""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 64


@dataclass(frozen=True)
class PoolLayout:
    """Sizes of the shared block: N slots, W workers, O and A the padded widths, frames (height, width) or
    None.
    """

    num_envs: int
    num_workers: int
    obs_dim: int
    action_dim: int
    frame_size: tuple[int, int] | None

    def fields(self) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
        n = self.num_envs
        frames = (0, 0, 0, 3) if self.frame_size is None else (n, *self.frame_size, 3)
        return {
            "obs": ((n, self.obs_dim), np.float32),
            "action": ((n, self.action_dim), np.float32),
            "reward": ((n,), np.float32),
            "done": ((n,), np.bool_),
            "seconds": ((n,), np.float64),
            "busy": ((max(self.num_workers, 1),), np.int32),
            "frames": (frames, np.uint8),
        }

    def num_bytes(self) -> int:
        return sum(_aligned(shape, dtype) for shape, dtype in self.fields().values())


class SharedArrays:
    """Views of one block: obs [N,O], action [N,A], reward [N] float32, done [N] bool, frames [N,h,w,3] uint8.

    `seconds` float64 [N] is what a decision of the slot's task lasts in the simulation.
    `busy` int32 [W] is the slot that each worker is at, -1 when it waits.
    """

    obs: NDArray[np.float32]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    done: NDArray[np.bool_]
    seconds: NDArray[np.float64]
    busy: NDArray[np.int32]
    frames: NDArray[np.uint8]

    def __init__(self, layout: PoolLayout, file_descriptor: int) -> None:
        """Maps the block behind `file_descriptor`, or for -1 a block that this process keeps to itself."""
        block = mmap.mmap(file_descriptor, layout.num_bytes())
        offset = 0
        for name, (shape, dtype) in layout.fields().items():
            count = int(np.prod(shape))
            setattr(self, name, np.frombuffer(block, dtype, count, offset).reshape(shape))
            offset += _aligned(shape, dtype)


def anonymous_file(num_bytes: int) -> int:
    """A file descriptor of `num_bytes` of memory that has no name.

    Nothing can be left behind: the memory is gone when the last process that holds it ends, however it ends.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("tdmpc2-envs")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, num_bytes)
    return descriptor


def _aligned(shape: tuple[int, ...], dtype: type[np.generic]) -> int:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return -(-size // _ALIGNMENT) * _ALIGNMENT
