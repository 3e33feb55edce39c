"""Whatever a .pt file holds - a released model, a training state, a dataset - it loads or is refused in one line."""

from __future__ import annotations

import os
import pickle
import shutil
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_fixtures import released
from data_fixtures import FakeStorage, FakeTensor, make_episodes, pickled, published_tensors, save_published, save_zip
from hypothesis import given
from hypothesis import strategies as st
from model_fixtures import small_model, small_tasks
from property_fixtures import cases, damage, harmful_pickle, live_pickle, loads, text, tricked_archive

from tdmpc2.checkpointing import load_model
from tdmpc2.data.checks import EpisodeChecker
from tdmpc2.data.published import PublishedFile
from tdmpc2.errors import CheckpointError, DataError, UserError
from tdmpc2.losses import LossWeights
from tdmpc2.tasks import task_set
from tdmpc2.training import Learner, OptimiserSettings
from tdmpc2.training.state import StateFolder, TrainingState

MT30 = task_set("mt30")
IDENTITY = {"seed": 1, "tasks": ["a", "b"], "lr": 3e-4}


def learner() -> Learner:
    return Learner(small_model(), torch.full((3,), 0.9), LossWeights(), OptimiserSettings(), 1)


def load_released(path: Path) -> None:
    load_model(path, small_tasks())


def load_state(path: Path) -> None:
    states = StateFolder(path.parent.parent)
    states.restore(learner(), states.load(IDENTITY))


def load_published(path: Path) -> None:
    file = PublishedFile.open(path)
    checker = EpisodeChecker(str(path), MT30.tasks, 24, 6, 11, MT30.obs_dims)
    if len(file) > 1000:
        return  # a large file is read in blocks, and only so much of it here
    for block in file.blocks(2):
        task = checker.episode_tasks(block.task, block.first_episode)
        checker.check(block.obs, block.action, block.reward, task, block.first_episode)


@dataclass(frozen=True)
class Kind:
    """A kind of .pt file: how it is written, where it lies below a folder, how it is read, and what it holds."""

    place: str
    read: Callable[[Path], None]
    content: Any
    data: bytes
    pickle: bytes
    members: dict[str, bytes]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    folder = tmp_path_factory.mktemp("kinds")
    state = TrainingState(3, learner().state_dict(), IDENTITY)
    StateFolder(folder).save(state)
    dataset = published_tensors(make_episodes(MT30, [0, 7, 29], 11, 24, 6))
    contents: dict[str, tuple[str, Callable[[Path], None], Any]] = {
        "old": ("model.pt", load_released, released(False)),
        "current": ("model.pt", load_released, released(True)),
        "wrapped": ("model.pt", load_released, {"model": released(False)}),
        "half": ("model.pt", load_released, {n: t.half() for n, t in released(False).items()}),
        "qint8": (
            "model.pt",
            load_released,
            {n: torch.quantize_per_tensor(t, 0.1, 3, torch.qint8) for n, t in released(False).items()},
        ),
        "state": ("state/latest.pt", load_state, torch.load(folder / "state" / "latest.pt")),
        "dataset": ("data.pt", load_published, dataset),
        "plain dataset": ("data.pt", load_published, dict(dataset)),
    }
    found = {}
    for name, (place, read, content) in contents.items():
        path = folder / "content.pt"
        if name == "dataset":
            save_published(path, content)
        else:
            torch.save(content, path)
        with zipfile.ZipFile(path) as archive:
            members = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
        script = members.pop("data.pkl")
        tensors = {n: c for n, c in members.items() if n.startswith("data/")}
        found[name] = Kind(place, read, content, path.read_bytes(), script, tensors)
    return found


def place_of(kind: Kind, tmp_path: Path) -> Path:
    """An empty place for a file of this kind."""
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    path = folder / kind.place
    path.parent.mkdir(parents=True)
    return path


def taken(kind: Kind, path: Path) -> bool:
    left = sorted(p.name for p in path.parent.iterdir())
    try:
        return loads(lambda: kind.read(path), path if kind.place != "state/latest.pt" else path.parent)
    finally:
        assert sorted(p.name for p in path.parent.iterdir()) == left


NAMES = st.sampled_from(("old", "current", "wrapped", "half", "qint8", "state", "dataset", "plain dataset"))


