"""What is wrong with a configuration, in one line that names the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.conf import HydraConf
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tdmpc2.errors import UserError, printable
from tdmpc2.settings.schema import SCHEMAS

_QUOTING = "quote a value that holds spaces, commas, '=', brackets or letters beyond ASCII: \"key='value'\""


def schema_of(program: str) -> DictConfig:
    schema = OmegaConf.structured(SCHEMAS[program])
    assert isinstance(schema, DictConfig)
    return schema


def keys_of(schema: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all that can be set."""
    for key in map(str, schema):
        node = schema._get_node(key)
        if isinstance(node, DictConfig):
            yield from keys_of(node, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def check_known(config: DictConfig, program: str) -> None:
    """Raises a `UserError` for a key that was added to (`+key`) or taken from (`~key`) what the program knows."""
    schema = schema_of(program)
    known = set(keys_of(schema))
    found = set(keys_of(config))
    strange = sorted(found - known)
    if strange:
        key = strange[0]
        raise UserError(f"+{printable(key)}: this program has no such key{_nearest(key, sorted(known))}")
    removed = sorted(known - found)
    if removed:
        raise UserError(f"~{removed[0]}: the program needs this key; set another value instead of removing it.")
    empty = sorted(OmegaConf.missing_keys(config) - OmegaConf.missing_keys(schema))
    if empty:
        raise UserError(f"{empty[0]} has no value: give {empty[0]}=… on the command line.")


def check_hydra_keys(arguments: Sequence[str]) -> None:
    """Raises a `UserError` for a setting that Hydra itself does not know: with a + it takes any."""
    for argument in arguments:
        first, *parts = argument.partition("=")[0].lstrip("+").split(".")
        if not argument.startswith("+") or first != "hydra":
            continue
        kind: Any = HydraConf
        for part in parts:
            if not is_dataclass(kind):  # what plug-ins define
                break
            types = {field.name: field.type for field in fields(kind)}
            if part not in types:
                raise UserError(f"{printable(argument)}: Hydra has no such setting; --hydra-help tells what it has.")
            kind = types[part]


def _nearest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:  # 'foo.lr' for 'lr', 'random' for 'teacher.random_weights'
        close = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return f"; did you mean {close[0]}?" if close else "; --help shows all keys."


def one_line(error: Exception, known: Sequence[str] = ()) -> str:
    """What Hydra or OmegaConf say about a configuration, without the lines about their insides.

    `known` are the keys to offer where one is not known.
    """
    said = str(error).partition("Config search path:")[0].splitlines()
    if isinstance(error.__cause__, OmegaConfBaseException):
        said += str(error.__cause__).splitlines()
    key = next((line.split(":", 1)[1].strip() for line in said if line.strip().startswith("full_key:")), "")
    # Typed configurations take no key that is not theirs, so "+key" is no advice here.
    insides = ("To append to your config", "full_key:", "object_type=", "reference_type=", "See https://")
    said = [line for line in said if line.strip() and not line.strip().startswith(insides)]
    options = [line.strip() for line in said if line.startswith("\t")]
    text = [line.strip().rstrip(".") for line in said if not line.startswith("\t")]
    line = ": ".join(dict.fromkeys(text)).replace("::", ":") + (" " + ", ".join(options) if options else "")
    if not isinstance(error, HydraException | OmegaConfBaseException):
        line = f"{type(error).__name__}: {line}" if line else type(error).__name__
    if "Could not override '" in line and known:
        wrong = line.partition("Could not override '")[2].partition("'")[0]
        line += _nearest(wrong, known)
    if isinstance(error, OverrideParseException):
        line += f"; {_QUOTING}"
    return line if key in line else f"{key}: {line}"
