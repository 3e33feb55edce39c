"""What every file of `torch.save` has in common, read with bounds and without torch: a zip archive and a pickle.

Such a file is a zip archive: `data.pkl` is a pickle that describes the content, `data/N` are the tensors' bytes. Its
members are laid against the file before anything of them is used, and the pickle's instructions are read one by one:
only those that make plain containers, numbers, texts and calls are known. A name in it is never looked up; what it
stands for, and what a storage is, comes from the `Maker` of the package that reads (`checkpointing`, `data`). How many
instructions, how deep a nesting and how long a text there may be is bounded, so that a small file is little work.
"""

from __future__ import annotations

import contextlib
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tdmpc2.errors import UserError

MAX_DEPTH = 64
"""Of containers in one another; a training state has 8."""
MAX_VALUES = 500_000
"""In all containers together, counted as often as they are named; a training state has some thousands."""
MAX_AXES = 8
_MAX_STACK = 20_000  # values not yet in their containers: pickle puts a thousand at a time into a list
_MAX_TEXT = 1 << 20
_MAX_INTEGER_BITS = 256
_MAX_BYTEORDER_BYTES = 16


class Damaged(Exception):
    """What is wrong with a file, for the message that names it (see `refusing`)."""


@contextlib.contextmanager
def refusing(path: Path, kind: type[UserError], damaged: Callable[[str], str]) -> Iterator[None]:
    """Turns whatever goes wrong in reading a file into one error of this kind; `damaged` makes its text of the reason.

    Damaged bytes make zipfile, struct, mmap and the codecs raise nearly any error, memory and recursion included.
    """
    try:
        yield
    except UserError:
        raise
    except Damaged as error:
        raise kind(f"{path}: {damaged(str(error))}") from error
    except OSError as error:
        raise kind(
            f"{path}: cannot be read ({error.strerror or error}); check the file and its permissions."
        ) from error
    except Exception as error:
        raise kind(f"{path}: {damaged(f'{type(error).__name__}: {error}')}") from error


@dataclass(frozen=True)
class Name:
    """A name in the pickle, as text: it is compared with the known ones and nothing else."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Archive:
    """The checked zip archive: `pickle`, and where the bytes of each storage lie in the file.

    Args:
        path: the file.
        max_pickle_bytes: more is refused before it is read.
        verify: compare every member with its checksum, which reads the whole file.

    Raises:
        Damaged, and what zipfile raises: use it within `refusing`.
    """

    def __init__(self, path: Path, *, max_pickle_bytes: int, verify: bool) -> None:
        self.size = path.stat().st_size
        self._path = path
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            _check_members(infos, self.size)
            pickles = [info.filename for info in infos if info.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise Damaged(f"it is a zip archive with {len(pickles)} data.pkl, not a file of torch.save")
            prefix = pickles[0].removesuffix("data.pkl")
            self.members = {i.filename.removeprefix(prefix): i for i in infos if i.filename.startswith(prefix)}
            """By their names below the archive's folder."""
            if self.members["data.pkl"].file_size > max_pickle_bytes:
                raise Damaged(f"its data.pkl is too large (more than {max_pickle_bytes >> 20} MiB)")
            if "byteorder" in self.members:
                if self.members["byteorder"].file_size > _MAX_BYTEORDER_BYTES:
                    raise Damaged("its byteorder is too long")
                order = archive.read(prefix + "byteorder").strip().decode("ascii", "replace")
                if order != "little":
                    raise Damaged(f"its byte order is {order!r}, expected 'little': it was saved on another machine")
            if verify and (damaged := archive.testzip()) is not None:
                raise Damaged(f"'{damaged}' does not match its checksum")
            self.pickle = archive.read(pickles[0])

    def place(self, key: str) -> tuple[int, int]:
        """Offset in the file and length of the bytes of storage `key`."""
        info = self.members.get(f"data/{key}")
        if info is None:
            raise Damaged(f"member 'data/{key}' is missing")
        with self._path.open("rb") as file:
            # The name and the padding before the bytes are as long as the member's own header says.
            file.seek(info.header_offset)
            header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise Damaged(f"member 'data/{key}' is damaged")
        name, extra = struct.unpack("<HH", header[26:30])
        offset = info.header_offset + 30 + name + extra
        if offset + info.file_size > self.size:
            raise Damaged(f"member 'data/{key}' ends after the file's end")
        return offset, info.file_size


