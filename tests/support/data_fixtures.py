"""What the tests of the data package have in common: episodes that tell where they come from, and files of them."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tdmpc2.data.store import EpisodeStore
from tdmpc2.tasks import TaskSet

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
SHARED_CHUNK = ROOT.parent / "shared" / "golden" / "mt30_chunk_60eps.pt"
needs_shared_chunk = pytest.mark.skipif(
    not SHARED_CHUNK.is_file(), reason="the shared golden dataset file is not beside this checkout"
)


def make_episodes(tasks: TaskSet, ids: list[int], steps: int, obs_dim: int, action_dim: int) -> dict[str, np.ndarray]:
    """Episodes whose values name episode, step and column; NaN at step 0 as in the published files."""
    count = len(ids)
    place = np.arange(count)[:, None, None] * 1000 + np.arange(steps)[None, :, None]
    obs = (place + np.arange(obs_dim) / 100).astype(np.float32)
    for episode, task in enumerate(ids):
        obs[episode, :, tasks.obs_dims[task] :] = 0
    action = np.sin(place + np.arange(action_dim)).astype(np.float32)
    for episode, task in enumerate(ids):
        action[episode, :, tasks.action_dims[task] :] = 0
    reward = (place[:, :, 0] / 1000).astype(np.float32)
    for episode, task in enumerate(ids):
        action[episode, 0, : tasks.action_dims[task]] = np.nan
    reward[:, 0] = np.nan
    return {"obs": obs, "action": action, "reward": reward, "task": np.asarray(ids)}


def make_store(
    path: Path, tasks: TaskSet, ids: list[int], steps: int = 21, segments: int = 1, dtype: str = "float32"
) -> EpisodeStore:
    """A store of the task set's own widths with one episode for each id, added in `segments` segments."""
    store = EpisodeStore.create(path, tasks.tasks, tasks.obs_dim, tasks.action_dim, steps, dtype=dtype)
    episodes = make_episodes(tasks, ids, steps, tasks.obs_dim, tasks.action_dim)
    for part in np.array_split(np.arange(len(ids)), segments):
        store.append(**{key: value[part] for key, value in episodes.items()})
    return store


def padded(episode: dict[str, Any], obs_dim: int, action_dim: int) -> dict[str, np.ndarray]:
    """An episode of a store, which is in its task's own widths, padded with zeros."""
    steps = len(episode["reward"])
    obs, action = np.zeros((steps, obs_dim), np.float32), np.zeros((steps, action_dim), np.float32)
    obs[:, : episode["obs"].shape[1]] = episode["obs"]
    action[:, : episode["action"].shape[1]] = episode["action"]
    return {"obs": obs, "action": action, "reward": np.asarray(episode["reward"])}


def published_tensors(episodes: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The episodes as the published files hold them: the task id repeated for every step."""
    tensors = {key: torch.from_numpy(episodes[key].copy()) for key in ("obs", "action", "reward")}
    count, steps = episodes["reward"].shape
    tensors["task"] = torch.from_numpy(np.repeat(episodes["task"][:, None], steps, axis=1).astype(np.int32))
    assert tensors["task"].shape == (count, steps)
    return tensors


def save_published(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Writes a file in the published format with the installed tensordict."""
    torch.save(TensorDict(tensors, batch_size=tensors["obs"].shape[:2]), path)
    return path


@dataclass
class FakeStorage:
    """What torch's pickles name a storage by: its class, its member data/KEY and its number of elements."""

    kind: Any
    key: str
    numel: Any


@dataclass
class FakeTensor:
    """Pickles as a tensor does, with any arguments."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any
    maker: Any = torch._utils._rebuild_tensor_v2

    def __reduce__(self) -> tuple[Any, ...]:
        return self.maker, (self.storage, self.offset, self.shape, self.stride, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return ("storage", value.kind, value.key, "cpu", value.numel) if isinstance(value, FakeStorage) else None


def pickled(value: Any, protocol: int = 2) -> bytes:
    """`value` as torch.save would pickle it, fake tensors and storages included."""
    stream = io.BytesIO()
    _Pickler(stream, protocol=protocol).dump(value)
    return stream.getvalue()


def save_zip(path: Path, pickle_bytes: bytes, members: dict[str, bytes], compression: int = 0) -> Path:
    """A zip archive like torch.save's, with these bytes as its data.pkl."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return path


def run_script(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `python scripts/NAME …` from the root, as a user does."""
    return subprocess.run(
        [sys.executable, f"scripts/{name}", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
