"""Columns of labels: what was computed once for every step of an episode store, and is read by every run.

    DIR/
      labels.json   whose labels, of which store, and the checksum of every block committed; replaced last
      labels.f32    little-endian float32 [episodes, T], or [episodes, T, A]
      labels.lock   held while a writer is open

There are two kinds. A teacher's rewards (`LabelFacts`): entry [e, t] is the reward predicted for (obs[t-1], action[t])
of episode e, so it lies where the store has the reward of the same transition; entries [e, 0] are NaN. A planner's
actions (`PlanFacts`): entry [e, t] is what it would do in obs[t]; states that it was not asked about are NaN. Episodes
of tasks that were not labelled are NaN in both.

A writer that was killed leaves bytes that labels.json does not know; the next one cuts them off and goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Generic, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt

from tdmpc2.data.mapped import MappedFile
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import DataError, printable
from tdmpc2.fileio import atomic_write_text, human_bytes, write_error
from tdmpc2.jsontext import parse_json, whole_number
from tdmpc2.locks import FolderLock, InUse
from tdmpc2.tasks import TaskSet

VERSION = 1
_HEADER = "labels.json"
_VALUES = "labels.f32"
_LOCK = "labels.lock"
_DTYPE = np.dtype("<f4")
_BLOCK_EPISODES = 256
"""What one checksum covers, and at most what a kill loses: 128,000 transitions of MT30."""
_LARGEST = (1 << 40) - 1
_LONGEST = 300  # characters of a text
_STORE_MEANING = dict.fromkeys(("store", "episodes", "episode_steps"), "made of another store")


@dataclass(frozen=True)
class ColumnFacts(ABC):
    """Whose labels a column holds, of what, computed how: all of it must agree before anything is added.

    The fields of a kind are texts, numbers above 0 and tuples of names, as labels.json holds them.
    """

    format: ClassVar[str]
    kind: ClassVar[str]
    """What it is, in words."""
    key: ClassVar[str]
    """Names the folder to label into, for scripts/label.py."""
    read_key: ClassVar[str]
    """Names the folder to train from."""
    program: ClassVar[str]
    """What makes one."""
    meaning: ClassVar[Mapping[str, str]]
    """What it means that a field differs."""

    store: str
    """`EpisodeStore.fingerprint`."""
    tasks: tuple[str, ...]
    """The labelled tasks; episodes of others are NaN."""
    episodes: int
    episode_steps: int
    """T: entries an episode."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an episode's labels."""
        return (self.episode_steps,)

    @property
    def episode_bytes(self) -> int:
        return math.prod(self.shape) * _DTYPE.itemsize

    @property
    @abstractmethod
    def maker(self) -> str:
        """By what the labels were made, in words."""

    @abstractmethod
    def command(self, store: Path, path: Path) -> str:
        """What a user types to complete the column at `path`, but for the weights."""

    @classmethod
    def anew(cls) -> str:
        return f"delete this folder and label anew, or name another one with {cls.key}=…"


@dataclass(frozen=True)
class LabelFacts(ColumnFacts):
    """A frozen teacher's predicted rewards."""

    format: ClassVar[str] = "tdmpc2-teacher-rewards"
    kind: ClassVar[str] = "a column of a teacher's rewards"
    key: ClassVar[str] = "teacher.labels"
    read_key: ClassVar[str] = "teacher.labels"
    program: ClassVar[str] = "scripts/label.py"
    meaning: ClassVar[Mapping[str, str]] = {
        "teacher": "made by another teacher",
        "teacher_checksum": "made by another teacher",
        "teacher_parameters": "made by another teacher",
        "precision": "made in another precision",
        "tasks": "made for other tasks",
        **_STORE_MEANING,
    }

    teacher: str
    """The teacher's name, as in the `teacher` group."""
    teacher_checksum: str
    """`RewardTeacher.checksum`: two teachers with the same one predict the same."""
    teacher_parameters: int
    precision: str
    """The arithmetic of the teacher: float32 or bfloat16."""

    @property
    def maker(self) -> str:
        return f"{self.teacher} in {self.precision}"

    def command(self, store: Path, path: Path) -> str:
        return (
            f"python scripts/label.py data_dir={store} teacher={self.teacher} teacher.checkpoint=… "
            f"teacher.precision={self.precision} teacher.labels={path}"
        )


