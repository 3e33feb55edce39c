"""Downloads the published dataset and models from the Hugging Face hub, checked against its checksums.

What is on the hub: the dataset repository's `mt30/chunk_0.pt` to `chunk_3.pt` and `mt80/chunk_0.pt` to
`chunk_19.pt`; the model repository's `multitask/mt30-317M.pt` and the like, and `dmcontrol/TASK-SEED.pt` of
single tasks. Every download is of the one revision that was current when its plan was made.

What a server says is not believed: sizes, checksums and revisions are checked before use, answers are read to a limit
and never unpacked, no more bytes are written than were promised, and its words are cut and made printable.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import FileLock, Timeout

from tdmpc2.errors import DataError, UserError, printable
from tdmpc2.fileio import write_error
from tdmpc2.jsontext import parse_json, whole_number
from tdmpc2.locks import without_locks

REPOSITORY = "nicklashansen/tdmpc2"
DATASETS: dict[str, int] = {"mt30": 4, "mt80": 20}
"""Chunks of each published dataset."""
MODEL_SIZES = ("1M", "5M", "19M", "48M", "317M")
_SINGLE_TASK = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*-[123]")
_MAX_ANSWER_BYTES = 8 << 20  # what the hub says of a repository of a thousand files has some 200 KB
_MAX_WORDS_BYTES = 2000
_MAX_SIZE = 1 << 60
_TIMEOUT = 30  # seconds without a byte
_ANSWER_SECONDS = 120
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[0-9a-f]{40}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


@dataclass(frozen=True)
class HubFile:
    """A file on the hub, by the kind of its repository and its path there."""

    kind: Literal["dataset", "model"]
    path: str


@dataclass(frozen=True)
class RemoteFile:
    """What the hub says of a file: bytes, SHA-256 (None for the few small files kept without), revision.

    Raises a `DataError` for what none of them can be.
    """

    file: HubFile
    size: int
    sha256: str | None
    revision: str

    def __post_init__(self) -> None:
        if not whole_number(self.size, most=_MAX_SIZE):
            raise _nonsense(f"the size of {self.file.path} is {printable(repr(self.size), 60)}")
        if self.sha256 is not None and not (isinstance(self.sha256, str) and _SHA256.fullmatch(self.sha256)):
            raise _nonsense(f"the SHA-256 of {self.file.path} is {printable(repr(self.sha256), 100)}")
        if not (isinstance(self.revision, str) and _REVISION.fullmatch(self.revision)):
            raise _nonsense(f"the revision of {self.file.path} is {printable(repr(self.revision), 100)}")


class Hub(Protocol):
    """The two things that are asked of a hub. Both raise a `DataError` when it cannot be reached."""

    def describe(self, files: Sequence[HubFile]) -> list[RemoteFile]:
        """Each file's size and checksum; files that are not there are left out."""

    def read(self, remote: RemoteFile, start: int) -> Iterator[bytes]:
        """The file's bytes from `start` on."""


class HuggingFaceHub:
    """The hub itself. `huggingface_hub` brings addresses, tokens, proxies and mirrors.

    Files are read here and not by its `hf_hub_download`: release 2.4 begins a file anew when the last run was
    interrupted, which is too much for files of 11 GB. So is what describes them, to a limit.
    """

    def describe(self, files: Sequence[HubFile]) -> list[RemoteFile]:
        found: list[RemoteFile] = []
        for kind in dict.fromkeys(file.kind for file in files):
            wanted = [file for file in files if file.kind == kind]
            address = f"{_endpoint()}/api/{kind}s/{REPOSITORY}"
            repository = self._answer("GET", address)
            revision = repository.get("sha") if isinstance(repository, dict) else None
            if not isinstance(revision, str) or not _REVISION.fullmatch(revision):
                raise _nonsense(f"the revision of its {kind}s is {printable(repr(revision), 100)}")
            paths = {"paths": [file.path for file in wanted], "expand": False}
            described = self._answer("POST", f"{address}/paths-info/{revision}", data=paths)
            found += _remote_files(described, wanted, revision)
        return found

    def _answer(self, method: str, address: str, **body: Any) -> Any:
        """What the hub's API says, as JSON; read to a limit of bytes and seconds."""
        began, answer = time.monotonic(), b""
        with self._response(method, address, {}, **body) as response:
            for block in response.iter_raw():
                answer += block
                if len(answer) > _MAX_ANSWER_BYTES or time.monotonic() - began > _ANSWER_SECONDS:
                    raise _nonsense(f"its answer at {address} has no end")
        try:
            return parse_json(answer)
        except ValueError as error:
            raise _nonsense(f"its answer at {address} is not JSON ({printable(error, 100)})") from error

    def read(self, remote: RemoteFile, start: int) -> Iterator[bytes]:
        from huggingface_hub import hf_hub_url

        file = remote.file
        url = hf_hub_url(REPOSITORY, file.path, repo_type=file.kind, revision=remote.revision)
        with self._response("GET", url, {"Range": f"bytes={start}-"}) as response:
            skip = start if response.status_code == 200 else 0  # some mirrors know no ranges
            if response.status_code == 206:
                _check_range(response.headers.get("Content-Range"), remote, start)
            for block in response.iter_raw():
                if skip < len(block):
                    yield block[skip:]
                skip = max(0, skip - len(block))

    @contextmanager
    def _response(self, method: str, address: str, headers: dict[str, str], **body: Any) -> Iterator[Any]:
        """A response that can be read as it is: neither an error nor packed."""
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, but not in __all__
            build_hf_headers,
            get_session,
        )

        headers = {**build_hf_headers(), **headers, "Accept-Encoding": "identity"}
        try:
            with get_session().stream(
                method, address, headers=headers, follow_redirects=True, timeout=_TIMEOUT, **body
            ) as response:
                if response.status_code not in (200, 206):
                    raise _unreachable(_refusal(response))
                packing = response.headers.get("Content-Encoding", "identity").strip().lower()
                if packing not in ("", "identity"):
                    raise _nonsense(f"it packs what it sends ({printable(packing, 60)}), which was not asked for")
                yield response
        except UserError:
            raise
        except Exception as error:  # its HTTP library's own errors, and that library differs by release
            raise _unreachable(f"{type(error).__name__}: {error}") from error


