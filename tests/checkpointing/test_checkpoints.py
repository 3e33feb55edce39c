"""Checkpoints: every released format in, this project's own round trip, and one clear error for anything else."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoint_fixtures import metadata, released
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_fixtures import RELEASED, SMALL_DIMS, assert_close, checkpoint_error, small_model, small_tasks
from torch import Tensor

from tdmpc2.checkpointing import (
    build_model,
    check_size,
    checkpoint_task_set,
    load_model,
    read_checkpoint,
    save_checkpoint,
)
from tdmpc2.errors import CheckpointError, UserError
from tdmpc2.model import ACTING_PARTS, published_size
from tdmpc2.tasks import task_set


def save_small(path: Path, dtype: torch.dtype = torch.float32, target: bool = True) -> dict[str, Tensor]:
    state = small_model().state_dict()
    tensors = {n: t.to(dtype) for n, t in state.items() if target or not n.startswith("target_")}
    assert save_checkpoint(path, tensors, metadata()) == path.stat().st_size
    return tensors


def assert_same_weights(path: Path, tolerance: float = 1e-7) -> None:
    model, _, _ = load_model(path, small_tasks())
    assert not model.training
    for name, tensor in small_model().state_dict().items():
        assert_close(model.state_dict()[name], tensor, tolerance, name)


# -- released formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("current", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_released_formats(tmp_path: Path, current: bool, wrapped: bool) -> None:
    path = tmp_path / "model.pt"
    torch.save({"model": released(current)} if wrapped else released(current), path)
    assert_same_weights(path)
    checkpoint = read_checkpoint(path)
    assert replace(checkpoint.dims, dropout=0.0) == SMALL_DIMS
    assert checkpoint.metadata is None
    acting = read_checkpoint(path, ACTING_PARTS)
    assert acting.parts == set(ACTING_PARTS)
    assert not build_model(acting, small_tasks()).has_target_q
    assert "task_embedding" in read_checkpoint(path, ["encoder"]).tensors


def test_released_half_and_int8(tmp_path: Path) -> None:
    half = tmp_path / "half.pt"
    torch.save({n: t.half() for n, t in released(False).items()}, half)
    assert read_checkpoint(half).stored_as == "float16"
    assert_same_weights(half, 1e-3)
    whole = tmp_path / "int8.pt"
    torch.save({n: torch.quantize_per_tensor(t, 1.0, 0, torch.qint8) for n, t in released(False).items()}, whole)
    assert read_checkpoint(whole).stored_as == "qint8"
    model, _, _ = load_model(whole, small_tasks())
    for name, tensor in small_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.round().clamp(-128, 127)), name


def test_log_std_bounds_come_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(released(True) | {"log_std_min": torch.tensor(-6.0), "log_std_dif": torch.tensor(7.0)}, path)
    dims = read_checkpoint(path).dims
    assert (dims.log_std_min, dims.log_std_max) == (-6, 1)
    torch.save(released(True) | {"log_std_min": torch.zeros(2)}, path)
    with checkpoint_error(path, "do not fit together"):
        read_checkpoint(path)


def test_the_paper_s_students(shared_checkpoints: Path) -> None:
    found = {}
    for name in ("fp16", "int8", "mixed"):
        path = shared_checkpoints / f"mt30_1M_steps_045dist_{name}.pt"
        raw = torch.load(path, map_location="cpu", weights_only=True)
        model, tasks, checkpoint = load_model(path, "mt30")
        assert published_size(checkpoint.dims) == 1
        assert model.has_target_q
        assert sum(t.numel() for t in model.state_dict().values()) == 1_980_357
        raw = raw.get("model", raw)
        assert len(raw) == len(checkpoint.tensors) == len(model.state_dict())
        check_size(checkpoint, 1)
        assert len(tasks) == 30
        found[name] = model.state_dict()
    current, _, checkpoint = load_model(shared_checkpoints / "mt30_1M_current_format.pt", "mt30")
    assert checkpoint.action_masks is not None
    assert found["fp16"].keys() == current.state_dict().keys()
    for name, tensor in current.state_dict().items():
        assert torch.equal(tensor, found["fp16"][name]), name
        rounded = tensor.round().clamp(-128, 127)
        # Quantised before the weights were halved: a few of them round the other way.
        for kind, expected in (("int8", rounded), ("mixed", rounded if "q_heads" in name else tensor)):
            assert float((found[kind][name] != expected).float().mean()) < 1e-2, (kind, name)
            assert float((found[kind][name] - tensor).abs().max()) < 0.502, (kind, name)
    path = shared_checkpoints / RELEASED
    with checkpoint_error(path, "a 1M model of 30 tasks", "expected model_size=5", "latent_dim 128 (not 512)"):
        check_size(read_checkpoint(path), 5)
    with checkpoint_error(path, "1M model of 30 tasks", "expected a model of 'quickstart': 3 tasks"):
        load_model(path, "quickstart")
    with checkpoint_error(path, "does not name its tasks", "task=mt30"):
        load_model(path)


# -- this project's format ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target", [True, False])
def test_own_format_round_trip(tmp_path: Path, dtype: torch.dtype, target: bool) -> None:
    path = tmp_path / "model.safetensors"
    saved = save_small(path, dtype, target)
    model, tasks, checkpoint = load_model(path)
    assert tasks == small_tasks()
    assert checkpoint.metadata == metadata()
    assert checkpoint.stored_as == str(dtype).removeprefix("torch.")
    assert model.has_target_q is target
    assert model.state_dict().keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(model.state_dict()[name], tensor.float()), name
    assert model.state_dict()["encoder.layers.0.weight"].dtype == torch.float32
    assert load_model(path, "small")[1] == small_tasks()
    assert load_model(path, small_tasks())[1] == small_tasks()
    if target:
        assert not any(p.requires_grad for p in model.target_q_heads.parameters())
        assert not load_model(path, parts=ACTING_PARTS)[0].has_target_q
    else:
        with checkpoint_error(path, "has no weights for target_q_heads"):
            read_checkpoint(path, ["target_q_heads"])


def test_equal_weights_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_small(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_own_format_of_another_task_set(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_small(path)
    with checkpoint_error(path, "trained on task set 'small' (walker-walk, cup-catch, pendulum-spin)", "'quickstart'"):
        load_model(path, "quickstart")
    with checkpoint_error(path, "a custom-size model", "expected model_size=1"):
        check_size(read_checkpoint(path), 1)
    with pytest.raises(UserError, match="unknown task 'walker-fly'"):
        load_model(path, "walker-fly")
    save_checkpoint(path, small_model().state_dict(), metadata(tasks=("walker-walk", "cup-catch", "dog-run")))
    with checkpoint_error(path, "names tasks that this version does not have", "dog-run"):
        load_model(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_small(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(path, small_model().state_dict(), metadata(normalised_score=float("nan")))
    path.with_suffix(".lock").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        save_checkpoint(path.with_suffix(".lock"), small_model().state_dict(), metadata())
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.lock", "model.safetensors"]


# -- damaged and foreign files -----------------------------------------------------------------------------------


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, form: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / "model.pt"
    content = released(False) | {"_encoder.state.0.weight": Bomb(mark)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    phrases = ("holds objects other than tensors, which are never loaded",) if form == "zip" else ()
    with checkpoint_error(path, *phrases):
        read_checkpoint(path)
    assert not mark.exists()
    torch.load(path, weights_only=False) if form == "zip" else pickle.loads(pickle.dumps(content))
    assert mark.exists(), "the bomb is live"


def edited(key: str, value: Any) -> OrderedDict[str, Any]:
    content = released(True)
    if value is None:
        del content[key]
    else:
        content[key] = value
    return content


FOREIGN: dict[str, tuple[Any, str]] = {
    "a plain tensor": (torch.zeros(3), "holds a Tensor, expected a TD-MPC2 state dict"),
    "another model": ({"conv1.weight": torch.zeros(3, 3), "fc.bias": torch.zeros(3)}, "it holds conv1.weight, fc.bias"),
    "nothing": ({}, "it holds nothing"),
    "a list": ([torch.zeros(1)], "holds a list"),
    "extra tensor": (edited("_termination.0.weight", torch.zeros(2)), "it holds _termination.0.weight"),
    "extra object": (edited("step", 5), "it holds step"),
    "extra layer": (edited("_pi.3.weight", torch.zeros(2, 2)), "'policy_head.layers.3.weight' is (2, 2)"),
    "missing tensor": (edited("_dynamics.1.bias", None), "'dynamics.layers.1.bias' is missing, expected (24,)"),
    "missing first": (edited("_encoder.state.0.weight", None), "'encoder.layers.0.weight': no such tensor"),
    "wrong shape": (edited("_pi.2.bias", torch.zeros(11)), "'policy_head.layers.2.bias' is (11,), expected (12,)"),
    "wrong rank": (edited("_dynamics.0.weight", torch.zeros(3)), "'dynamics.layers.0.weight': shape (3,)"),
    "no room": (edited("_encoder.state.0.weight", torch.zeros(16, 3)), "do not fit together (model dimension obs_dim"),
    "detached copy": (edited("_detach_Qs_params.1.bias", torch.zeros(3, 24)), "its detached copy of Q differs"),
    "two names": (edited("_Qs.params.0", torch.zeros(1)), "'_Qs.params.0' appears a second time"),
    "beside model": ({"model": released(True), "optim": {}}, "besides 'model' it holds optim"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_torch_files(tmp_path: Path, name: str) -> None:
    content, phrase = FOREIGN[name]
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with checkpoint_error(path, phrase):
        read_checkpoint(path)


def test_wrong_action_masks(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(edited("_action_masks", torch.ones(3, 6)), path)
    with checkpoint_error(path, "its action masks are not those of 'small'"):
        checkpoint_task_set(read_checkpoint(path), small_tasks())
    torch.save(released(True), path)
    other = task_set("other", ("walker-run", "cup-catch", "cartpole-balance"))
    assert load_model(path, other)[1] == other  # of the same widths: a released file cannot tell
    with checkpoint_error(path, "its action masks are not those of 'wide'"):
        load_model(path, task_set("wide", ("walker-run", "walker-walk", "pendulum-spin")))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_missing_folder_empty_and_text_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    with checkpoint_error(path, "no such checkpoint file"):
        read_checkpoint(path)
    path.mkdir()
    with checkpoint_error(path, "is a folder"):
        read_checkpoint(path)
    path.rmdir()
    for content in (b"", b"x", b"hello, I am no checkpoint at all", b"PK\x03\x04", b"\xff" * 64):
        path.write_bytes(content)
        with checkpoint_error(path, "truncated or not a"):
            read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with checkpoint_error(path, "truncated or not a torch checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_at_every_length(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save(released(True), path)
    else:
        save_small(path)
    data = path.read_bytes()
    for length in (1, 7, 8, 9, 500, len(data) // 2, len(data) - 20_000, len(data) - 100, len(data) - 1):
        path.write_bytes(data[:length])
        with checkpoint_error(path):
            read_checkpoint(path)


def rewritten(data: bytes, change: Any) -> bytes:
    """A safetensors file with its header's JSON changed in place by `change`."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def test_damage_in_own_files_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_small(path)
    data = path.read_bytes()
    path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    with checkpoint_error(path, "does not match its checksum; the file is damaged"):
        read_checkpoint(path)

    def no_metadata(header: dict[str, Any]) -> None:
        del header["__metadata__"]

    def other_step(header: dict[str, Any]) -> None:
        text = header["__metadata__"]["tdmpc2"]
        assert '"step": 7' in text
        header["__metadata__"]["tdmpc2"] = text.replace('"step": 7', '"step": 8')

    def meta(**changes: Any) -> Any:
        def change(header: dict[str, Any]) -> None:
            content = json.loads(header["__metadata__"]["tdmpc2"])
            del content["metadata_crc32"]
            content.update(changes)
            content = {k: v for k, v in content.items() if v is not ...}
            header["__metadata__"] = {"tdmpc2": json.dumps(content)}

        return change

    def not_json(header: dict[str, Any]) -> None:
        header["__metadata__"] = {"tdmpc2": "{"}

    dims = {name: getattr(SMALL_DIMS, name) for name in SMALL_DIMS.__dataclass_fields__}
    for change, phrase in [
        (no_metadata, "without this project's metadata"),
        (other_step, "its metadata does not match its checksum"),
        (not_json, "its metadata is damaged"),
        (meta(format="other"), "format other version 1, expected tdmpc2-checkpoint version 1"),
        (meta(format_version=2), "version 2, expected"),
        (meta(tasks=...), "its metadata is damaged (KeyError: 'tasks')"),
        (meta(crc32={}), "its tensors and its list of them differ"),
        (meta(crc32=3), "its metadata is damaged"),
        (meta(dims={"obs_dim": 3}), "its metadata is damaged"),
        (meta(dims=dims | {"num_q": 1}), "num_q must be at least 2"),
        (meta(dims=dims | {"latent_dim": 24}), "expected"),
        (meta(dims=dims | {"latent_dim": 16.0}), "no model has its dimensions"),
        (meta(dims=dims | {"latent_dim": "16"}), "its metadata is damaged"),
    ]:
        path.write_bytes(rewritten(data, change))
        with checkpoint_error(path, phrase):
            read_checkpoint(path)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    with checkpoint_error(path, "a safetensors file without this project's metadata"):
        read_checkpoint(path)
    state = small_model().state_dict()
    for tensors in ({n: t for n, t in state.items() if n != "dynamics.layers.0.bias"}, state | {"x": torch.zeros(2)}):
        save_checkpoint(path, tensors, metadata())
        with checkpoint_error(path, "damaged or incomplete"):
            read_checkpoint(path)
    save_checkpoint(path, state | {"task_embedding": torch.zeros(3, 5, dtype=torch.int32)}, metadata())
    with checkpoint_error(path, "'task_embedding' is stored as torch.int32"):
        read_checkpoint(path)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    own, public = folder / "model.safetensors", folder / "model.pt"
    save_small(own)
    torch.save(released(False), public)
    return {"own": own, "public": public}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["own", "public"]),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    cut=st.booleans(),
    head=st.booleans(),
)
def test_any_damage_is_found_or_harmless(
    whole_files: dict[str, Path], tmp_path: Path, kind: str, place: float, bit: int, cut: bool, head: bool
) -> None:
    """One flipped bit or a cut anywhere: an error that names the file, or the very same weights."""
    source = whole_files[kind]
    data = bytearray(source.read_bytes())
    # Half of the cases fall among the first and last bytes, where headers and directories are.
    index = int(place * min(len(data), 12_000)) if head else int(place * len(data))
    index = index if kind == "own" or not head else len(data) - 1 - index
    if cut:
        del data[index:]
    else:
        data[index] ^= 1 << bit
    path = tmp_path / source.name
    path.write_bytes(data)
    try:
        found = read_checkpoint(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return
    assert not cut
    expected = read_checkpoint(source)
    assert found.dims == expected.dims
    assert found.metadata == expected.metadata
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name


def test_custom_sizes_say_so(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(released(False), path)
    assert read_checkpoint(path).describe().startswith("a custom-size model of 3 tasks (observation 24, action 6")
    with checkpoint_error(path, "expected model_size=5", "mlp_dim 24 (not 512)"):
        check_size(read_checkpoint(path), 5)
