"""The data package measured: import, memory, opening, verifying, batches from memory and the disk, alternatives.

python benchmarks/data.py import --published chunk_0.pt           # a file in the published format, see below
python benchmarks/data.py open verify warm cold --store data/mt30
python benchmarks/data.py layouts gathers torchrl --episodes 15000 --json data.json

A file and a store to measure with: python scripts/synthesise.py. Batches are 256 slices of 4 steps. Sections:

import   the time of scripts/import_data.py, program start and fsync included, beside that of copying the same file
         (read, write, fsync), with the file in the page cache and dropped from it; and the import's peak memory
open     in a fresh process: opening, mapping, making the sampler, and what memory that takes besides the files
verify   reading the store and comparing all checksums
warm     batches from the page cache, which the whole store is read into first: the first ones, which also enter the
         pages into the process's table, and the later ones; and with the prefetcher's threads
cold     batches right after the store was dropped from the page cache, announced to the system and not
layouts  the same episodes as rows padded to the widest task in one file, as separate padded files of observations,
         actions and rewards, and as this store in float32 and float16; from memory and from the disk
gathers  ways to pick a batch out of this store's rows, from memory
torchrl  the same episodes in torchrl's ReplayBuffer with a SliceSampler, in memory and memory-mapped

Data counts as dropped from the page cache when mincore finds none of its pages after fsync and POSIX_FADV_DONTNEED.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import mmap
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tdmpc2.data.sampler import Prefetcher, SliceSampler
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import UserError, run_program
from tdmpc2.evaluation.results import this_machine
from tdmpc2.fileio import atomic_write_text
from tdmpc2.reporting.tables import format_table
from tdmpc2.tasks import TaskSet, task_set
from tdmpc2.versions import package_versions

MT30 = task_set("mt30")
BATCH, HORIZON, LENGTH = 256, 3, 4
ROOT = Path(__file__).resolve().parent.parent
_IO_BYTES = 16 << 20

Row = dict[str, Any]


# -- measuring -------------------------------------------------------------------------------------------------------


def drop_from_cache(path: Path) -> None:
    """A `UserError` if pages of the file stay in memory, as those that are mapped do."""
    gc.collect()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    if (left := resident(path)) > 0:
        raise UserError(f"{path}: {left:.1%} of it stayed in the page cache; end what else has it mapped.")


def resident(path: Path) -> float:
    """The fraction of a file's pages that the page cache holds (mincore)."""
    content = np.memmap(path, np.uint8, mode="r")
    pages = np.zeros(-(-content.size // 4096), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    address, size = ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(content.size)
    if libc.mincore(address, size, pages.ctypes.data_as(ctypes.c_void_p)) != 0:
        raise OSError(ctypes.get_errno(), "mincore")
    return float((pages & 1).mean())


def read_through(path: Path) -> float:
    """Reads a file once, which puts it into the page cache; seconds."""
    buffer = memoryview(bytearray(_IO_BYTES))
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def private_memory(pid: int | str = "self") -> int:
    """Bytes of anonymous and shared memory, without mapped files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return (int(sizes["RssAnon"]) + int(sizes["RssShmem"])) * 1024


def disk_waits() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def batches_per_second(draw: Callable[[int], object], first: int, seconds: float, count: int = 1 << 60) -> Row:
    """Draws steps from `first` on for so many seconds, or `count` of them. The median is of blocks of 50."""
    faults, blocks, done = disk_waits(), [], 0
    begun = time.perf_counter()
    while (now := time.perf_counter()) - begun < seconds and done < count:
        block = min(50, count - done)
        for _ in range(block):
            draw(first + done)
            done += 1
        blocks.append(block / (time.perf_counter() - now))
    total = time.perf_counter() - begun
    return {
        "batches": done,
        "batches/s": done / total,
        "median/s": statistics.median(blocks),
        "disk waits": disk_waits() - faults,
    }


def in_turns(ways: dict[str, Callable[[int], object]], seconds: float, rounds: int = 5) -> dict[str, float]:
    """Medians of several ways to draw, each timed in every round, so that a slow moment of the machine hits all."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for draw in ways.values():
        batches_per_second(draw, 0, 1e9, 4000)
    for number in range(rounds):
        for name, draw in ways.items():
            rates[name].append(batches_per_second(draw, 4000 + 2000 * number, seconds / rounds)["median/s"])
    return {name: statistics.median(values) for name, values in rates.items()}


def show(title: str, rows: list[Row]) -> None:
    def text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[text(row.get(column, "-")) for column in columns] for row in rows]
    print(f"\n{title}\n{format_table(columns, cells, align='l' + 'r' * (len(columns) - 1))}", flush=True)


# -- import ----------------------------------------------------------------------------------------------------------


def copy(source: Path, target: Path) -> float:
    """Seconds to read, write and fsync."""
    buffer = memoryview(bytearray(_IO_BYTES))
    start = time.perf_counter()
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as written:
        while size := read.readinto(buffer):
            written.write(buffer[:size])
        os.fsync(written.fileno())
    return time.perf_counter() - start


def run_import(published: Path, store: Path, dtype: str) -> tuple[float, int]:
    """Seconds and peak bytes of scripts/import_data.py."""
    command = [sys.executable, str(ROOT / "scripts/import_data.py"), str(published)]
    command += ["--store", str(store), "--dtype", dtype]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        program = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)})
        peak, done = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.02):
                try:
                    peak = max(peak, private_memory(program.pid))
                except (OSError, KeyError):  # it has just ended
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = program.wait()
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
        if code != 0:
            log.seek(0)
            raise UserError(f"the import failed: {log.read().decode()[-500:]}")
    return seconds, peak


