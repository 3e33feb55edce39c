"""What a checkpoint of this project says about itself: one JSON object in the safetensors header."""

from __future__ import annotations

import json
import math
import reprlib
import zlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tdmpc2.errors import CheckpointError, UserError, printable
from tdmpc2.jsontext import parse_json
from tdmpc2.model import ModelDims
from tdmpc2.versions import package_versions

FORMAT = "tdmpc2-checkpoint"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class CheckpointMetadata:
    """Everything needed to rebuild the model and to know where it came from.

    Attributes:
        task_set: name of the task set.
        tasks: task names in the order of their ids.
        dims: the model's dimensions.
        model_size: the published size (1, 5, 19, 48, 317), None for another one.
        step: updates taken.
        scheme: how the weights are stored, "float32" or a quantisation scheme.
        scheme_version: of the scheme's stored form.
        config: the resolved configuration of the run that made it.
        versions: package versions at that time.
        normalised_score: on its task set, 0 to 100, None if it was not evaluated.
    """

    task_set: str
    tasks: tuple[str, ...]
    dims: ModelDims
    model_size: int | None
    step: int
    scheme: str = "float32"
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=package_versions)
    normalised_score: float | None = None
    scheme_version: int = 1

    def to_json(self, checksums: dict[str, int]) -> str:
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self), "crc32": checksums}
        return _dump({**content, "metadata_crc32": _crc32(content)})


def _dump(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, allow_nan=False)


def _crc32(content: dict[str, Any]) -> int:
    return zlib.crc32(_dump(content).encode())


_TYPES: dict[str, tuple[type, ...]] = {
    "task_set": (str,),
    "tasks": (list,),
    "dims": (dict,),
    "model_size": (int, type(None)),
    "step": (int,),
    "scheme": (str,),
    "scheme_version": (int,),
    "config": (dict,),
    "versions": (dict,),
    "normalised_score": (int, float, type(None)),
}


_MAX_BYTES = 4 << 20  # a file of 317M parameters has 20 KB
_LARGEST = 1 << 63
_LONGEST_NAME = 300


def _expect(what: str, value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise TypeError(f"{what} is {reprlib.repr(value)}")
    return value


def _dims(path: Path, content: dict[str, Any]) -> ModelDims:
    numbers = {n: _expect(n, v, int, float) for n, v in content.items()}
    try:
        return ModelDims(**numbers)
    except UserError as error:
        raise CheckpointError(f"{path}: no model has its dimensions ({printable(error)}).") from error


def _field(what: str, value: Any) -> Any:
    """A value of its type, and if it is a number, one that can be meant."""
    _expect(what, value, *_TYPES[what])
    fits = math.isfinite(value) if isinstance(value, float) else not isinstance(value, int) or 0 <= value < _LARGEST
    if not fits:
        raise ValueError(f"{what} is {reprlib.repr(value)}")
    return value


def _name(what: str, value: Any) -> str:
    """A text that is shown in messages: one that a terminal can show."""
    if not isinstance(value, str) or not value.isprintable() or len(value) > _LONGEST_NAME:
        raise TypeError(f"{what} is {reprlib.repr(value)}")
    return value


def parse_metadata(path: Path, text: str | None) -> tuple[CheckpointMetadata, dict[str, int]]:
    """The metadata and the CRC-32 of each tensor.

    Raises:
        CheckpointError: when it is missing, of another format version, or lacks a key.
    """
    if text is None:
        raise CheckpointError(f"{path}: a safetensors file without this project's metadata; expected '{FORMAT}'.")
    try:
        raw = parse_json(text, _MAX_BYTES)
        # The first files were written without this checksum.
        checksum = raw.pop("metadata_crc32", None)
        if checksum is not None and checksum != _crc32(raw):
            raise CheckpointError(f"{path}: its metadata does not match its checksum; the file is damaged.")
        if (
            raw["format"] != FORMAT
            or isinstance(raw["format_version"], bool)
            or raw["format_version"] != FORMAT_VERSION
        ):
            raise CheckpointError(
                f"{path}: format {printable(raw['format'])} version {printable(raw['format_version'])}, "
                f"expected {FORMAT} version {FORMAT_VERSION}."
            )
        # Nor did they name the version of their scheme.
        raw.setdefault("scheme_version", 1)
        known = {f.name: _field(f.name, raw[f.name]) for f in fields(CheckpointMetadata)}
        known["dims"] = _dims(path, known["dims"])
        known["task_set"] = _name("task_set", known["task_set"])
        known["tasks"] = tuple(_name("a task", task) for task in known["tasks"])
        known["versions"] = {_name("a package", n): _name("a version", v) for n, v in known["versions"].items()}
        sums = _expect("crc32", raw["crc32"], dict)
        return CheckpointMetadata(**known), {n: _expect(f"crc32 of {n}", v, int) for n, v in sums.items()}
    except CheckpointError:
        raise
    except (UserError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        reason = printable(f"{type(error).__name__}: {error}")
        raise CheckpointError(f"{path}: its metadata is damaged ({reason}).") from error