def test_the_files_themselves_load(kinds: dict[str, Kind], tmp_path: Path) -> None:
    for name, kind in kinds.items():
        path = place_of(kind, tmp_path)
        path.write_bytes(kind.data)
        assert taken(kind, path), name
        save_zip(path, kind.pickle, kind.members)
        assert taken(kind, path), f"{name}, put together anew"


@cases(400)
@given(name=NAMES, data=st.data())
def test_damaged_files(kinds: dict[str, Kind], tmp_path: Path, name: str, data: st.DataObject) -> None:
    kind = kinds[name]
    path = place_of(kind, tmp_path)
    path.write_bytes(data.draw(damage(kind.data)))
    taken(kind, path)


@cases(500)
@given(name=NAMES, data=st.data())
def test_damaged_pickles_in_whole_archives(
    kinds: dict[str, Kind], tmp_path: Path, name: str, data: st.DataObject
) -> None:
    """Every checksum fits, so that the pickle's reader sees the damage."""
    kind = kinds[name]
    path = place_of(kind, tmp_path)
    save_zip(path, data.draw(damage(kind.pickle)), kind.members)
    taken(kind, path)


@cases(300)
@given(name=NAMES, raw=st.binary(max_size=200), head=st.booleans())
def test_random_bytes_as_pickles(kinds: dict[str, Kind], tmp_path: Path, name: str, raw: bytes, head: bool) -> None:
    kind = kinds[name]
    path = place_of(kind, tmp_path)
    save_zip(path, (b"\x80\x02" if head else b"") + raw + b".", kind.members)
    assert not taken(kind, path)


@cases(500)
@given(name=NAMES, data=st.data())
def test_harmful_pickles_do_nothing(kinds: dict[str, Kind], tmp_path: Path, name: str, data: st.DataObject) -> None:
    kind = kinds[name]
    mark = tmp_path / "harmed"
    path = place_of(kind, tmp_path)
    script = data.draw(harmful_pickle(mark))
    data.draw(tricked_archive(script, kind.members, path))
    before = dict(os.environ), Path.cwd()
    assert not taken(kind, path)
    assert not mark.exists()
    assert (dict(os.environ), Path.cwd()) == before


def test_the_harm_is_real(tmp_path: Path) -> None:
    pickle.loads(live_pickle(tmp_path / "harmed"))
    assert (tmp_path / "harmed").exists()


