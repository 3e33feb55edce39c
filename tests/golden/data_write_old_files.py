"""Writes `data_tensordict_VERSION.pt` with an old release of tensordict, to test that its pickles are read.

pip install --no-deps --target DIR tensordict==0.1.2
PYTHONPATH=DIR python tests/golden/data_write_old_files.py 0.1.2

Releases taken: 0.1.2, 0.2.1, 0.3.2, 0.5.0 (one of each form of pickle), on torch 2.13.
"""

import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import torch
import torch.multiprocessing.reductions

# tensordict 0.3 to 0.5 import this name from torch, which no longer has it.
torch.multiprocessing.reductions.ForkingPickler = ForkingPickler

from tensordict import TensorDict  # noqa: E402

data = TensorDict(
    {
        "obs": torch.arange(18.0).reshape(2, 3, 3),
        "action": torch.arange(6.0).reshape(2, 3, 1) / 10,
        "reward": torch.arange(6.0).reshape(2, 3),
        "task": torch.tensor([[7, 7, 7], [29, 29, 29]], dtype=torch.int32),
    },
    batch_size=(2, 3),
    device="cpu",
)
torch.save(data.lock_(), Path(__file__).parent / f"data_tensordict_{sys.argv[1]}.pt")
