"""Downloads the published dataset and models from the Hugging Face hub, checked against its checksums.

What is on the hub: the dataset repository's `mt30/chunk_0.pt` to `chunk_3.pt` and `mt80/chunk_0.pt` to
`chunk_19.pt`; the model repository's `multitask/mt30-317M.pt` and the like, and `dmcontrol/TASK-SEED.pt` of
single tasks. Every download is of the one revision that was current when its plan was made.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from tdmpc2.errors import DataError
from tdmpc2.fileio import write_error

REPOSITORY = "nicklashansen/tdmpc2"
DATASETS: dict[str, int] = {"mt30": 4, "mt80": 20}
"""Chunks of each published dataset."""
MODEL_SIZES = ("1M", "5M", "19M", "48M", "317M")
_SINGLE_TASK = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*-[123]")
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class HubFile:
    """A file on the hub, by the kind of its repository and its path there."""

    kind: Literal["dataset", "model"]
    path: str


@dataclass(frozen=True)
class RemoteFile:
    """What the hub says of a file: bytes, SHA-256 (None for the few small files kept without), revision."""

    file: HubFile
    size: int
    sha256: str | None
    revision: str


class Hub(Protocol):
    """The two things that are asked of a hub. Both raise a `DataError` when it cannot be reached."""

    def describe(self, files: Sequence[HubFile]) -> list[RemoteFile]:
        """Each file's size and checksum; files that are not there are left out."""

    def read(self, remote: RemoteFile, start: int) -> Iterator[bytes]:
        """The file's bytes from `start` on."""


class HuggingFaceHub:
    """The hub itself. `huggingface_hub` brings addresses, tokens, proxies and mirrors.

    Files are read here and not by its `hf_hub_download`: release 2.4 begins a file anew when the last run was
    interrupted, which is too much for files of 11 GB.
    """

    def describe(self, files: Sequence[HubFile]) -> list[RemoteFile]:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        found: list[RemoteFile] = []
        try:
            for kind in dict.fromkeys(file.kind for file in files):
                paths = [file.path for file in files if file.kind == kind]
                revision = str(HfApi().repo_info(REPOSITORY, repo_type=kind).sha)
                for info in HfApi().get_paths_info(REPOSITORY, paths, repo_type=kind, revision=revision):
                    if isinstance(info, RepoFile):
                        checksum = info.lfs.sha256 if info.lfs else None
                        found.append(RemoteFile(HubFile(kind, info.path), info.size, checksum, revision))
        except Exception as error:  # its HTTP library's own errors, and that library differs by release
            raise _unreachable(error) from error
        return found

    def read(self, remote: RemoteFile, start: int) -> Iterator[bytes]:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, but not in __all__
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        file = remote.file
        url = hf_hub_url(REPOSITORY, file.path, repo_type=file.kind, revision=remote.revision)
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-"}
        try:
            with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
                hf_raise_for_status(response)
                skip = start if response.status_code == 200 else 0  # some mirrors know no ranges
                for block in response.iter_bytes():
                    if skip < len(block):
                        yield block[skip:]
                    skip = max(0, skip - len(block))
        except Exception as error:  # as above
            raise _unreachable(error) from error


@dataclass(frozen=True)
class Plan:
    """What a download will do. `damaged` files are there with the wrong content and will be replaced."""

    folder: Path
    present: tuple[RemoteFile, ...]
    missing: tuple[RemoteFile, ...]
    damaged: tuple[RemoteFile, ...]

    @property
    def to_fetch(self) -> tuple[RemoteFile, ...]:
        return self.missing + self.damaged

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes of the files to fetch, less what an interrupted download has already brought."""
        return sum(remote.size - _part_size(self.folder, remote) for remote in self.to_fetch)

    def table(self) -> str:
        """Each file's size and state, the total and the free disk space."""
        states = {"there": self.present, "to fetch": self.missing, "damaged, to replace": self.damaged}
        lines = [
            f"{remote.size / 1e9:>8.3f} GB  {remote.file.path}  ({state})"
            for state, files in states.items()
            for remote in files
        ]
        lines.append(f"{self.bytes_to_fetch / 1e9:>8.3f} GB  to fetch in {len(self.to_fetch)} files")
        lines.append(f"{_free(self.folder) / 1e9:>8.3f} GB  free at {self.folder}")
        return "\n".join(lines)


def dataset_files(name: str, chunks: Sequence[int] | None = None) -> list[HubFile]:
    """The files of dataset `name` (mt30, mt80), or only those chunks.

    Raises a `DataError` for unknown ones.
    """
    if name not in DATASETS:
        raise DataError(f"unknown dataset '{name}', expected one of {', '.join(DATASETS)}.")
    numbers = range(DATASETS[name]) if chunks is None else dict.fromkeys(chunks)
    for number in numbers:
        if not 0 <= number < DATASETS[name]:
            raise DataError(f"found chunk {number}, expected 0 to {DATASETS[name] - 1}: {name} has no other.")
    return [HubFile("dataset", f"{name}/chunk_{number}.pt") for number in numbers]


