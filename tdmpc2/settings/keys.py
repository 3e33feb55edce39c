"""The list of all keys: what every program takes, with type, unit, default, range, source and meaning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Any, get_args, get_origin

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from tdmpc2.places import CONFIG_DIR
from tdmpc2.settings.schema import SCHEMAS, register_schemas, schema_keys

_TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null"}


@dataclass(frozen=True)
class KeyRow:
    """One key of one program, in words.

    Attributes:
        program: as in `SCHEMAS`.
        name: dotted, as a user writes it.
        type: such as "whole number or null".
        unit: as its definition says.
        default: what the program has without any override, in YAML; "required" where a user must give it.
        range: what its value may be beside its type; empty where nothing is said.
        source: of the default: a paper's section or table, or "this project".
        text: what it means.
    """

    program: str
    name: str
    type: str
    unit: str
    default: str
    range: str
    source: str
    text: str


def key_rows() -> Iterator[KeyRow]:
    """Every key of every program, in the order of the programs and of their configurations.

    The defaults are those of the composed configurations: what the choices of `config/` change is in them.
    """
    register_schemas()
    for program, schema in SCHEMAS.items():
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
            config = compose(config_name=program)
        missing = OmegaConf.missing_keys(config)
        for name, declared, key in schema_keys(schema):
            default = "required" if name in missing else _default(config, name)
            allowed = "" if key.check is None else str(key.check)
            yield KeyRow(program, name, _type(declared.type), key.unit, default, allowed, key.source, key.text)


def _default(config: DictConfig, name: str) -> str:
    value = OmegaConf.select(config, name)
    if isinstance(value, str):
        return value
    return OmegaConf.to_yaml(OmegaConf.create([value])).removeprefix("- ").strip()


def _type(hint: Any) -> str:
    if isinstance(hint, UnionType):
        return " or ".join(map(_type, get_args(hint)))
    if get_origin(hint) is list:
        return f"list of {_type(get_args(hint)[0])}"
    return _TYPES[hint]
