"""What the property tests share: damage to files, odd values in JSON, harmful pickles, and what a loader may answer.

`cases(n)` runs n cases, the same ones every time. `pytest tests/test_properties_*.py --hypothesis-profile=slow` runs
20 times as many, other ones every time.
"""

from __future__ import annotations

import json
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tdmpc2.errors import UserError

_SECONDS = 20
_MEBIBYTES = 256


def register_profiles() -> None:
    """The profiles that `cases` goes by; the quick one is the default."""
    common: dict[str, Any] = {
        "deadline": None,
        "suppress_health_check": [
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
        ],
    }
    settings.register_profile("quick", max_examples=100, derandomize=True, database=None, **common)
    settings.register_profile("slow", max_examples=2000, **common)
    settings.load_profile("quick")


def cases(count: int) -> settings:
    """So many examples in the quick profile, in proportion in others."""
    return settings(max_examples=count * settings.default.max_examples // 100)


def loads(loader: Callable[[], object], named: Path, error_type: type[Exception] = UserError) -> bool:
    """Whether a loader takes a file; if not, it must say so in one printable line that names the file.

    Any other error passes through. Neither may it take long or fill the memory.
    """
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        loader()
        taken = True
    except error_type as error:
        message = str(error)
        assert str(named) in message, message
        assert message.isprintable(), message
        assert len(message) < 4000, message
        taken = False
    assert time.monotonic() - began < _SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _MEBIBYTES << 10
    return taken


# -- bytes -----------------------------------------------------------------------------------------------------

_INTS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 10**12, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)


