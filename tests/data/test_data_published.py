"""The reader of published dataset files: every known form is read, nothing foreign runs, damage is named."""

from __future__ import annotations

import os
import struct
import time
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_fixtures import (
    GOLDEN,
    SHARED_CHUNK,
    FakeStorage,
    FakeTensor,
    make_episodes,
    needs_shared_chunk,
    pickled,
    published_tensors,
    save_published,
    save_zip,
)
from tensordict import TensorDict

from tdmpc2.data.published import PublishedFile
from tdmpc2.errors import DataError
from tdmpc2.tasks import task_set

TASKS = task_set("mt30")


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return published_tensors(make_episodes(TASKS, [0, 7, 29], 11, 24, 6))


def assert_same(path: Path, tensors: dict[str, torch.Tensor]) -> PublishedFile:
    """The file, read in blocks of two episodes, holds these tensors."""
    file = PublishedFile.open(path)
    assert len(file) == len(tensors["obs"])
    blocks = list(file.blocks(2))
    assert [block.first_episode for block in blocks] == list(range(0, len(file), 2))
    shape = tensors["obs"].shape[:2]
    for key in ("obs", "action", "reward"):
        read = np.concatenate([getattr(block, key) for block in blocks])
        expected = tensors[key].float().numpy().reshape(read.shape)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, expected)
    task = np.concatenate([block.task for block in blocks])
    np.testing.assert_array_equal(task, tensors["task"].long().numpy().reshape(shape))
    return file


@needs_shared_chunk
def test_reads_the_shared_chunk() -> None:
    expected = torch.load(SHARED_CHUNK, weights_only=False)
    file = assert_same(SHARED_CHUNK, {key: expected[key] for key in ("obs", "action", "reward", "task")})
    assert (len(file), file.episode_steps, file.obs_dim, file.action_dim) == (60, 501, 24, 6)