def measure_import(published: Path, scratch: Path) -> list[Row]:
    size, rows = published.stat().st_size, []
    for cache in ("dropped", "held"):
        jobs: dict[str, Callable[[], tuple[float, int]]] = {
            "copy": lambda: (copy(published, scratch / "copy"), 0),
            "import float32": lambda: run_import(published, scratch / "store", "float32"),
            "import float16": lambda: run_import(published, scratch / "store", "float16"),
        }
        copied = 0.0
        for name, job in jobs.items():
            if cache == "dropped":
                drop_from_cache(published)
            else:
                read_through(published)
            seconds, peak = job()
            copied = seconds if name == "copy" else copied
            shutil.rmtree(scratch / "store", ignore_errors=True)
            (scratch / "copy").unlink(missing_ok=True)
            row = {"": name, "file in the cache": cache, "s": seconds, "MB/s of the file": size / seconds / 1e6}
            rows.append({**row, "x copy's speed": copied / seconds, "peak MB": peak / 1e6 if peak else "-"})
    return rows


# -- one store -------------------------------------------------------------------------------------------------------


def measure_open(path: Path) -> list[Row]:
    """Each in a fresh process, after the header and the columns were read once; then with all files dropped."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from benchmarks.data import *\n"
        "before, t0 = private_memory(), time.perf_counter()\n"
        "store = EpisodeStore.open(sys.argv[1]); t1 = time.perf_counter()\n"
        "sampler = SliceSampler(store, MT30, BATCH, HORIZON, 1); t2 = time.perf_counter()\n"
        "sampler.batch(0); t3 = time.perf_counter()\n"
        "for step in range(1, 500): sampler.batch(step)\n"
        "print(t1 - t0, t2 - t1, t3 - t2, private_memory() - before)"
    )
    rows = []
    for cache in ("held", "dropped"):
        runs = []
        for _ in range(3):
            for file in path.iterdir():
                if cache == "dropped" and file.stat().st_size:
                    drop_from_cache(file)
            done = subprocess.run(
                [sys.executable, "-c", code, str(path), str(ROOT)], capture_output=True, text=True, check=True
            )
            runs.append([float(value) for value in done.stdout.split()])
        opened, made, first, memory = (statistics.median(values) for values in zip(*runs, strict=True))
        rows.append(
            {
                "": f"page cache: {cache}",
                "open ms": opened * 1e3,
                "map, make sampler ms": made * 1e3,
                "first batch ms": first * 1e3,
                "own memory after 500 batches, MB": memory / 1e6,
            }
        )
    return rows


def measure_verify(path: Path) -> list[Row]:
    rows = []
    for cache in ("held", "dropped"):
        read_through(path / "rows.bin")
        if cache == "dropped":
            drop_from_cache(path / "rows.bin")
        store = EpisodeStore.open(path)
        start = time.perf_counter()
        size = store.verify()
        seconds = time.perf_counter() - start
        rows.append({"": f"page cache: {cache}", "s": seconds, "MB/s": size / seconds / 1e6})
    return rows


def measure_warm(path: Path, seconds: float) -> list[Row]:
    file = path / "rows.bin"
    first = resident(file)
    took = read_through(file)
    size = file.stat().st_size
    print(f"{file}: {first:.0%} in the page cache; read in {took:.1f} s, {size / took / 1e6:,.0f} MB/s; then ", end="")
    print(f"{resident(file):.0%}", flush=True)
    sampler = SliceSampler(EpisodeStore.open(path), MT30, BATCH, HORIZON, 1)
    rows = [{"": "first 1,000 batches", **batches_per_second(sampler.batch, 0, 1e9, 1000)}]
    for step in range(1000, 9000):
        sampler.batch(step)
    rows.append({"": "after 9,000 batches", **batches_per_second(sampler.batch, 9000, seconds)})
    for threads in (1, 2):
        with Prefetcher(sampler, "cpu", start_step=50_000, depth=8, threads=threads) as batches:
            rate = batches_per_second(lambda _, ready=batches: next(ready), 0, seconds)  # type: ignore[misc]
            del rate["disk waits"]  # those of the thread that waits for batches
            rows.append({"": f"prefetcher, threads: {threads}", **rate})
    return rows


def cold_run(path: Path, announced: bool, threads: int, seconds: float) -> Row:
    """A function apart: what is mapped cannot be dropped, so nothing of it must outlive the run."""
    store = EpisodeStore.open(path)
    if not announced:
        store.will_read = lambda first, count: None  # type: ignore[method-assign]
    sampler = SliceSampler(store, MT30, BATCH, HORIZON, 1)
    with Prefetcher(sampler, "cpu", depth=8, threads=threads) as batches:
        start = time.perf_counter()
        next(batches)
        first = time.perf_counter() - start
        rate = batches_per_second(lambda _: next(batches), 0, seconds)
    del rate["disk waits"]  # those of the thread that waits for batches
    name = f"{'announced' if announced else 'not announced'}, threads: {threads}"
    return {"": name, "first batch ms": first * 1e3, **rate}


def measure_cold(path: Path, seconds: float) -> list[Row]:
    rows = []
    for announced, threads in ((True, 1), (True, 2), (False, 1), (False, 2)):
        drop_from_cache(path / "rows.bin")
        row = cold_run(path, announced, threads, seconds)
        rows.append({**row, "then in the cache": f"{resident(path / 'rows.bin'):.0%}"})
    return rows


# -- alternatives ----------------------------------------------------------------------------------------------------


def make_store(path: Path, episodes: int, dtype: str) -> EpisodeStore:
    command = [sys.executable, str(ROOT / "scripts/synthesise.py"), "--store", str(path), "--episodes", str(episodes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--dtype", dtype], check=True, env=environment, stdout=subprocess.DEVNULL)
    return EpisodeStore.open(path)


def write_padded(scratch: Path) -> None:
    """The alternatives' files, from the store in float32: all columns padded to the widest task."""
    store = EpisodeStore.open(scratch / "float32")
    with contextlib.ExitStack() as stack:
        rows, *separate = (
            stack.enter_context((scratch / f"{name}.bin").open("wb")) for name in ("padded", "obs", "action", "reward")
        )
        for first in range(0, len(store), 256):
            block = store.read_episodes(first, min(first + 256, len(store)))
            values = block.obs, block.action, block.reward[..., None]
            np.concatenate(values, axis=-1).tofile(rows)
            for file, part in zip(separate, values, strict=True):
                part.tofile(file)