@st.composite
def damage(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` cut, with bits flipped, sizes overwritten, pieces left out, doubled or strange."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        if not out:
            break
        # Headers and directories are at the ends.
        near = draw(st.sampled_from(("start", "end", "anywhere")))
        reach = len(out) - 1 if near == "anywhere" else min(len(out) - 1, 600)
        index = draw(st.integers(0, reach))
        index = len(out) - 1 - index if near == "end" else index
        kind = draw(st.sampled_from(("flip", "cut", "number", "drop", "double", "random", "zero")))
        size = draw(st.integers(1, 64))
        if kind == "flip":
            out[index] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del out[index:]
        elif kind == "number":
            width = draw(st.sampled_from((2, 4, 8)))
            number = draw(st.sampled_from(_INTS)) & ((1 << 8 * width) - 1)
            out[index : index + width] = number.to_bytes(width, "little")
        elif kind == "drop":
            del out[index : index + size]
        elif kind == "double":
            out[index:index] = out[index : index + size]
        elif kind == "random":
            out[index : index + size] = draw(st.binary(min_size=1, max_size=64))
        else:
            out[index : index + size] = bytes(size)
    return bytes(out)


# -- JSON ------------------------------------------------------------------------------------------------------

_DEEP = "@deep@"
_ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 1000, 1 << 31, 1 << 63, 10**30, 10**400, -0.5, 1e308, float("nan"), float("inf"),
    "", "x", "\ud800", "../../evil", "a" * 5000, "é\n\x00", [], {}, [1], ["x"], [[]], {"x": 1}, {"": None}, _DEEP,
)  # fmt: skip


@st.composite
def odd_json(draw: st.DrawFn, text: str, fields: tuple[str, ...] = ()) -> str:
    """The JSON text with one to three values replaced by odd ones, keys left out, or items doubled.

    Values under keys in `fields` are JSON texts themselves and are changed within.
    """
    root = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        root = _change(draw, root, fields)
    depth = draw(st.sampled_from((50, 990, 100_000)))
    return json.dumps(root).replace(f'"{_DEEP}"', "[" * depth + "]" * depth)


def _change(draw: st.DrawFn, value: Any, fields: tuple[str, ...]) -> Any:
    stop = draw(st.integers(0, 3)) == 0
    if not isinstance(value, dict | list) or not value or stop:
        return draw(st.sampled_from(_ODD))
    if isinstance(value, dict):
        key = draw(st.sampled_from(sorted(value)))
        kind = draw(st.sampled_from(("change", "change", "change", "drop", "add")))
        if kind == "drop":
            return {k: v for k, v in value.items() if k != key}
        if kind == "add":
            return value | {draw(st.sampled_from(("x", "", "../x", key + "s"))): draw(st.sampled_from(_ODD))}
        if key in fields:
            return value | {key: draw(odd_json(value[key]))}
        return value | {key: _change(draw, value[key], fields)}
    index = draw(st.integers(0, len(value) - 1))
    kind = draw(st.sampled_from(("change", "change", "drop", "double")))
    if kind == "change":
        return [*value[:index], _change(draw, value[index], fields), *value[index + 1 :]]
    return value[:index] + value[index + 1 :] if kind == "drop" else [*value, value[index]]


# -- pickles and archives ----------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _call(form: str, module: str, name: str, argument: bytes) -> bytes:
    """Instructions that call module.name(argument) in an unrestricted reader and leave the result on the stack."""
    named = f"c{module}\n{name}\n".encode()
    return {
        "reduce": named + argument + b"\x85R",
        "stack global": text(module) + text(name) + b"\x93" + argument + b"\x85R",
        "inst": b"(" + argument + f"i{module}\n{name}\n".encode(),
        "obj": b"(" + named + argument + b"o",
        "newobj": named + argument + b"\x85\x81",
        "newobj_ex": named + argument + b"\x85}\x92",
        "name alone": named,
        "build": named + b")\x81}" + text("__dict__") + argument + b"sb",
        "attributes": named + b"}" + text("__setstate__") + named + b"sb" + argument + b"b",
        "setitem": named + argument + argument + b"s",
        "extension": b"\x82\x01",
        "persistent": named + argument + b"\x85R" + b"Q",
        "persistent text": b"P" + name.encode() + b"\n",
    }[form]


_FORMS = (
    "reduce", "stack global", "inst", "obj", "newobj", "newobj_ex", "name alone", "build", "attributes", "setitem",
    "extension", "persistent", "persistent text",
)  # fmt: skip
_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
_NESTS: dict[str, Callable[[bytes], bytes]] = {
    "root": lambda p: p,
    "list": lambda p: b"]" + p + b"a",
    "dict": lambda p: b"}" + text("obs") + p + b"s",
    "model": lambda p: b"}" + text("model") + b"}" + text("_task_emb.weight") + p + b"ss",
    "state": lambda p: b"}" + text("version") + b"K\x01s" + text("learner") + p + b"s",
    "key": lambda p: b"}" + p + b"K\x01s",
    "tuple key": lambda p: b"}" + p + b"\x85K\x01s",
    "ordered": lambda p: b"ccollections\nOrderedDict\n]" + text("a") + p + b"\x86a\x85R",
    "ordered attributes": lambda p: b"ccollections\nOrderedDict\n)R}" + text("_metadata") + p + b"sb",
    "tensor": lambda p: _TENSOR + b"(" + p + b"K\x00K\x01\x85K\x01\x85\x89}tR",
    "hooks": lambda p: _TENSOR + b"(K\x00K\x00K\x01\x85K\x01\x85\x89" + p + b"tR",
    "parameter": lambda p: b"ctorch._utils\n_rebuild_parameter\n" + p + b"\x85R",
    "size": lambda p: b"ctorch\nSize\n" + p + b"\x85R",
    "storage": lambda p: b"(" + text("storage") + p + text("0") + text("cpu") + b"K\x04tQ",
    "old tensordict": lambda p: (
        b"ctensordict.tensordict\nTensorDict\n)\x81}" + text("_tensordict") + b"}" + text("obs") + p + b"ssb"
    ),
    "tensordict": lambda p: (
        b"ctensordict._reductions\n_make_td\nctensordict._td\nTensorDict\n}" + text("_tensordict") + p + b"s\x86R"
    ),
    "inert": lambda p: b"ctensordict._td\nanything\n" + p + b"\x85R",
}


def _targets(mark: Path) -> list[tuple[str, str, str]]:
    """(module, name, argument): each would make the file `mark`."""
    shell, python = f"touch {mark}", f"open({str(mark)!r}, 'w').close()"
    return [
        ("os", "system", shell),
        ("posix", "system", shell),
        ("subprocess", "getoutput", shell),
        ("builtins", "eval", python),
        ("builtins", "exec", python),
        ("__builtin__", "eval", python),
        ("torch.serialization", "os.system", shell),
        ("torch.utils.collect_env", "run", shell),
        ("torch._utils", "sys.modules", shell),
        ("torch", "os.system", shell),
        ("torch.hub", "load", shell),
        ("numpy", "load", str(mark)),
        ("tensordict._td", "os.system", shell),
        ("tensordict.utils", "os.system", shell),
        ("collections", "namedtuple", python),
        ("pathlib", "Path.touch", str(mark)),
        ("functools", "partial", python),
        ("_pickle", "loads", python),
    ]


@st.composite
def harmful_pickle(draw: st.DrawFn, mark: Path) -> bytes:
    """A pickle that would make the file `mark`, or reach for something it has no business with."""
    module, name, argument = draw(st.sampled_from(_targets(mark)))
    body = _call(draw(st.sampled_from(_FORMS)), module, name, text(argument))
    for _ in range(draw(st.integers(0, 2))):
        body = _NESTS[draw(st.sampled_from(sorted(_NESTS)))](body)
    return b"\x80" + draw(st.sampled_from((b"\x02", b"\x04"))) + body + b"."


def live_pickle(mark: Path) -> bytes:
    """One of them, for a test that they do harm where nothing stops them."""
    return b"\x80\x02" + _NESTS["list"](_call("reduce", "os", "system", text(f"touch {mark}"))) + b"."


_ARCHIVE_TRICKS = (
    "none", "none", "double name", "double pickle", "two folders", "outside", "deflated", "bomb", "no pickle", "raw",
    "encrypted", "comment", "prefix", "wrong crc", "huge size", "overlap", "big endian",
)  # fmt: skip


@st.composite
def tricked_archive(draw: st.DrawFn, pickle_bytes: bytes, members: dict[str, bytes], path: Path) -> None:
    """Writes an archive of this pickle and these members to `path`, with one of the tricks that zip allows."""
    trick = draw(st.sampled_from(_ARCHIVE_TRICKS))
    if trick == "raw":
        path.write_bytes(pickle_bytes)
        return
    entries = [("archive/data.pkl", pickle_bytes), *((f"archive/{n}", c) for n, c in members.items())]
    entries += [("archive/byteorder", b"big" if trick == "big endian" else b"little"), ("archive/version", b"3\n")]
    how = zipfile.ZIP_DEFLATED if trick in ("deflated", "bomb") else zipfile.ZIP_STORED
    if trick == "double name":
        entries.append(draw(st.sampled_from(entries)))
    elif trick == "double pickle":
        entries.append(("archive/data.pkl", b"\x80\x02}."))
    elif trick == "two folders":
        entries.append(("other/data.pkl", b"\x80\x02}."))
    elif trick == "outside":
        entries.append(("archive/../../../evil", b"x"))
        entries.append(("/evil", b"x"))
    elif trick == "no pickle":
        entries = entries[1:]
    elif trick == "bomb":
        entries.append(("archive/data/99", bytes(8 << 20)))
    path.unlink(missing_ok=True)
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in entries:
            with_name = zipfile.ZipInfo(name)
            with_name.compress_type = how
            archive.NameToInfo.pop(name, None)  # it warns of a name that is there twice
            archive.writestr(with_name, content)
        if trick == "comment":
            archive.comment = b"PK\x05\x06" + bytes(18)
    data = bytearray(path.read_bytes())
    central = data.rfind(b"PK\x01\x02")
    if trick == "prefix":
        data[:0] = b"\x7fELF" + bytes(60)
    elif trick == "encrypted":
        data[central + 8] |= 1
    elif trick == "wrong crc":
        data[central + 16] ^= 0xFF
    elif trick == "huge size":
        field = central + draw(st.sampled_from((20, 24)))
        data[field : field + 4] = struct.pack("<I", draw(st.sampled_from((0xFFFFFFFF, 0x7FFFFFFF, 0x10000000))))
    elif trick == "overlap":
        data[central + 42 : central + 46] = struct.pack("<I", draw(st.integers(0, len(data))))
    path.write_bytes(bytes(data))
