"""A key: what a user can set, written once, as a field of the frozen dataclass that the package which uses it takes.

    @dataclass(frozen=True)
    class LossWeights:
        rho: float = key(0.5, "weight of step t is rho**t", unit="ratio", source=TDMPC2, check=Share(zero=False))

        def __post_init__(self) -> None:
            check_keys(self)

`tdmpc2.settings.schema` derives the programs' configurations from such classes, `tdmpc2.settings.convert` makes their
instances from a configuration, and `tdmpc2.settings.keys` lists what all programs take.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any

Check = Callable[[str, object], None]
"""Raises a `UserError` that names a key, the value found and what it may be: an object of `tdmpc2.ranges`, as a rule,
whose text (`str`) tells what is allowed."""

THIS_PROJECT = "this project"
TDMPC2 = "TD-MPC2 (arXiv 2310.16828), appendix, and its released configuration"
TDMPC2_SIZES = "TD-MPC2 (arXiv 2310.16828), appendix, table of model sizes"
TDMPC_OPT = "TD-MPC-Opt (arXiv 2507.01823)"

METADATA = "key"
"""Under which a field's metadata hold its `Key`."""


@dataclass(frozen=True)
class Key:
    """What is written of a key beside its type and default.

    Attributes:
        name: as a user writes it.
        text: what it means.
        unit: of its value; for what is no number, what it is: "true or false", "name", "path".
        source: where its default comes from: a paper's section or table, or "this project".
        check: what its value may be; None where its type says it all, or whoever uses it tells.
        free_text: its value is a path or a name: any text, which Hydra's grammar need not understand.
        names_run: where it is set, a run's folder is named by it; not so for what changes nothing about the updates.
        first: the definition that this one repeats with other words, another default or another check.
    """

    name: str
    text: str
    unit: str
    source: str
    check: Check | None = None
    free_text: bool = False
    names_run: bool = True
    first: Key | None = None

    @property
    def definition(self) -> Key:
        """The one place where the key is written, which is this one unless it repeats another."""
        return self if self.first is None else self.first


def key(
    default: Any = MISSING,
    text: str = "",
    *,
    unit: str,
    source: str,
    check: Check | None = None,
    name: str = "",
    free_text: bool = False,
    names_run: bool = True,
) -> Any:
    """A field of a frozen dataclass that users can set; see `Key`.

    Args:
        default: of the field; left out for one that has none.
        name: as users write it, where the field is called otherwise.

    Raises:
        TypeError: where text, unit or source are empty.
    """
    if not (text.strip() and unit.strip() and source.strip()):
        raise TypeError(f"a key needs its text, unit and source, found {text!r}, {unit!r} and {source!r}")
    return _field(default, Key(name, text, unit, source, check, free_text, names_run))


def key_of(cls: type, name: str, **changes: Any) -> Any:
    """A field that repeats a key of another dataclass; `changes` are its `default` or attributes of `Key`."""
    for declared, held in keys_in(cls):
        if held.name == name:
            default = changes.pop("default", declared.default)
            return _field(default, replace(held, **changes, first=held.definition))
    raise TypeError(f"{cls.__name__} has no key {name}")


def _field(default: Any, held: Key) -> Any:
    metadata = {METADATA: held}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def keys_in(cls: Any) -> Iterator[tuple[Field[Any], Key]]:
    """Every field of a dataclass that is a key, with what is written of it; the others are derived, not set."""
    for declared in fields(cls):
        held = declared.metadata.get(METADATA)
        if held is not None:
            yield declared, held if held.name else replace(held, name=declared.name, first=held.definition)


def check_keys(settings: Any, prefix: str = "", *, but: Collection[str] = ()) -> None:
    """Raises the `UserError` of the first key of a dataclass's instance whose value its check does not take.

    Args:
        settings: the instance. None is right where it is a key's default.
        prefix: before a key's name in the message.
        but: fields to leave to a check that relates several.
    """
    for declared, held in keys_in(settings):
        value = getattr(settings, declared.name)
        off = value is None and declared.default is None
        if held.check is not None and declared.name not in but and not off:
            held.check(f"{prefix}{held.name}", value)
