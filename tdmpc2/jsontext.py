"""Reading JSON that anyone may have written: bounded in length, depth and number of values, each key once."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 50  # of lists and objects in one another; a configuration has four
_MAX_BYTES = 64 << 20  # a results file of a thousand episodes of every task has 4 MB


def parse_json(text: str | bytes, max_bytes: int = _MAX_BYTES) -> Any:
    """The value that a JSON text (UTF-8 where it is bytes) stands for.

    Numbers may be of any size, and 1e999 is infinite: whoever takes one checks its range.

    Raises:
        ValueError: for text that is not JSON, NaN and Infinity included, is too long or nested too deep, holds a key
            twice, half a surrogate pair, or an integer of thousands of digits.
    """
    if len(text) > max_bytes:
        raise ValueError(f"it has {len(text)} bytes, expected at most {max_bytes}")
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_each_once)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    _check(value)
    return value


def whole_number(value: object, least: int = 0, most: int = 1 << 53) -> bool:
    """Whether a value is an integer from `least` to `most`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _refuse_constant(literal: str) -> None:
    raise ValueError(f"it holds {literal}, which is not JSON")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        left = set(found)
        for name, _ in pairs:
            if name not in left:
                raise ValueError(f"it holds the key {name[:60]!r} twice")
            left.remove(name)
    return found


def _check(root: Any) -> None:
    """Raises a `ValueError` for what JSON allows and no one can show: half a surrogate pair, nesting without end."""
    left: list[tuple[Any, int]] = [(root, 0)]
    while left:
        value, depth = left.pop()
        if isinstance(value, str):
            value.encode()
        elif isinstance(value, dict | list):
            if depth == MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
            left.extend((item, depth + 1) for item in value)  # of a dict, its keys
            if isinstance(value, dict):
                left.extend((item, depth + 1) for item in value.values())