@dataclass(frozen=True)
class PlanFacts(ColumnFacts):
    """What a model's planner would do: the mean of its plan's first action."""

    format: ClassVar[str] = "tdmpc2-planner-actions"
    kind: ClassVar[str] = "a column of a planner's actions"
    key: ClassVar[str] = "labels"
    read_key: ClassVar[str] = "imitate_labels"
    program: ClassVar[str] = "scripts/label.py what=planner"
    meaning: ClassVar[Mapping[str, str]] = {
        "planner": "made by another planner",
        "precision": "made in another precision",
        "model": "made by another model",
        "world": "made by another model",
        "states": "made of other states, or with other noise",
        "action_dim": "made by another model",
        "tasks": "made for other tasks",
        **_STORE_MEANING,
    }

    planner: str
    """The planner's numbers, "name=value" each."""
    precision: str
    """The arithmetic of its products."""
    model: str
    """Checksum of the whole model."""
    world: str
    """Checksum of what does not change when its policy prior is trained (`model.world_checksum`)."""
    states: str
    """Which of each episode's states were planned from, and by what seed."""
    action_dim: int
    """A: of the model's task set."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.episode_steps, self.action_dim)

    @property
    def maker(self) -> str:
        return f"the planner of model {self.model} in {self.precision} ({self.planner}; {self.states})"

    def command(self, store: Path, path: Path) -> str:
        return (
            f"python scripts/label.py what=planner data_dir={store} checkpoint=… precision={self.precision} "
            f"{self.planner} labels={path}"
        )


F = TypeVar("F", bound=ColumnFacts)


@dataclass(frozen=True)
class LabelHeader(Generic[F]):
    """The content of labels.json."""

    facts: F
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
        return self.done * self.facts.episode_bytes

    @property
    def checksum(self) -> str:
        """Short hex over all blocks: of the committed content as a whole."""
        return hashlib.sha256("".join(self.blocks).encode()).hexdigest()[:16]


class Column(Generic[F]):
    """A complete column, mapped read-only (see `open`)."""

    kind: ClassVar[type[ColumnFacts]]

    def __init__(self, path: Path, header: LabelHeader[F]) -> None:
        self.path = path
        self.header = header
        self._mapped = MappedFile(path / _VALUES, header.committed_bytes)
        self.values: npt.NDArray[np.float32] = self._mapped.values(_DTYPE).reshape(-1, *header.facts.shape)
        """float32 [episodes, T], or [episodes, T, A]."""

    @classmethod
    def open(cls, path: str | Path, store: EpisodeStore, tasks: Sequence[str] = ()) -> Self:
        """Maps the column at `path` and lays it against the store; `tasks` are those that will be read.

        Raises:
            DataError: for a column that is missing, incomplete, truncated, of another kind, version or store, or
                without one of `tasks`.
        """
        path = Path(path)
        header: LabelHeader[Any] = read_labels(path, cls.kind)
        facts = header.facts
        _check_store(path, header, store)
        if not header.complete:
            raise DataError(
                f"{path}: incomplete: {header.done:,} of {facts.episodes:,} episodes are labelled "
                f"({100 * header.done / facts.episodes:.1f}%); complete it with: {facts.command(store.path, path)}"
            )
        unlabelled = [name for name in tasks if name not in facts.tasks]
        if unlabelled:
            raise DataError(
                f"{path}: holds no labels of {', '.join(unlabelled)}, only of {', '.join(facts.tasks)}; "
                f"label the store for the task set to train on (task=…), in another folder ({facts.key}=…)."
            )
        return cls(path, header)

    def at(self, episodes: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """float32 [..., B], or [..., B, A], at `rows` [..., B] of `episodes` [B]."""
        self._mapped.check()
        values: npt.NDArray[np.float32] = self.values[episodes, rows]
        self._mapped.check()
        return values


class LabelColumn(Column[LabelFacts]):
    """A teacher's rewards: row t is of what led to observation t."""

    kind = LabelFacts


class PlannedColumn(Column[PlanFacts]):
    """A planner's actions: row t is what it would do in observation t."""

    kind = PlanFacts