def _remote_files(described: Any, wanted: Sequence[HubFile], revision: str) -> list[RemoteFile]:
    """The files among those asked for that the hub's answer describes, each once."""
    if not isinstance(described, list):
        raise _nonsense(f"its list of files is a {type(described).__name__}")
    asked = {file.path: file for file in wanted}
    found: dict[str, RemoteFile] = {}
    for entry in described:
        if not isinstance(entry, dict) or not isinstance(path := entry.get("path"), str) or path in found:
            raise _nonsense("its list of files holds something other than files, or one twice")
        if path not in asked:
            raise _nonsense(f"it describes {printable(path, 100)}, which was not asked for")
        if entry.get("type") != "file":
            continue
        lfs = entry.get("lfs")
        if lfs is not None and not (isinstance(lfs, dict) and isinstance(lfs.get("oid"), str)):
            raise _nonsense(f"the checksum of {path} is missing")
        size: Any = entry.get("size")
        found[path] = RemoteFile(asked[path], size, None if lfs is None else lfs["oid"], revision)
    return list(found.values())


def _check_range(said: str | None, remote: RemoteFile, start: int) -> None:
    """Raises a `DataError` for a part of the file other than the one asked for; some mirrors do not say which."""
    if said is None:
        return
    found = _CONTENT_RANGE.fullmatch(said.strip())
    if found is None or int(found[1]) != start or found[3] not in ("*", str(remote.size)):
        raise _nonsense(
            f"it sends {printable(said, 60)} of {remote.file.path}, expected bytes {start} to {remote.size - 1}"
        )


def _refusal(response: Any) -> str:
    """The status of a response that is an error, and the beginning of what it says."""
    words = b""
    for block in response.iter_raw():
        words += block
        if len(words) >= _MAX_WORDS_BYTES:
            break
    said = response.headers.get("X-Error-Message") or words.decode("utf-8", "replace").strip()
    return f"status {response.status_code}: {said}" if said else f"status {response.status_code}"


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
            with _alone(part):
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


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Holds the partial file's lock: two downloads that add to one file would spoil it."""
    # A lock that is only a file would outlive a killed process.
    lock = FileLock(f"{part}.lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(
            f"{part}: another download is adding to this file; wait until it has ended, or choose another folder."
        ) from error
    except (OSError, NotImplementedError) as error:
        if not without_locks(error):
            raise
        raise DataError(f"{part}: its file system has no file locks; choose a folder elsewhere.") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: who waits for it looks whether it is there
        lock.release()


def _fetch(remote: RemoteFile, hub: Hub, part: Path, progress: Callable[[RemoteFile, int], None], pause: float) -> None:
    """Appends what is missing to the partial file."""
    done = part.stat().st_size if part.is_file() else 0
    failures = 0
    with part.open("ab") as file:
        if done > remote.size:  # no download leaves that
            file.truncate(0)
            done = 0
        progress(remote, done)
        while done < remote.size:
            before, error = done, None
            try:
                for block in hub.read(remote, done):
                    file.write(block[: remote.size - done])
                    done = min(done + len(block), remote.size)
                    progress(remote, done)
                    if done == remote.size:
                        break  # whatever else it sends
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
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == remote.sha256


def _part(folder: Path, remote: RemoteFile) -> Path:
    """Where a file grows: beside its place, under a name that no other content of it shares."""
    target = folder / remote.file.path
    return target.with_name(f"{target.name}.{(remote.sha256 or remote.revision)[:16]}.part")


def _part_size(folder: Path, remote: RemoteFile) -> int:
    part = _part(folder, remote)
    size = part.stat().st_size if part.is_file() else 0
    return size if size <= remote.size else 0


def _free(folder: Path) -> int:
    """Free bytes on the disk that will hold `folder`, which need not exist yet."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _nonsense(what: str) -> DataError:
    """For a server that answers, but not as the hub does."""
    return DataError(
        f"{_server()}: it does not answer as the hub does: {what}. Check HF_ENDPOINT, and try again later."
    )


def _unreachable(why: str) -> DataError:
    return DataError(
        f"{_server()}: {REPOSITORY} cannot be fetched ({printable(why)}). Check the network and "
        "the proxy (HTTPS_PROXY), that HF_HUB_OFFLINE is not set, or name a mirror in HF_ENDPOINT; "
        "then run the same command again: it goes on where it stopped."
    )


def _server() -> str:
    return printable(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
