"""A frozen teacher's predicted reward for every transition of an episode store, computed once, read by every run.

    DIR/
      labels.json   whose predictions, of which store, and the checksum of every block committed; replaced last
      labels.f32    little-endian float32 [episodes, T]
      labels.lock   held while a writer is open

Entry [e, t] is the reward predicted for (obs[t-1], action[t]) of episode e, so it lies where the store has the reward
of the same transition. Entries [e, 0], and episodes of tasks that were not labelled, are NaN. A writer that was
killed leaves bytes that labels.json does not know; the next one cuts them off and goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tdmpc2.data.mapped import MappedFile
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import DataError, printable
from tdmpc2.fileio import atomic_write_text, human_bytes, write_error
from tdmpc2.jsontext import parse_json, whole_number
from tdmpc2.locks import FolderLock, InUse

FORMAT = "tdmpc2-teacher-rewards"
VERSION = 1
_HEADER = "labels.json"
_VALUES = "labels.f32"
_LOCK = "labels.lock"
_DTYPE = np.dtype("<f4")
_BLOCK_EPISODES = 256
"""What one checksum covers, and at most what a kill loses: 128,000 transitions of MT30."""
_LARGEST = (1 << 40) - 1
_LONGEST = 300  # characters of a text
_ANEW = "delete this folder and label anew, or name another one with teacher.labels=…"


@dataclass(frozen=True)
class LabelFacts:
    """Whose predictions a column holds, of what, computed how: all of it must agree before anything is added."""

    teacher: str
    """The teacher's name, as in the `teacher` group."""
    teacher_checksum: str
    """`RewardTeacher.checksum`: two teachers with the same one predict the same."""
    teacher_parameters: int
    precision: str
    """The arithmetic of the teacher: float32 or bfloat16."""
    store: str
    """`EpisodeStore.fingerprint`."""
    tasks: tuple[str, ...]
    """The labelled tasks; episodes of others are NaN."""
    episodes: int
    episode_steps: int
    """T: entries an episode."""


_MEANING = {
    "teacher": "made by another teacher",
    "teacher_checksum": "made by another teacher",
    "teacher_parameters": "made by another teacher",
    "precision": "made in another precision",
    "store": "made of another store",
    "tasks": "made for other tasks",
    "episodes": "made of another store",
    "episode_steps": "made of another store",
}


@dataclass(frozen=True)
class LabelHeader:
    """The content of labels.json."""

    facts: LabelFacts
    block_episodes: int
    blocks: tuple[str, ...] = ()
    """The first half of each committed block's SHA-256; the last block may be shorter."""

    @property
    def done(self) -> int:
        """Episodes committed."""
        return min(len(self.blocks) * self.block_episodes, self.facts.episodes)

    @property
    def complete(self) -> bool:
        return self.done == self.facts.episodes

    @property
    def committed_bytes(self) -> int:
        return self.done * self.facts.episode_steps * _DTYPE.itemsize

    @property
    def checksum(self) -> str:
        """Short hex over all blocks: of the committed content as a whole."""
        return hashlib.sha256("".join(self.blocks).encode()).hexdigest()[:16]