class LabelWriter(Generic[F]):
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
        self, path: str | Path, facts: F, *, block_episodes: int = _BLOCK_EPISODES, commit_seconds: float = 1.0
    ) -> None:
        self.path = Path(path)
        self.episodes = 0
        """Episodes in the column so far, those not yet committed included."""
        self._header = LabelHeader(facts, block_episodes)
        self._lock = FolderLock(self.path, _LOCK, advice=f"name a folder elsewhere with {facts.key}=…")
        self._commit_seconds = commit_seconds
        self._committed_at = time.monotonic()
        self._pending: list[str] = []
        self._digest = hashlib.sha256()
        self._whole = True
        self._file: IO[bytes] | None = None

    @property
    def header(self) -> LabelHeader[F]:
        """What is committed."""
        return self._header

    def __enter__(self) -> Self:
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
        missing = (facts.episodes - self._header.done) * facts.episode_bytes
        free = shutil.disk_usage(self.path).free
        if missing > free:
            raise DataError(
                f"{self.path}: found {human_bytes(free)} free, expected at least {human_bytes(missing)} for the "
                f"labels that are missing; free some space or name another folder with {facts.key}=…."
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

    def _continued(self) -> LabelHeader[F]:
        """The header on disk, if it is one that these facts continue."""
        expected = self._header.facts
        found = read_labels(self.path, type(expected))
        differing = [f.name for f in fields(expected) if getattr(found.facts, f.name) != getattr(expected, f.name)]
        if differing:
            said = "; ".join(f"{n} is {_shown(found.facts, n)}, not {_shown(expected, n)}" for n in differing)
            raise DataError(
                f"{self.path}: its labels were {expected.meaning[differing[0]]} ({said}); {expected.anew()}."
            )
        self.episodes = found.done
        return found

    def append(self, values: npt.NDArray[np.float32]) -> None:
        """Adds the labels [E, T], or [E, T, A], of the next E episodes; commits blocks that are whole now and then."""
        facts, size = self._header.facts, self._header.block_episodes
        if values.shape[1:] != facts.shape or self.episodes + len(values) > facts.episodes:
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

    def _write_header(self, header: LabelHeader[F]) -> None:
        content = {"format": header.facts.format, "version": VERSION, **asdict(header.facts)}
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


@overload
def read_labels(path: str | Path) -> LabelHeader[LabelFacts]: ...


@overload
def read_labels(path: str | Path, kind: type[F]) -> LabelHeader[F]: ...


def read_labels(path: str | Path, kind: type[Any] = LabelFacts) -> LabelHeader[Any]:
    """What the column at `path` says of itself; its values are at least as long as that, but not read.

    Raises:
        DataError: when it is missing, malformed, of another kind or version, or truncated.
    """
    path = Path(path)
    file = path / _HEADER
    if not file.is_file():
        raise DataError(
            f"{file}: found no such file, expected a label column's; make one with {kind.program}, or check "
            f"{kind.read_key}."
        )
    try:
        content = parse_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check its permissions.") from error
    except ValueError as error:
        raise DataError(f"{file}: is not JSON ({printable(error)}); {kind.anew()}.") from error
    if not isinstance(content, dict) or content.get("format") != kind.format:
        raise DataError(f"{file}: is not the header of {kind.kind}; check {kind.read_key}.")
    if content.get("version") != VERSION or isinstance(content.get("version"), bool):
        found = printable(content.get("version"), 60)
        raise DataError(f"{file}: found version {found}, expected {VERSION}; {kind.anew()}.")
    header: LabelHeader[Any] = _parsed(file, content, kind)
    values = path / _VALUES
    try:
        held = values.stat().st_size if header.blocks or values.exists() else 0
    except OSError as error:
        raise DataError(f"{values}: cannot be read ({error.strerror}); {kind.anew()}.") from error
    if held < header.committed_bytes:
        raise DataError(
            f"{values}: truncated: found {held:,} bytes, expected {header.committed_bytes:,}; copy it again, or "
            f"{kind.anew()}."
        )
    return header


def labelled_tasks(store: EpisodeStore, task_set: TaskSet) -> tuple[str, ...]:
    """The tasks of a set that a store has, to be labelled.

    Raises:
        DataError: for a store without episodes, or with none of these tasks.
    """
    if not len(store):
        raise DataError(f"{store.path}: holds no episodes; import or collect some first.")
    tasks = tuple(task for task in task_set.tasks if task in store.tasks)
    if not tasks:
        raise DataError(f"{store.path}: holds none of the tasks of '{task_set.name}'; choose the store's task set.")
    return tasks


def verify_labels(
    path: str | Path, store: EpisodeStore, kind: type[ColumnFacts] = LabelFacts
) -> LabelHeader[ColumnFacts]:
    """Reads every committed block and compares its checksum; raises a `DataError` naming the first that differs."""
    path = Path(path)
    header = read_labels(path, kind)
    _check_store(path, header, store)
    size = header.block_episodes * header.facts.episode_bytes
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
                        f"{expected[:12]}…; its content has changed: copy it again, or {kind.anew()}."
                    )
    except OSError as error:
        raise DataError(f"{path / _VALUES}: cannot be read ({error.strerror}); check its permissions.") from error
    return header


def _check_store(path: Path, header: LabelHeader[Any], store: EpisodeStore) -> None:
    facts = header.facts
    found = (facts.store, facts.episodes, facts.episode_steps)
    expected = (store.fingerprint, len(store), store.episode_steps)
    if found != expected:
        raise DataError(
            f"{path}: its labels were made of another store (fingerprint {found[0]}, {found[1]:,} episodes of "
            f"{found[2]} steps), not of {store.path} ({expected[0]}, {expected[1]:,} episodes of {expected[2]} steps); "
            f"give the store's own labels, or label it with {facts.program}."
        )


def _shown(facts: ColumnFacts, name: str) -> str:
    value = getattr(facts, name)
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _parsed(file: Path, content: dict[str, Any], kind: type[F]) -> LabelHeader[F]:
    """A header whose every value has its type and whose numbers fit together, or a `DataError`."""

    def damaged(what: str) -> DataError:
        return DataError(f"{file}: {what}; copy it again, or {kind.anew()}.")

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

    read: dict[str, Callable[[str], Any]] = {"str": text, "int": number, "tuple[str, ...]": names}
    held: dict[str, Any] = {field.name: read[str(field.type)](field.name) for field in fields(kind)}
    facts = kind(**held)
    header = LabelHeader(facts, number("block_episodes"), names("blocks"))
    most = -(-facts.episodes // header.block_episodes)
    if len(header.blocks) > most:
        raise damaged(f"key 'blocks' lists {len(header.blocks)}, expected at most {most}")
    return header