def runs_of(file: Path, length: int) -> npt.NDArray[np.float32]:
    """Every run of so many values of a file, [runs, length], without reading any; mapped as the store maps its rows."""
    with file.open("rb") as content:
        mapping = mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ)
    mapping.madvise(mmap.MADV_RANDOM)
    return np.lib.stride_tricks.sliding_window_view(np.frombuffer(mapping, np.float32), length)


class Padded:
    """Rows padded to the widest task, in one file: a batch is one gather of whole runs."""

    def __init__(self, scratch: Path) -> None:
        self.files = [scratch / "padded.bin"]
        self._width = MT30.obs_dim + MT30.action_dim + 1
        self._runs = runs_of(self.files[0], LENGTH * self._width)

    def batch(self, episodes: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> object:
        rows = self._runs[(episodes * (MT30.episode_steps[0] + 1) + starts) * self._width]
        rows, o = rows.reshape(len(episodes), LENGTH, -1).swapaxes(0, 1), MT30.obs_dim
        return [np.ascontiguousarray(x) for x in (rows[..., :o], rows[1:, :, o:-1], rows[1:, :, -1:])]


class Separate:
    """Observations, actions and rewards in a padded file each."""

    def __init__(self, scratch: Path) -> None:
        self.files = [scratch / f"{key}.bin" for key in ("obs", "action", "reward")]
        self._widths = (MT30.obs_dim, MT30.action_dim, 1)
        self._lengths = (LENGTH, LENGTH - 1, LENGTH - 1)
        self._runs = [runs_of(f, n * w) for f, n, w in zip(self.files, self._lengths, self._widths, strict=True)]

    def batch(self, episodes: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> object:
        out = []
        for runs, width, length in zip(self._runs, self._widths, self._lengths, strict=True):
            rows = runs[(episodes * (MT30.episode_steps[0] + 1) + starts + LENGTH - length) * width]
            out.append(np.ascontiguousarray(rows.reshape(len(episodes), length, width).swapaxes(0, 1)))
        return out


class TaskWidths:
    """The store's sampler, without announcing: all layouts are read in the plain way."""

    def __init__(self, path: Path) -> None:
        self.files = [path / "rows.bin"]
        self._sampler = SliceSampler(EpisodeStore.open(path), MT30, BATCH, HORIZON, 1)
        self._sampler.store.will_read = lambda first, count: None  # type: ignore[method-assign]

    def batch(self, episodes: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> object:
        return self._sampler.slices(episodes, starts)


def measure_layouts(episodes: int, scratch: Path, seconds: float) -> list[Row]:
    for dtype in ("float32", "float16"):
        make_store(scratch / dtype, episodes, dtype)
    transitions = episodes * (MT30.episode_steps[0] + 1)
    rng = np.random.default_rng(0)
    drawn = [(rng.integers(episodes, size=BATCH), rng.integers(498, size=BATCH)) for _ in range(8000)]
    kinds: dict[str, Callable[[], Padded | Separate | TaskWidths]] = {
        "padded rows": lambda: Padded(scratch),
        "three padded files": lambda: Separate(scratch),
        "own widths, float32": lambda: TaskWidths(scratch / "float32"),
        "own widths, float16": lambda: TaskWidths(scratch / "float16"),
    }
    write_padded(scratch)
    rows = []
    for name, make in kinds.items():
        files = make().files
        for file in files:
            drop_from_cache(file)
        cold = cold_layout(make(), drawn[:50])
        size = sum(file.stat().st_size for file in files)
        for file in files:
            read_through(file)
        about = {"": name, "GB": size / 1e9, "bytes a transition": size / transitions}
        rows.append({**about, "cold /s": cold["batches/s"], "disk waits a batch": cold["disk waits"] / 50})
    layouts = {name: make() for name, make in kinds.items()}
    ways = {name: warm_layout(layout, drawn) for name, layout in layouts.items()}
    warm = in_turns(ways, seconds)
    return [{**row, "warm, median/s": warm[row[""]]} for row in rows]


def cold_layout(layout: Padded | Separate | TaskWidths, drawn: list[tuple[Any, Any]]) -> Row:
    return batches_per_second(lambda n: layout.batch(*drawn[n]), 0, 1e9, len(drawn))


def warm_layout(layout: Padded | Separate | TaskWidths, drawn: list[tuple[Any, Any]]) -> Callable[[int], object]:
    return lambda n: layout.batch(*drawn[n % len(drawn)])


def gathers(sampler: SliceSampler) -> dict[str, Callable[[int], object]]:
    """Other ways to a batch's rows than the sampler's, which is the first."""
    store, tasks = sampler.store, MT30
    columns = tasks.obs_dim + tasks.action_dim + 1
    values = store.rows
    with warnings.catch_warnings():  # torch has no tensors that cannot be written to; none is
        warnings.simplefilter("ignore")
        tensor = torch.from_numpy(values)
    width = store.header.widths
    at = np.zeros((LENGTH, len(tasks), columns), np.int64)
    held = np.zeros((len(tasks), columns), np.float32)
    for k in range(len(tasks)):
        o, a = tasks.obs_dims[k], tasks.action_dims[k]
        place = np.concatenate([np.arange(o), tasks.obs_dim + np.arange(a), [columns - 1]])
        at[:, k, place] = np.arange(width[k])[None, :] + np.arange(LENGTH)[:, None] * width[k]
        held[k, place] = 1
    runs = [np.lib.stride_tricks.sliding_window_view(values, LENGTH * int(w)) for w in width]

    def drawn(step: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        episodes, starts = sampler.indices(step)
        task = store.task_ids[episodes]
        return task, store.offsets[episodes] + starts * width[task]

    def flat(step: int) -> object:
        task, first = drawn(step)
        picked = values.take(at[:, task] + first[None, :, None]).astype(np.float32)
        picked *= held[task]
        return picked

    def by_torch(step: int) -> object:
        task, first = drawn(step)
        picked = tensor[torch.from_numpy(at[:, task] + first[None, :, None])].float()
        return picked * torch.from_numpy(held[task])

    def by_task(step: int) -> object:
        task, first = drawn(step)
        out = np.zeros((LENGTH, BATCH, columns), np.float32)
        for k in np.unique(task):
            here = np.flatnonzero(task == k)
            rows = runs[k][first[here]].reshape(len(here), LENGTH, -1).swapaxes(0, 1)
            o = tasks.obs_dims[k]
            out[:, here, :o] = rows[..., :o]
            out[:, here, tasks.obs_dim : tasks.obs_dim + tasks.action_dims[k]] = rows[..., o:-1]
            out[:, here, -1] = rows[..., -1]
        return out

    return {
        "one run a slice, then picked (the sampler)": sampler.batch,
        "every value by itself, numpy take": flat,
        "every value by itself, torch index": by_torch,
        "task by task": by_task,
    }


def measure_gathers(episodes: int, scratch: Path, seconds: float) -> list[Row]:
    rows = []
    for dtype in ("float32", "float16"):
        path = scratch / dtype
        store = EpisodeStore.open(path) if path.exists() else make_store(path, episodes, dtype)
        read_through(path / "rows.bin")
        found = in_turns(gathers(SliceSampler(store, MT30, BATCH, HORIZON, 1)), seconds)
        rows += [{"": name, "dtype": dtype, "median/s": rate} for name, rate in found.items()]
    return rows


def measure_torchrl(episodes: int, scratch: Path, seconds: float) -> list[Row]:
    try:
        from tensordict import TensorDict
        from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ReplayBuffer
        from torchrl.data import SliceSampler as TorchrlSliceSampler
    except ImportError as error:
        raise UserError(f"torchrl: {error}; pip install torchrl==0.14.1 to compare with it.") from error
    path = scratch / "float32"
    store = EpisodeStore.open(path) if path.exists() else make_store(path, episodes, "float32")
    read_through(path / "rows.bin")
    total = len(store) * store.episode_steps
    rows = []
    for storage in ("LazyTensorStorage", "LazyMemmapStorage"):
        folder = scratch / "torchrl"
        held = (
            LazyTensorStorage(total) if storage == "LazyTensorStorage" else LazyMemmapStorage(total, scratch_dir=folder)
        )
        buffer = ReplayBuffer(
            storage=held,
            sampler=TorchrlSliceSampler(slice_len=LENGTH, traj_key="episode", cache_values=True, strict_length=True),
            batch_size=BATCH * LENGTH,
        )
        before, start = private_memory(), time.perf_counter()
        for first in range(0, len(store), 256):
            block = store.read_episodes(first, min(first + 256, len(store)))
            count = block.reward.size
            episode = np.arange(first, first + len(block.task))
            content = {
                "obs": block.obs.reshape(count, -1),
                "action": block.action.reshape(count, -1),
                "reward": block.reward.reshape(count, 1),
                "task": np.repeat(block.task, store.episode_steps),
                "episode": np.repeat(episode, store.episode_steps),
            }
            buffer.extend(TensorDict({k: torch.from_numpy(v) for k, v in content.items()}, batch_size=[count]))
        filled = time.perf_counter() - start
        start = time.perf_counter()
        buffer.sample()
        first_batch = time.perf_counter() - start
        batches_per_second(lambda _, buffer=buffer: buffer.sample(), 0, 1e9, 200)  # type: ignore[misc]
        rate = batches_per_second(lambda _, buffer=buffer: buffer.sample(), 0, seconds)  # type: ignore[misc]
        rows.append(
            {
                "": f"torchrl, {storage}",
                "GB": sum(v.numel() * v.element_size() for v in buffer[:].values()) / 1e9,
                "fill s": filled,
                "first batch ms": first_batch * 1e3,
                "median/s": rate["median/s"],
                "own memory MB": (private_memory() - before) / 1e6,
            }
        )
        del buffer, held
        shutil.rmtree(folder, ignore_errors=True)
    before = private_memory()
    sampler = SliceSampler(EpisodeStore.open(path), MT30, BATCH, HORIZON, 1)
    start = time.perf_counter()
    sampler.batch(0)
    first_batch = time.perf_counter() - start
    batches_per_second(sampler.batch, 0, 1e9, 2000)
    rate = batches_per_second(sampler.batch, 2000, seconds)
    ours = {"": "this store, float32", "GB": store.num_bytes / 1e9, "first batch ms": first_batch * 1e3}
    rows.append({**ours, "median/s": rate["median/s"], "own memory MB": (private_memory() - before) / 1e6})
    return rows


# -- all of it -------------------------------------------------------------------------------------------------------

_OF_A_STORE = ("open", "verify", "warm", "cold")
_OF_ITS_OWN = ("layouts", "gathers", "torchrl")


def tasks_of(store: EpisodeStore) -> TaskSet:
    if store.tasks != MT30.tasks:
        raise UserError(f"{store.path}: found other tasks than MT30's; see scripts/synthesise.py.")
    return MT30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=["import", *_OF_A_STORE, *_OF_ITS_OWN])
    parser.add_argument("--published", type=Path, metavar="FILE", help="what `import` imports")
    parser.add_argument("--store", type=Path, metavar="DIR", help="what open, verify, warm and cold measure")
    parser.add_argument(
        "--episodes", type=int, default=15_000, help="of what layouts, gathers and torchrl make (15000)"
    )
    parser.add_argument("--scratch", type=Path, help="where files are made and deleted again (beside FILE, or here)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of every rate (8)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables and the machine to FILE")
    arguments = parser.parse_args()
    if "import" in arguments.sections and arguments.published is None:
        parser.error("import needs --published FILE")
    if set(_OF_A_STORE) & set(arguments.sections):
        if arguments.store is None:
            parser.error("open, verify, warm and cold need --store DIR")
        tasks_of(EpisodeStore.open(arguments.store))
    machine = asdict(this_machine("cpu"))
    print(
        f"{machine['cpu']}, {torch.get_num_threads()} torch threads, numpy {np.__version__}, torch {torch.__version__}"
    )
    tables: dict[str, list[Row]] = {}
    parent = arguments.scratch or (arguments.published.parent if arguments.published else Path())
    with tempfile.TemporaryDirectory(dir=parent) as name:
        scratch, seconds = Path(name), arguments.seconds
        measures: dict[str, Callable[[], list[Row]]] = {
            "import": lambda: measure_import(arguments.published, scratch),
            "open": lambda: measure_open(arguments.store),
            "verify": lambda: measure_verify(arguments.store),
            "warm": lambda: measure_warm(arguments.store, seconds),
            "cold": lambda: measure_cold(arguments.store, seconds),
            "layouts": lambda: measure_layouts(arguments.episodes, scratch, seconds),
            "gathers": lambda: measure_gathers(arguments.episodes, scratch, seconds),
            "torchrl": lambda: measure_torchrl(arguments.episodes, scratch, seconds),
        }
        for section in arguments.sections:
            tables[section] = measures[section]()
            show(section, tables[section])
    if arguments.json is not None:
        content = {"machine": machine, "versions": package_versions(), "tables": tables}
        atomic_write_text(arguments.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