class LabelColumn:
    """A complete label column, mapped read-only (see `open`)."""

    def __init__(self, path: Path, header: LabelHeader) -> None:
        self.path = path
        self.header = header
        self._mapped = MappedFile(path / _VALUES, header.committed_bytes)
        self.values: npt.NDArray[np.float32] = self._mapped.values(_DTYPE).reshape(-1, header.facts.episode_steps)
        """float32 [episodes, T]."""

    @classmethod
    def open(cls, path: str | Path, store: EpisodeStore, tasks: Sequence[str] = ()) -> LabelColumn:
        """Maps the column at `path` and lays it against the store; `tasks` are those that will be read.

        Raises:
            DataError: for a column that is missing, incomplete, truncated, of another version or store, or without
                one of `tasks`.
        """
        path = Path(path)
        header = read_labels(path)
        _check_store(path, header, store)
        if not header.complete:
            raise DataError(
                f"{path}: incomplete: {header.done:,} of {header.facts.episodes:,} episodes are labelled "
                f"({100 * header.done / header.facts.episodes:.1f}%); complete it with: "
                f"{labelling_command(path, header, store)}"
            )
        unlabelled = [name for name in tasks if name not in header.facts.tasks]
        if unlabelled:
            raise DataError(
                f"{path}: holds no labels of {', '.join(unlabelled)}, only of {', '.join(header.facts.tasks)}; "
                "label the store for the task set to train on (task=…), in another folder (teacher.labels=…)."
            )
        return cls(path, header)

    def at(self, episodes: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """float32 [..., B] at `rows` [..., B] of `episodes` [B]: row t is of what led to observation t."""
        self._mapped.check()
        values: npt.NDArray[np.float32] = self.values[episodes, rows]
        self._mapped.check()
        return values


class LabelWriter:
    """Adds whole episodes to a label column, in order; a context manager that goes on where the last one stopped.

    Args:
        path: the column's folder; made if there is none.
        facts: what the column is; an existing one must be the same.
        block_episodes: episodes that one checksum covers; only whole blocks are committed.
        commit_seconds: least time between two commits, each of which waits for the disk.

    Raises:
        DataError: on entering, when the column belongs to other facts or is truncated, when another writer has it
            open, or when the disk cannot hold the rest.
    """

    def __init__(
        self, path: str | Path, facts: LabelFacts, *, block_episodes: int = _BLOCK_EPISODES, commit_seconds: float = 1.0
    ) -> None:
        self.path = Path(path)
        self.episodes = 0
        """Episodes in the column so far, those not yet committed included."""
        self._header = LabelHeader(facts, block_episodes)
        self._lock = FolderLock(self.path, _LOCK, advice="name a folder elsewhere with teacher.labels=…")
        self._commit_seconds = commit_seconds
        self._committed_at = time.monotonic()
        self._pending: list[str] = []
        self._digest = hashlib.sha256()
        self._whole = True
        self._file: IO[bytes] | None = None

    @property
    def header(self) -> LabelHeader:
        """What is committed."""
        return self._header

    def __enter__(self) -> LabelWriter:
        try:
            self._lock.acquire()
        except InUse:
            raise DataError(f"{self.path}: another program is labelling into it; wait until it has ended.") from None
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def _open(self) -> None:
        if (self.path / _HEADER).exists():
            self._header = self._continued()
        facts = self._header.facts
        missing = (facts.episodes - self._header.done) * facts.episode_steps * _DTYPE.itemsize
        free = shutil.disk_usage(self.path).free
        if missing > free:
            raise DataError(
                f"{self.path}: found {human_bytes(free)} free, expected at least {human_bytes(missing)} for the "
                "labels that are missing; free some space or name another folder with teacher.labels=…."
            )
        if not (self.path / _HEADER).exists():
            self._write_header(self._header)
        if self._header.complete:
            return
        values = self.path / _VALUES
        try:
            self._file = values.open("r+b" if values.exists() else "x+b")
            self._file.truncate(self._header.committed_bytes)  # what a killed writer had not committed
            self._file.seek(self._header.committed_bytes)
        except OSError as error:
            raise write_error(values, error) from error
        self.episodes = self._header.done

    def _continued(self) -> LabelHeader:
        """The header on disk, if it is one that these facts continue."""
        found, expected = read_labels(self.path), self._header.facts
        differing = [f.name for f in fields(expected) if getattr(found.facts, f.name) != getattr(expected, f.name)]
        if differing:
            said = "; ".join(f"{n} is {_shown(found.facts, n)}, not {_shown(expected, n)}" for n in differing)
            raise DataError(f"{self.path}: its labels were {_MEANING[differing[0]]} ({said}); {_ANEW}.")
        self.episodes = found.done
        return found

    def append(self, values: npt.NDArray[np.float32]) -> None:
        """Adds the labels [E, T] of the next E episodes; commits blocks that are whole now and then."""
        facts, size = self._header.facts, self._header.block_episodes
        if values.shape[1:] != (facts.episode_steps,) or self.episodes + len(values) > facts.episodes:
            raise ValueError(f"{values.shape} does not continue a column of {self.episodes} of {facts.episodes}")
        start = 0
        while start < len(values):
            count = min(size - self.episodes % size, len(values) - start)
            data = np.ascontiguousarray(values[start : start + count], dtype=_DTYPE).data
            self._write(data)
            self._digest.update(data)
            self.episodes += count
            start += count
            if self.episodes % size == 0 or self.episodes == facts.episodes:
                self._pending.append(self._digest.hexdigest()[:32])
                self._digest = hashlib.sha256()
        if self.episodes == facts.episodes or time.monotonic() - self._committed_at >= self._commit_seconds:
            self.commit()

    def commit(self) -> None:
        """Makes every whole block written so far part of the column: durable on return."""
        if not self._pending:
            return
        assert self._file is not None
        self._whole = False  # until the disk has it all
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self.path / _VALUES, error) from error
        self._write_header(replace(self._header, blocks=(*self._header.blocks, *self._pending)))
        self._pending = []
        self._whole = True
        self._committed_at = time.monotonic()

    def _write(self, data: memoryview) -> None:
        assert self._file is not None
        try:
            self._file.write(data)
        except BaseException as error:
            self._whole = False  # the block may be half written
            if isinstance(error, OSError):
                raise write_error(self.path / _VALUES, error) from error
            raise

    def _write_header(self, header: LabelHeader) -> None:
        content = {"format": FORMAT, "version": VERSION, **asdict(header.facts)}
        content |= {"block_episodes": header.block_episodes, "blocks": header.blocks}
        atomic_write_text(self.path / _HEADER, json.dumps(content, indent=1) + "\n")
        self._header = header

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._whole:
                self.commit()  # whole blocks are right whatever ended the program
        finally:
            if self._file is not None:
                with contextlib.suppress(OSError):  # only what is not committed can still be in the buffer
                    self._file.close()
            self._lock.release()