def _check_members(infos: list[zipfile.ZipInfo], size: int) -> None:
    """No name is there twice, all are plain bytes, and together they are no larger than the file."""
    names: set[str] = set()
    for info in infos:
        if info.filename in names:
            raise Damaged(f"it holds '{info.filename}' twice")
        names.add(info.filename)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise Damaged(f"member '{info.filename}' is compressed or encrypted, expected plain bytes")
        if info.file_size != info.compress_size:
            raise Damaged(f"member '{info.filename}' has two sizes")
        if not 0 <= info.header_offset < size:
            raise Damaged(f"member '{info.filename}' lies outside the file")
    if sum(info.file_size for info in infos) > size:
        raise Damaged("its members are larger than the file")


class Maker(Protocol):
    """What a pickle's names, calls and storages become. Each raises `Damaged` or a `UserError` for what it refuses."""

    def name(self, name: Name) -> object:
        """What a name is; it stands for itself, nothing is looked up."""

    def call(self, called: object, arguments: tuple[Any, ...]) -> object:
        """What `called`, one of the above, makes of its arguments."""

    def build(self, target: object, state: object) -> None:
        """Gives an object its attributes."""

    def storage(self, pid: object) -> object:
        """The storage that the pickle names by `pid`."""

    def foreign(self, what: str) -> Exception:
        """The error for something that such a file never holds."""


def read_pickle(data: bytes, maker: Maker, max_instructions: int) -> object:
    """The pickle's root, made of dict, list (sets too), tuple, str, bytes, numbers, None and what `maker` makes.

    Raises:
        Damaged: for a pickle that is cut off, absurd, or beyond the bounds.
    """
    try:
        root = _Machine(data, maker, max_instructions).run()
    except (UserError, Damaged):
        raise
    except Exception as error:  # damaged bytes make pickletools raise nearly any error
        raise _broken(f"{type(error).__name__}: {error}") from error
    _check_extent(root)
    return root


def _broken(what: str) -> Damaged:
    return Damaged(f"its pickle is damaged or of an unknown form ({what})")


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    )
)