@pytest.mark.parametrize("release", ["0.1.2", "0.2.1", "0.3.2", "0.5.0"])
def test_reads_old_tensordict_releases(release: str) -> None:
    """The files are made by `golden/data_write_old_files.py`."""
    expected = {
        "obs": torch.arange(18.0).reshape(2, 3, 3),
        "action": torch.arange(6.0).reshape(2, 3, 1) / 10,
        "reward": torch.arange(6.0).reshape(2, 3),
        "task": torch.tensor([[7, 7, 7], [29, 29, 29]]),
    }
    assert_same(GOLDEN / f"data_tensordict_{release}.pt", expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_reads_every_float_type(tmp_path: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    for key in ("obs", "action", "reward"):
        tensors[key] = tensors[key].to(dtype)
    assert_same(save_published(tmp_path / "a.pt", tensors), tensors)


INTEGERS = [
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_reads_every_integer_type(tmp_path: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    tensors["task"] = tensors["task"].to(dtype)
    assert_same(save_published(tmp_path / "a.pt", tensors), tensors)


def test_reads_a_last_axis_of_one(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors["reward"] = tensors["reward"][..., None]
    tensors["task"] = tensors["task"][..., None]
    assert_same(save_published(tmp_path / "a.pt", tensors), tensors)


def test_reads_views_and_shared_storages(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Tensors that are slices of one storage, transposed, or expanded, as torch.save leaves them."""
    whole = torch.cat([tensors["obs"], tensors["action"], tensors["reward"][..., None]], dim=-1)
    by_step = whole.transpose(0, 1).contiguous().transpose(0, 1)
    views = {
        "obs": by_step[..., :24],
        "action": by_step[..., 24:30],
        "reward": by_step[..., 30],
        "task": tensors["task"][:, :1].clone().expand(-1, 11),
    }
    torch.save(views, tmp_path / "a.pt")
    assert_same(tmp_path / "a.pt", tensors)


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_reads_plain_dictionaries(tmp_path: Path, tensors: dict[str, torch.Tensor], kind: type) -> None:
    torch.save(kind(tensors), tmp_path / "a.pt")
    assert_same(tmp_path / "a.pt", tensors)


def test_reads_current_tensordict_with_all_its_extras(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    data = TensorDict({**tensors, "extra": tensors["reward"]}, batch_size=(3, 11), names=["e", "t"], device="cpu")
    torch.save(data.lock_(), tmp_path / "a.pt")
    assert_same(tmp_path / "a.pt", tensors)


def test_a_double_beyond_float32_is_read_as_infinite(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors["obs"] = tensors["obs"].double()
    tensors["obs"][1, 2, 3] = 1e300
    file = PublishedFile.open(save_published(tmp_path / "a.pt", tensors))
    assert np.isinf(next(file.blocks(3)).obs[1, 2, 3])


def test_the_fingerprint_follows_the_content_not_the_name(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    first = PublishedFile.open(save_published(tmp_path / "a.pt", tensors)).fingerprint
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes())
    assert PublishedFile.open(tmp_path / "b.pt").fingerprint == first
    tensors["obs"][0, 0, 0] += 1
    assert PublishedFile.open(save_published(tmp_path / "a.pt", tensors)).fingerprint != first


def test_a_file_beyond_four_gigabytes(tmp_path: Path) -> None:
    """Zip64, as torch writes it for the published 11 GB files: sparse here, so that it takes no room."""
    episodes, steps, obs_dim = 100_000, 501, 24
    path = tmp_path / "large.pt"
    data = {
        "obs": FakeTensor(
            FakeStorage(torch.FloatStorage, "0", episodes * steps * obs_dim), 0, *strided(episodes, steps, 24)
        ),
        "action": FakeTensor(FakeStorage(torch.FloatStorage, "1", steps * 6), 0, (episodes, steps, 6), (0, 6, 1)),
        "reward": FakeTensor(FakeStorage(torch.FloatStorage, "1", steps * 6), 0, (episodes, steps), (0, 1)),
        "task": FakeTensor(FakeStorage(torch.IntStorage, "2", episodes), 0, (episodes, steps), (1, 0)),
    }
    obs_bytes = episodes * steps * obs_dim * 4
    assert obs_bytes > 1 << 32
    write_sparse_zip64(
        path,
        {
            "archive/data.pkl": (pickled(data), 0),
            "archive/data/0": (struct.pack("<f", 0.5), obs_bytes - 4),
            "archive/data/1": (b"", steps * 6 * 4),
            "archive/data/2": (struct.pack("<i", 29), episodes * 4 - 4),
        },
    )
    file = PublishedFile.open(path)
    assert len(file) == episodes
    assert file.obs.floats(episodes - 1, episodes)[0, -1, -1] == 0.5
    assert file.task.integers(episodes - 1, episodes).tolist() == [[29] * steps]


def strided(*shape: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape and the strides of a contiguous tensor of it."""
    return shape, tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


def write_sparse_zip64(path: Path, members: dict[str, tuple[bytes, int]]) -> None:
    """A zip64 archive whose members are that many zero bytes (a hole in the file), then the given bytes."""
    directory = b""
    with path.open("wb") as file:
        for name, (content, zeros) in members.items():
            size, offset = zeros + len(content), file.tell()
            crc = zlib.crc32(content) if not zeros else 0
            long = struct.pack("<HHQQ", 1, 16, size, size)
            head = (45, 0, 0, 0, 0, crc, 0xFFFFFFFF, 0xFFFFFFFF, len(name))
            file.write(struct.pack("<4s5H3I2H", b"PK\3\4", *head, len(long)) + name.encode() + long)
            file.seek(zeros, os.SEEK_CUR)
            file.write(content)
            file.truncate(file.seek(0, os.SEEK_CUR))
            long = struct.pack("<HHQQQ", 1, 24, size, size, offset)
            directory += struct.pack("<4s6H3I", b"PK\1\2", 45, *head[:8])
            directory += struct.pack("<5H2I", len(name), len(long), 0, 0, 0, 0, 0xFFFFFFFF) + name.encode() + long
        start = file.tell()
        file.write(directory)
        end = file.tell()
        count = len(members)
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), start))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))


class Runs:
    """Pickles as a call that would leave a file behind."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [1, 2, 4])
@pytest.mark.parametrize("where", ["root", "key", "storage", "state", "hooks"])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, protocol: int, where: str) -> None:
    marker = tmp_path / "was-run"
    attack = Runs(os.mkdir, str(marker))
    harmless = FakeTensor(FakeStorage(torch.FloatStorage, "0", 4), 0, (1, 2, 2), (4, 2, 1))
    value = {
        "root": attack,
        "key": {"obs": harmless, "action": attack},
        "storage": {"obs": FakeTensor(attack, 0, (1, 2, 2), (4, 2, 1))},
        "state": [harmless, {"_tensordict": {"obs": attack}}],
        "hooks": FakeTensor(harmless.storage, 0, (1, 2, 2), (4, 2, 1), maker=exec),
    }[where]
    path = save_zip(tmp_path / "a.pt", pickled(value, protocol), {"data/0": bytes(16)})
    with pytest.raises(DataError, match=r"names '(posix\.mkdir|nt\.mkdir|__builtin__\.exec|builtins\.exec)'"):
        PublishedFile.open(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "builtins getattr",
        "torch load",
        "torch.hub load",
        "numpy load",
        "pickle loads",
        "os system",
    ],
)
def test_foreign_names_are_refused_by_name(tmp_path: Path, name: str) -> None:
    module, function = name.split()
    path = save_zip(tmp_path / "a.pt", f"c{module}\n{function}\n.".encode(), {})
    with pytest.raises(DataError, match=rf"a\.pt.*names '{module}\.{function}'"):
        PublishedFile.open(path)


def test_names_of_tensordict_itself_do_nothing(tmp_path: Path) -> None:
    """A function of tensordict (here a loader that would read another file) becomes an inert object."""
    script = b"ctensordict._td\nload_memmap\n(X\x04\x00\x00\x00/etctR."
    path = save_zip(tmp_path / "a.pt", script, {})
    with pytest.raises(DataError, match=r"holds tensordict\._td\.load_memmap, expected a TensorDict"):
        PublishedFile.open(path)


def test_a_pickle_cannot_change_the_reader(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """BUILD on the names themselves, which would set their attributes, fails; the next file reads well."""
    names = [
        "torch._utils\n_rebuild_tensor_v2",
        "tensordict._td\nTensorDict",
        "tensordict.utils\nX",
        "torch\nSize",
    ]
    for name in names:
        for state in (b"}X\x08\x00\x00\x00__name__I1\ns", b"N}X\x08\x00\x00\x00__name__I1\ns\x86"):
            path = save_zip(tmp_path / "a.pt", b"\x80\x02c" + name.encode() + b"\n" + state + b"b.", {})
            with pytest.raises(DataError):
                PublishedFile.open(path)
    assert_same(save_published(tmp_path / "b.pt", tensors), tensors)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "damaged or of an unknown form"),
        (b"\x80\x02}q", "damaged or of an unknown form"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "absurd memo"),
        (b"\x80\x02K\x01.", "holds int, expected a TensorDict"),
        (b"\x80\x02}.", "has no 'obs'"),
        (b"\x80\x02Q.", "damaged or of an unknown form"),
        (b"\x80\x02NQ.", "names a storage in an unknown way"),
    ],
)
def test_damaged_pickles(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PublishedFile.open(save_zip(tmp_path / "a.pt", data, {}))


@pytest.mark.parametrize(
    ("storage", "offset", "shape", "stride", "message"),
    [
        (("0", 4), 1, (1, 2, 2), (4, 2, 1), "leaves its storage"),
        (("0", 4), 0, (2, 2, 2), (4, 2, 1), "leaves its storage"),
        (("0", 4), 0, (1, 2, 2), (4, 2, 2), "leaves its storage"),
        (("0", 4), 0, (1 << 62, 1 << 62, 2), (1, 1, 1), "leaves its storage"),
        (("0", 4), 0, (0, 2, 2), (4, 2, 1), "is empty"),
        (("0", 4), -1, (1, 2, 2), (4, 2, 1), "not whole numbers"),
        (("0", 4), 0, (1, 2, 2), (4, -2, 1), "not whole numbers"),
        (("0", 4), 0, (1, 2, 2), (4, 2), "not whole numbers"),
        (("0", 4), 0, (1, 2.0, 2), (4, 2, 1), "not whole numbers"),
        (("0", 5), 0, (1, 2, 2), (4, 2, 1), "has 16 bytes, its storage 20"),
        (("9", 4), 0, (1, 2, 2), (4, 2, 1), "'data/9' is missing"),
        (("0", -4), 0, (1, 2, 2), (4, 2, 1), "describes a storage wrongly"),
        (("0", 4), 0, (4,), (1,), r"expected \[episodes, steps"),
    ],
)
def test_tensors_that_leave_their_bytes(
    tmp_path: Path, storage: tuple[str, int], offset: Any, shape: Any, stride: Any, message: str
) -> None:
    tensor = FakeTensor(FakeStorage(torch.FloatStorage, *storage), offset, shape, stride)
    with pytest.raises(DataError, match=rf"a\.pt.*{message}"):
        PublishedFile.open(save_zip(tmp_path / "a.pt", pickled({"obs": tensor}), {"data/0": bytes(16)}))


def test_a_small_file_of_gigabytes(tmp_path: Path) -> None:
    """1,166 bytes whose strides of 0 repeat a few numbers over 20,000 episodes: 1.24 GB as a store."""
    storage, lead = FakeStorage(torch.FloatStorage, "0", 24), (20_000, 501)
    data: dict[str, Any] = {
        "obs": FakeTensor(storage, 0, (*lead, 24), (0, 0, 1)),
        "action": FakeTensor(storage, 0, (*lead, 6), (0, 0, 1)),
        "reward": FakeTensor(storage, 0, lead, (0, 0)),
        "task": FakeTensor(FakeStorage(torch.IntStorage, "1", 1), 0, lead, (0, 0)),
    }
    path = save_zip(tmp_path / "a.pt", pickled(data), {"data/0": bytes(96), "data/1": bytes(4)})
    assert path.stat().st_size < 1400
    began = time.monotonic()
    with pytest.raises(DataError, match=r"a\.pt: found 100 bytes of tensors, expected at least .* for 20,000 episodes"):
        PublishedFile.open(path)
    # One tensor alone, of any of the four.
    held = FakeStorage(torch.FloatStorage, "0", 2 * 11 * 24)
    for key in ("obs", "action", "reward", "task"):
        whole: dict[str, Any] = {
            "obs": FakeTensor(held, 0, (2, 11, 1), (11, 1, 1)),
            "action": FakeTensor(held, 0, (2, 11, 1), (11, 1, 1)),
            "reward": FakeTensor(held, 0, (2, 11), (11, 1)),
            "task": FakeTensor(FakeStorage(torch.IntStorage, "0", 2 * 11 * 24), 0, (2, 11), (11, 1)),
        }
        save_zip(path, pickled(whole), {"data/0": bytes(2 * 11 * 24 * 4)})
        assert len(PublishedFile.open(path)) == 2
        width = (10**7,) if key in ("obs", "action") else ()
        if width:
            whole[key] = FakeTensor(held, 0, (2, 11, *width), (11, 1, 0))
        else:
            for name, fake in whole.items():
                fake.shape = (2, 10**7, *fake.shape[2:])
                fake.stride = (0, 0, *fake.stride[2:]) if name == key else (0, 0, 1)[: len(fake.shape)]
        save_zip(path, pickled(whole), {"data/0": bytes(2 * 11 * 24 * 4)})
        with pytest.raises(DataError, match="the same numbers are named many times over"):
            PublishedFile.open(path)
    assert time.monotonic() - began < 5


def test_every_flipped_bit_of_the_zip_directory(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The file loads as it was, or is refused in one line when it is opened or verified; nothing else is raised."""
    path = save_published(tmp_path / "a.pt", tensors)
    whole = path.read_bytes()
    start = whole.index(b"PK\1\2")
    refused = 0
    for place in range(start, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            file = PublishedFile.open(path)
            file.verify()
            assert_same(path, tensors)
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
            assert str(error).isprintable()
    assert refused > (len(whole) - start) // 2


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_reads_every_pickle_protocol(tmp_path: Path, tensors: dict[str, torch.Tensor], protocol: int) -> None:
    for content in (tensors, OrderedDict(tensors), TensorDict(tensors, batch_size=(3, 11))):
        torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
        assert_same(tmp_path / "a.pt", tensors)


def test_compressed_and_foreign_byte_order(tmp_path: Path) -> None:
    tensor = FakeTensor(FakeStorage(torch.FloatStorage, "0", 4), 0, (1, 2, 2), (4, 2, 1))
    data, path = pickled({"obs": tensor}), tmp_path / "a.pt"
    with pytest.raises(DataError, match="compressed"):
        PublishedFile.open(save_zip(path, data, {"data/0": bytes(16)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(DataError, match="byte order is 'big'"):
        PublishedFile.open(save_zip(path, data, {"data/0": bytes(16), "byteorder": b"big"}))


def test_files_that_are_something_else(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(DataError, match="found nothing, expected a dataset file"):
        PublishedFile.open(path)
    with pytest.raises(DataError, match="found a folder"):
        PublishedFile.open(tmp_path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DataError, match="Git LFS pointer"):
        PublishedFile.open(path)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match="not a file that torch"):
        PublishedFile.open(path)
    save_published(path, tensors)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="download it again"):
            PublishedFile.open(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no data")
    with pytest.raises(DataError, match=r"0 data\.pkl"):
        PublishedFile.open(path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that can be opened and not read")
def test_a_file_that_cannot_be_read() -> None:
    with pytest.raises(DataError, match="/proc/self/mem: ") as caught:
        PublishedFile.open("/proc/self/mem")
    assert str(caught.value).isprintable()


def test_fields_of_the_wrong_kind(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "a.pt"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"obs": tensors["obs"].int()}, "'obs' is int32, expected a float type"),
        ({"task": tensors["reward"]}, "'task' is float32, expected an integer type"),
        ({"obs": tensors["obs"][:, :, 0]}, "'obs' has shape"),
        ({"reward": tensors["obs"]}, r"'reward' has shape \[3, 11, 24\]"),
        ({"action": tensors["action"][:, :5]}, r"'action' has shape \[3, 5, 6\]"),
        ({"obs": {"state": tensors["obs"]}}, "'obs' is a dict, expected a plain tensor"),
        ({"reward": None}, "has no 'reward'"),
    ]
    for change, message in cases:
        torch.save({**tensors, **change}, path)
        with pytest.raises(DataError, match=message):
            PublishedFile.open(path)
    torch.save(TensorDict({"obs": TensorDict({}, batch_size=(3,))}, batch_size=(3,)), path)
    with pytest.raises(DataError, match=r"'obs' is a TensorDict, expected a plain tensor"):
        PublishedFile.open(path)