def read_labels(path: str | Path) -> LabelHeader:
    """What the column at `path` says of itself; its values are at least as long as that, but not read.

    Raises:
        DataError: when it is missing, malformed, of another version or truncated.
    """
    path = Path(path)
    file = path / _HEADER
    if not file.is_file():
        raise DataError(
            f"{file}: found no such file, expected a label column's; make one with scripts/label.py, or check "
            "teacher.labels."
        )
    try:
        content = parse_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check its permissions.") from error
    except ValueError as error:
        raise DataError(f"{file}: is not JSON ({printable(error)}); {_ANEW}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{file}: is not the header of a label column; check teacher.labels.")
    if content.get("version") != VERSION or isinstance(content.get("version"), bool):
        raise DataError(f"{file}: found version {printable(content.get('version'), 60)}, expected {VERSION}; {_ANEW}.")
    header = _parsed(file, content)
    values = path / _VALUES
    try:
        held = values.stat().st_size if header.blocks or values.exists() else 0
    except OSError as error:
        raise DataError(f"{values}: cannot be read ({error.strerror}); {_ANEW}.") from error
    if held < header.committed_bytes:
        raise DataError(
            f"{values}: truncated: found {held:,} bytes, expected {header.committed_bytes:,}; copy it again, or "
            f"{_ANEW}."
        )
    return header


def verify_labels(path: str | Path, store: EpisodeStore) -> LabelHeader:
    """Reads every committed block and compares its checksum; raises a `DataError` naming the first that differs."""
    path = Path(path)
    header = read_labels(path)
    _check_store(path, header, store)
    size = header.block_episodes * header.facts.episode_steps * _DTYPE.itemsize
    left = header.committed_bytes
    try:
        with (path / _VALUES).open("rb") as file:
            for number, expected in enumerate(header.blocks):
                data = file.read(min(size, left))
                left -= len(data)
                found = hashlib.sha256(data).hexdigest()[:32]
                if found != expected:
                    first = number * header.block_episodes
                    last = min(first + header.block_episodes, header.facts.episodes) - 1
                    raise DataError(
                        f"{path / _VALUES}: episodes {first} to {last}: found checksum {found[:12]}…, expected "
                        f"{expected[:12]}…; its content has changed: copy it again, or {_ANEW}."
                    )
    except OSError as error:
        raise DataError(f"{path / _VALUES}: cannot be read ({error.strerror}); check its permissions.") from error
    return header


def labelling_command(path: Path, header: LabelHeader, store: EpisodeStore) -> str:
    """What a user types to complete the column, but for the teacher's weights."""
    facts = header.facts
    return (
        f"python scripts/label.py data_dir={store.path} teacher={facts.teacher} teacher.checkpoint=… "
        f"teacher.precision={facts.precision} teacher.labels={path}"
    )


def _check_store(path: Path, header: LabelHeader, store: EpisodeStore) -> None:
    facts = header.facts
    found = (facts.store, facts.episodes, facts.episode_steps)
    expected = (store.fingerprint, len(store), store.episode_steps)
    if found != expected:
        raise DataError(
            f"{path}: its labels were made of another store (fingerprint {found[0]}, {found[1]:,} episodes of "
            f"{found[2]} steps), not of {store.path} ({expected[0]}, {expected[1]:,} episodes of {expected[2]} steps); "
            "give the store's own labels, or label it with scripts/label.py."
        )


def _shown(facts: LabelFacts, name: str) -> str:
    value = getattr(facts, name)
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _parsed(file: Path, content: dict[str, Any]) -> LabelHeader:
    """A header whose every value has its type and whose numbers fit together, or a `DataError`."""

    def damaged(what: str) -> DataError:
        return DataError(f"{file}: {what}; copy it again, or {_ANEW}.")

    def shown(key: str) -> str:
        return repr(str(content.get(key))[:60])

    def names(key: str) -> tuple[str, ...]:
        value = content.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) and item.isprintable() for item in value):
            raise damaged(f"key '{key}' is {shown(key)}, expected a list of text")
        return tuple(value)

    def number(key: str) -> int:
        value: Any = content.get(key)
        if not whole_number(value, least=1, most=_LARGEST):
            raise damaged(f"key '{key}' is {shown(key)}, expected a number above 0")
        return value

    def text(key: str) -> str:
        """These are shown in messages and commands, so they are what a terminal can show."""
        value = content.get(key)
        if not isinstance(value, str) or not value.isprintable() or len(value) > _LONGEST:
            raise damaged(f"key '{key}' is {shown(key)}, expected text")
        return value

    facts = LabelFacts(
        teacher=text("teacher"),
        teacher_checksum=text("teacher_checksum"),
        teacher_parameters=number("teacher_parameters"),
        precision=text("precision"),
        store=text("store"),
        tasks=names("tasks"),
        episodes=number("episodes"),
        episode_steps=number("episode_steps"),
    )
    header = LabelHeader(facts, number("block_episodes"), names("blocks"))
    most = -(-facts.episodes // header.block_episodes)
    if len(header.blocks) > most:
        raise damaged(f"key 'blocks' lists {len(header.blocks)}, expected at most {most}")
    return header