def model_file(name: str) -> HubFile:
    """The file of a model: `mt30-317M`, `mt80-48M`, … or a single task's `walker-walk-1` (seed 1 to 3)."""
    multitask = [f"{dataset}-{size}" for dataset in DATASETS for size in MODEL_SIZES]
    if name in multitask:
        return HubFile("model", f"multitask/{name}.pt")
    if _SINGLE_TASK.fullmatch(name):
        return HubFile("model", f"dmcontrol/{name}.pt")
    raise DataError(f"unknown model '{name}', expected one of {', '.join(multitask)}, or TASK-SEED (seed 1 to 3).")


def plan(
    files: Sequence[HubFile], folder: str | Path, hub: Hub, report: Callable[[str], None] = lambda line: None
) -> Plan:
    """Asks the hub for sizes and checksums and compares what is already in `folder`."""
    folder = Path(folder)
    described = {remote.file: remote for remote in hub.describe(files)}
    absent = [file.path for file in files if file not in described]
    if absent:
        raise DataError(f"{', '.join(absent)}: not on the hub at {REPOSITORY}; check the name.")
    present: list[RemoteFile] = []
    missing: list[RemoteFile] = []
    damaged: list[RemoteFile] = []
    for file in files:
        remote = described[file]
        if not (folder / file.path).exists():
            missing.append(remote)
            continue
        report(f"checking {folder / file.path}")
        (present if _is_whole(folder / file.path, remote) else damaged).append(remote)
    return Plan(folder, tuple(present), tuple(missing), tuple(damaged))


def download(
    plan: Plan,
    hub: Hub,
    progress: Callable[[RemoteFile, int], None] = lambda remote, done: None,
    pause: float = 1.0,
) -> None:
    """Fetches what the plan lacks, checks each file's SHA-256 and only then gives it its name.

    `progress` is told the bytes of a file that are there. A broken connection is tried again after `pause`
    seconds, three times without a byte between them; an interrupted file goes on where it stopped, also in a
    later run. Raises a `DataError` when the disk is too small (before anything is fetched), when the hub stays
    away or when a checksum is wrong.
    """
    free = _free(plan.folder)
    if plan.bytes_to_fetch > free:
        raise DataError(
            f"{plan.folder}: found {free / 1e9:.1f} GB free, expected at least "
            f"{plan.bytes_to_fetch / 1e9:.1f} GB; free some space, choose another folder or fewer chunks."
        )
    for remote in plan.to_fetch:
        target, part = plan.folder / remote.file.path, _part(plan.folder, remote)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _fetch(remote, hub, part, progress, pause)
            if not _is_whole(part, remote):
                part.unlink()
                raise DataError(
                    f"{target}: the SHA-256 of what arrived is not the hub's ({remote.sha256}), so it was "
                    "removed; run the same command again."
                )
            part.replace(target)
        except OSError as error:
            raise write_error(target, error) from error


def _fetch(remote: RemoteFile, hub: Hub, part: Path, progress: Callable[[RemoteFile, int], None], pause: float) -> None:
    """Appends what is missing to the partial file."""
    done = part.stat().st_size if part.is_file() else 0
    failures = 0
    with part.open("ab") as file:
        progress(remote, done)
        while done < remote.size:
            before, error = done, None
            try:
                for block in hub.read(remote, done):
                    file.write(block)
                    done += len(block)
                    progress(remote, done)
            except DataError as caught:
                error = caught
            if done >= remote.size:
                break
            failures = failures + 1 if done == before else 0
            if failures == 3:
                raise error or DataError(f"the hub sends nothing of {remote.file.path}; try again later.")
            time.sleep(pause)
        file.flush()
        os.fsync(file.fileno())


def _is_whole(path: Path, remote: RemoteFile) -> bool:
    if not path.is_file() or path.stat().st_size != remote.size:
        return False
    if remote.sha256 is None:
        return True
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest() == remote.sha256


def _part(folder: Path, remote: RemoteFile) -> Path:
    """Where a file grows: beside its place, under a name that no other content of it shares."""
    target = folder / remote.file.path
    return target.with_name(f"{target.name}.{(remote.sha256 or remote.revision)[:16]}.part")


def _part_size(folder: Path, remote: RemoteFile) -> int:
    part = _part(folder, remote)
    return part.stat().st_size if part.is_file() else 0


def _free(folder: Path) -> int:
    """Free bytes on the disk that will hold `folder`, which need not exist yet."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def _unreachable(error: Exception) -> DataError:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    return DataError(
        f"{endpoint}: {REPOSITORY} cannot be fetched ({error.__class__.__name__}: {error}). Check the "
        "network and "
        "the proxy (HTTPS_PROXY), that HF_HUB_OFFLINE is not set, or name a mirror in HF_ENDPOINT; "
        "then run the same command again: it goes on where it stopped."
    )