class _Machine:
    """The stack and memo of a pickle; they hold plain values and what the maker makes."""

    def __init__(self, data: bytes, maker: Maker, max_instructions: int) -> None:
        self._data = data
        self._maker = maker
        self._max_instructions = max_instructions
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> object:
        stack = self._stack
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self._data), start=1):
            if count > self._max_instructions:
                raise Damaged(f"its pickle has more than {self._max_instructions} instructions")
            if len(stack) > _MAX_STACK:
                found = type(stack[-1]).__name__
                raise Damaged(f"it holds a {found} among more than {_MAX_STACK} unfinished values")
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    self._marks.append(len(stack))
                case name if name in _CONSTANTS:
                    stack.append(_CONSTANTS[name])
                case name if name in _LITERALS:
                    stack.append(_bounded(argument))
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST" | "EMPTY_SET":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "DICT":
                    items = self._since_mark()
                    stack.append({})
                    self._set_items(items)
                case "LIST" | "FROZENSET":
                    stack.append(self._since_mark())
                case "TUPLE":
                    stack.append(tuple(self._since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(self._take(int(opcode.name[-1]))))
                case "APPEND":
                    self._extend(self._take(1))
                case "APPENDS" | "ADDITEMS":
                    self._extend(self._since_mark())
                case "SETITEM":
                    self._set_items(self._take(2))
                case "SETITEMS":
                    self._set_items(self._since_mark())
                case "POP":
                    self._take(1)
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    self._remember(int(argument or 0))
                case "MEMOIZE":
                    self._remember(len(self._memo))
                case "GET" | "BINGET" | "LONG_BINGET":
                    stack.append(self._memo[int(argument or 0)])
                case "GLOBAL":
                    module, _, name = str(argument).partition(" ")
                    stack.append(self._maker.name(Name(module, name)))
                case "STACK_GLOBAL":
                    module, name = self._take(2)
                    if not isinstance(module, str) or not isinstance(name, str):
                        raise _broken("it names something by no text")
                    stack.append(self._maker.name(Name(module, name)))
                case "INST":
                    module, _, name = str(argument).partition(" ")
                    self._call(self._maker.name(Name(module, name)), tuple(self._since_mark()))
                case "OBJ":
                    called, *arguments = self._since_mark()
                    self._call(called, tuple(arguments))
                case "REDUCE" | "NEWOBJ":
                    self._call(*self._take(2))
                case "NEWOBJ_EX":
                    called, arguments, names = self._take(3)
                    if names != {}:
                        raise _broken("it calls with named arguments")
                    self._call(called, arguments)
                case "BUILD":
                    (state,) = self._take(1)
                    self._maker.build(self._top(), state)
                case "BINPERSID":
                    stack.append(self._maker.storage(*self._take(1)))
                case "STOP":
                    (root,) = self._take(1)
                    if stack or self._marks:
                        raise _broken("it ends in the middle")
                    return root
                case other:
                    raise self._maker.foreign(f"the pickle instruction {other}")
        raise _broken("it has no end")

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise _broken("it takes more than it made")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _take(self, count: int) -> list[Any]:
        if len(self._stack) - (self._marks[-1] if self._marks else 0) < count:
            raise _broken("it takes more than it made")
        items = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return items

    def _top(self) -> Any:
        if not self._stack:
            raise _broken("it takes more than it made")
        return self._stack[-1]

    def _remember(self, place: int) -> None:
        # torch numbers its memo from 0 upwards, and every entry takes an instruction.
        if not 0 <= place <= len(self._data):
            raise Damaged(f"its pickle asks for an absurd memo (place {place}, expected less than {len(self._data)})")
        self._memo[place] = self._top()

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self._top(), list):
            raise _broken("it appends to no list")
        self._top().extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise _broken("it sets items of no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):  # a tuple could be nested too deep to be hashed
                raise self._maker.foreign(f"a dictionary key of type {type(key).__name__}")
            target[key] = value

    def _call(self, called: object, arguments: object) -> None:
        if not isinstance(arguments, tuple):
            raise _broken("it calls with no arguments")
        self._stack.append(self._maker.call(called, arguments))


def _bounded(value: Any) -> Any:
    if isinstance(value, str | bytes) and len(value) > _MAX_TEXT:
        raise Damaged(f"its pickle holds a text of {len(value)} characters")
    if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
        raise Damaged(f"its pickle holds a number of {value.bit_length()} bits")
    return value


def _check_extent(root: object) -> None:
    """Refuses what is nested too deep (or in itself), or, through values named many times, would be too many."""
    left: list[tuple[object, int]] = [(root, 0)]
    count = 1
    while left:
        value, depth = left.pop()
        if not isinstance(value, dict | list | tuple):
            continue
        if depth == MAX_DEPTH:
            raise Damaged(f"it holds a {type(value).__name__} nested more than {MAX_DEPTH} deep")
        count += len(value)
        if count > MAX_VALUES:
            raise Damaged(f"it holds more than {MAX_VALUES} values")
        left.extend((item, depth + 1) for item in (value.values() if isinstance(value, dict) else value))


def whole_numbers(values: object) -> tuple[int, ...] | None:
    """`values` when it is a tuple or list of integers from 0 to 2**62, else None."""
    if not isinstance(values, tuple | list) or any(type(v) is not int or not 0 <= v <= 1 << 62 for v in values):
        return None
    return tuple(values)