@cases(200)
@given(name=NAMES, data=st.data())
def test_zip_tricks(kinds: dict[str, Kind], tmp_path: Path, name: str, data: st.DataObject) -> None:
    kind = kinds[name]
    path = place_of(kind, tmp_path)
    data.draw(tricked_archive(kind.pickle, kind.members, path))
    taken(kind, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case"]


WHOLE = st.sampled_from(
    (0, 1, 2, 3, 16, 24, 1000, -1, 1 << 31, 1 << 40, 10**12, 1 << 62, 1 << 63, 1 << 70, True, 2.0, "x", None)
)
SHAPES = st.lists(WHOLE, max_size=4).map(tuple) | st.sampled_from(((1,) * 9, (1,) * 100, (0, 10**12), None, 3, "ab"))
KINDS = st.sampled_from(
    (torch.FloatStorage, torch.HalfStorage, torch.LongStorage, torch.BoolStorage, torch.QInt8Storage, torch.Size, None)
)


@cases(300)
@given(name=NAMES, data=st.data())
def test_tensors_that_declare_anything(kinds: dict[str, Kind], tmp_path: Path, name: str, data: st.DataObject) -> None:
    """One tensor of the file, or each, gets an odd storage, offset, shape, strides or type."""
    kind = kinds[name]
    size = data.draw(st.sampled_from((0, 4, 16, 4096)))
    count = data.draw(WHOLE | st.just(size // 4))
    storage = FakeStorage(data.draw(KINDS), data.draw(st.sampled_from(("0", "1", "x", "../0", ""))), count)
    shape = data.draw(SHAPES)
    fake = FakeTensor(storage, data.draw(WHOLE), shape, data.draw(SHAPES | st.just(shape)))
    content = kind.content
    holder = content["learner"]["model"] if name == "state" else content["model"] if name == "wrapped" else content
    changed: dict[str, Any] = OrderedDict(holder)
    for key in data.draw(st.lists(st.sampled_from(sorted(holder)), min_size=1, max_size=2)):
        changed[key] = fake
    whole: Any = changed
    if name == "state":
        whole = content | {"learner": content["learner"] | {"model": changed}}
    elif name == "wrapped":
        whole = {"model": changed}
    path = place_of(kind, tmp_path)
    save_zip(path, pickled(_emptied(whole)), {"data/0": bytes(size), "data/1": bytes(4)})
    taken(kind, path)


def _emptied(value: Any) -> Any:
    """Tensors become those of one storage of four bytes: their shapes no longer fit, and the file is small."""
    if isinstance(value, dict):
        return OrderedDict((k, _emptied(v)) for k, v in value.items())
    if isinstance(value, torch.Tensor):
        return FakeTensor(FakeStorage(torch.FloatStorage, "1", 1), 0, (1,) * value.dim(), (1,) * value.dim())
    return value


@cases(200)
@given(name=NAMES, data=st.data())
def test_wrong_types_shapes_and_values(kinds: dict[str, Kind], tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Well-formed files of torch.save whose tensors are of another type, shape or content."""
    kind = kinds[name]
    content = kind.content
    holder = content["learner"]["model"] if name == "state" else content["model"] if name == "wrapped" else content
    key = data.draw(st.sampled_from(sorted(holder)))
    value = holder[key]
    if not isinstance(value, torch.Tensor):
        value = torch.ones(2)
    plain = value.dequantize() if value.is_quantized else value
    odd = data.draw(
        st.sampled_from(
            (
                plain.to(torch.int16),
                plain.to(torch.bool),
                plain.to(torch.complex64),
                plain.double(),
                plain.flatten(),
                plain[None],
                plain[:0],
                plain * float("nan"),
                plain.to(torch.int64) - 5,
                plain.to(torch.int64) + 40,
                torch.zeros(()),
                torch.zeros(3, 3).to_sparse(),
                torch.empty(3, 3, device="meta"),
                plain.expand(2, *plain.shape) if plain.dim() < 3 else plain,
                torch.nn.Parameter(plain.float()),
                None,
                3,
                "x",
                [plain],
                {"a": plain},
                float("inf"),
            )
        )
    )
    changed = OrderedDict(holder) | {key: odd}
    whole: Any = changed
    if name == "state":
        whole = content | {"learner": content["learner"] | {"model": changed}}
    elif name == "wrapped":
        whole = {"model": changed}
    path = place_of(kind, tmp_path)
    torch.save(whole, path)
    taken(kind, path)


# -- regressions -------------------------------------------------------------------------------------------------


def script(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b")" + b"\x85" * 200_000, "holds a tuple|objects other than|expected a TD-MPC2"),
        (b"]" * 100_000 + b"a" * 99_999, "holds a list"),
        (b"}" + b")" + b"\x85" * 100_000 + b"K\x01s", "a dictionary key of type tuple"),
        (b"K\x01r\xff\xff\xff\x7f", "holds a int|expected"),
        (b"\x8d" + (10**12).to_bytes(8, "little"), "objects other than|not a torch checkpoint"),
        (b"\x96" + (10**12).to_bytes(8, "little"), "objects other than|not a torch checkpoint"),
    ],
    ids=["deep tuple", "deep list", "deep key", "memo", "long text", "long bytes"],
)
def test_pickles_that_would_fill_memory_or_stack(tmp_path: Path, body: bytes, message: str) -> None:
    path = save_zip(tmp_path / "model.pt", script(body), {})
    with pytest.raises(CheckpointError, match=message):
        load_model(path, small_tasks())
    with pytest.raises(UserError):
        PublishedFile.open(path)


def test_a_small_file_cannot_declare_a_large_model(tmp_path: Path) -> None:
    """1 kB whose tensors, expanded from one number, would be terabytes."""
    wide = {n: (1,) * t.dim() for n, t in released(False).items()}
    for stride in (0, 1):
        content = OrderedDict(
            (n, FakeTensor(FakeStorage(torch.FloatStorage, "0", 10**12), 0, (10**6,) * len(s), (stride,) * len(s)))
            for n, s in wide.items()
        )
        path = save_zip(tmp_path / "model.pt", pickled(content), {"data/0": bytes(4)})
        assert not loads(lambda path=path: load_released(path), path)
        content = OrderedDict(
            (n, FakeTensor(FakeStorage(torch.FloatStorage, "0", 1), 0, (10**6,) * len(s), (stride,) * len(s)))
            for n, s in wide.items()
        )
        save_zip(path, pickled(content), {"data/0": bytes(4)})
        with pytest.raises(CheckpointError, match="leaves its storage of 1 elements"):
            load_model(path, small_tasks())


def test_many_tensors_of_one_storage(tmp_path: Path) -> None:
    """Each of them is within its bytes, all of them together are hundreds of times the file."""
    storage = FakeStorage(torch.FloatStorage, "0", 1 << 16)
    content = {f"_encoder.state.{i}.weight": FakeTensor(storage, 0, (256, 256), (256, 1)) for i in range(500)}
    path = save_zip(tmp_path / "model.pt", pickled(content), {"data/0": bytes(1 << 18)})
    with pytest.raises(CheckpointError, match="far larger than the file"):
        load_model(path, small_tasks())


def test_a_detached_copy_of_another_type(tmp_path: Path) -> None:
    content = released(True)
    content["_detach_Qs_params.0.weight"] = content["_detach_Qs_params.0.weight"].half()
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="detached copy of Q differs"):
        load_model(tmp_path / "model.pt", small_tasks())


def test_attributes_of_a_state_dict_cannot_hide_its_methods(tmp_path: Path) -> None:
    """An OrderedDict's BUILD may set `items` to a number in torch's own restricted reader."""
    body = b"ccollections\nOrderedDict\n)R}" + b"X\x05\x00\x00\x00items" + b"K\x05sb"
    path = save_zip(tmp_path / "model.pt", script(body), {})
    with pytest.raises(CheckpointError, match="it holds nothing"):
        load_model(path, small_tasks())


@pytest.mark.parametrize("key", ["two\nlines", "\ud800", "\x00\x1b[31m", "x" * 100_000])
def test_names_in_a_file_are_shown_in_one_line(tmp_path: Path, key: str) -> None:
    path = save_zip(tmp_path / "model.pt", script(b"}" + long_text(key) + b"K\x01s"), {})
    assert not loads(lambda: load_released(path), path)
    assert not loads(lambda: load_published(path), path)
    save_zip(path, script(b"c" + key[:50].encode(errors="surrogatepass").replace(b"\n", b"") + b"\nname\n"), {})
    assert not loads(lambda: load_released(path), path)
    assert not loads(lambda: load_published(path), path)


def long_text(value: str) -> bytes:
    data = value.encode(errors="surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def test_a_dataset_pickle_of_many_instructions(tmp_path: Path) -> None:
    """Nested millions deep, a tuple used as a key would end the interpreter when it is hashed."""
    body = b"}" + b")" + b"\x85" * (4_000_000 - 10) + b"K\x01s"
    path = save_zip(tmp_path / "data.pt", script(body), {})
    with pytest.raises(DataError, match="more than 5000 instructions"):
        PublishedFile.open(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"]" * 3_000_000 + b"a" * 2_999_999, "a list among more than 20000 unfinished values"),
        (b")" + b"\x85" * 3_000_000, "more than 250000 instructions"),
        (b"]" * 10_000 + b"a" * 9_999, "holds a list nested more than 64 deep"),
        (b"}" * 100 + b"".join([text("x") + b"N"]) + b"s", "ends in the middle"),
        (b"]q\x00h\x00a", "holds a list nested more than 64 deep"),  # a list in itself
        (b"]q\x00" + b"".join(b"0](h%ch%ceq%c" % (n, n, n + 1) for n in range(40)), "more than 500000 values"),
        (b"\x8b" + (1 << 20).to_bytes(4, "little") + bytes((1 << 20) - 1) + b"\x01", "a number of 8388601 bits"),
        (b"X" + (2 << 20).to_bytes(4, "little") + b"x" * (2 << 20), "a text of 2097152 characters"),
    ],
    ids=[
        "three million lists",
        "three million tuples",
        "deep",
        "unfinished",
        "in itself",
        "doubled forty times",
        "number",
        "text",
    ],
)
def test_training_states_that_mean_large_work(tmp_path: Path, value: bytes, message: str) -> None:
    """An identity nested without end, or whose parts are named again and again, is refused at once."""
    body = b"}" + text("version") + b"K\x01s" + text("identity") + value
    body = body if message == "ends in the middle" else body + b"s"
    path = tmp_path / "state" / "latest.pt"
    path.parent.mkdir()
    save_zip(path, script(body), {})
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=message):
        StateFolder(tmp_path).load(IDENTITY)
    assert time.monotonic() - began < 3
