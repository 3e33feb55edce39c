"""Whatever this project's own files hold - checkpoints, results, stores - they load or are refused in one line."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoint_fixtures import metadata
from data_fixtures import make_store
from hypothesis import given
from hypothesis import strategies as st
from model_fixtures import small_model
from property_fixtures import cases, damage, loads, odd_json

from tdmpc2.checkpointing import load_model, save_checkpoint
from tdmpc2.errors import CheckpointError, UserError
from tdmpc2.evaluation.results import (
    EpisodeResult,
    EvaluationResult,
    Machine,
    check_replaceable,
    load_json,
    results_table,
)

TASKS = ("walker-walk", "cup-catch", "pendulum-spin")


# -- checkpoints -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("own") / "model.safetensors"
    save_checkpoint(path, small_model().state_dict(), metadata())
    return path.read_bytes()


def parts_of(data: bytes) -> tuple[str, bytes]:
    """The header's JSON and the tensors' bytes."""
    size = struct.unpack("<Q", data[:8])[0]
    return data[8 : 8 + size].decode(), data[8 + size :]


def sealed(header: str, body: bytes) -> bytes:
    text = header.encode(errors="surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


def resealed_metadata(text: str) -> str:
    """With the checksum that fits, where the content has one at all."""
    try:
        content = json.loads(text)
        content.pop("metadata_crc32", None)
        content["metadata_crc32"] = zlib.crc32(json.dumps(content, sort_keys=True, allow_nan=False).encode())
        return json.dumps(content)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return text


def read_own(path: Path) -> bool:
    return loads(lambda: load_model(path), path)


@cases(200)
@given(data=st.data())
def test_damaged_checkpoints(checkpoint: bytes, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data.draw(damage(checkpoint)))
    read_own(path)


@cases(200)
@given(data=st.data())
def test_odd_headers_of_checkpoints(checkpoint: bytes, tmp_path: Path, data: st.DataObject) -> None:
    """Tensors of other types, shapes and places than their bytes."""
    header, body = parts_of(checkpoint)
    path = tmp_path / "model.safetensors"
    path.write_bytes(sealed(data.draw(odd_json(header, ("tdmpc2",))), body))
    read_own(path)


@cases(300)
@given(data=st.data())
def test_odd_metadata_of_checkpoints(checkpoint: bytes, tmp_path: Path, data: st.DataObject) -> None:
    """Every checksum fits: names, dimensions, steps and versions are anything."""
    header, body = parts_of(checkpoint)
    content = json.loads(header)
    content["__metadata__"]["tdmpc2"] = resealed_metadata(data.draw(odd_json(content["__metadata__"]["tdmpc2"])))
    path = tmp_path / "model.safetensors"
    path.write_bytes(sealed(json.dumps(content), body))
    read_own(path)


@cases(60)
@given(data=st.data())
def test_odd_tensors_of_checkpoints(tmp_path: Path, data: st.DataObject) -> None:
    state = small_model().state_dict()
    name = data.draw(st.sampled_from(sorted(state)))
    value = state[name]
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn)
    odd = [value.to(kind) for kind in kinds] + [value[None], value.flatten(), value[:0], torch.zeros(())]
    state[name] = data.draw(st.sampled_from(odd))
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path, {"tdmpc2": metadata().to_json({n: crc(t) for n, t in state.items()})})
    read_own(path)


def crc(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize("name", ["num_enc_layers", "num_q", "num_tasks", "obs_dim", "mlp_dim", "num_bins"])
@pytest.mark.parametrize("value", [10**6, 10**12, 10**30])
def test_a_checkpoint_cannot_declare_a_large_model(tmp_path: Path, checkpoint: bytes, name: str, value: int) -> None:
    header, body = parts_of(checkpoint)
    content = json.loads(header)
    meta = json.loads(content["__metadata__"]["tdmpc2"])
    meta["dims"][name] = value
    content["__metadata__"]["tdmpc2"] = resealed_metadata(json.dumps(meta))
    path = tmp_path / "model.safetensors"
    path.write_bytes(sealed(json.dumps(content), body))
    with pytest.raises(CheckpointError, match=r"no model has its dimensions"):
        load_model(path)
    assert not read_own(path)


def test_deeply_nested_metadata(tmp_path: Path, checkpoint: bytes) -> None:
    header, body = parts_of(checkpoint)
    path = tmp_path / "model.safetensors"
    for depth in (500, 5_000, 200_000):
        content = json.loads(header)
        inner = content["__metadata__"]["tdmpc2"]
        content["__metadata__"]["tdmpc2"] = inner.replace(
            '"config": {', '"config": {"x": ' + "[" * depth + "]" * depth + ", "
        )
        path.write_bytes(sealed(json.dumps(content), body))
        with pytest.raises(CheckpointError, match="metadata"):
            load_model(path)


# -- results -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("results") / "evaluation.json"
    episodes = tuple(EpisodeResult(task, n, 7 * n, 100.0 * n + 1, 500) for task in TASKS for n in range(2))
    configuration: dict[str, Any] = {"lr": 3e-4, "task": {"name": "small", "tasks": list(TASKS)}, "none": None}
    machine = Machine("a processor", 2, "cpu")
    EvaluationResult("label", "small", TASKS, episodes, configuration, machine, 1.5, 3000).save_json(path)
    return path.read_text()


def read_results(path: Path) -> bool:
    def read() -> None:
        result = load_json(path)
        results_table(result).encode()
        result.save_json(path.with_name("again.json"))
        result.save_csv(path.with_name("again.csv"))

    def compare() -> None:
        check_replaceable(path, {"lr": 3e-4, "task": {"name": "small"}})

    loads(compare, path)
    return loads(read, path)


@cases(400)
@given(data=st.data())
def test_odd_results(results: str, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "evaluation.json"
    path.write_bytes(data.draw(odd_json(results)).encode(errors="surrogatepass"))
    read_results(path)


@cases(150)
@given(data=st.data())
def test_damaged_results(results: str, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "evaluation.json"
    path.write_bytes(data.draw(damage(results.encode())))
    read_results(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"wall_seconds": 1.5', '"wall_seconds": 1' + "0" * 400), "wall_seconds' is .*, expected a number"),
        (('"episode_return": 1.0', '"episode_return": 1e999'), "episode_return' is inf, expected a number"),
        (('"label": "label"', r'"label": "\ud800"'), "not valid|label' is .*expected text"),
        (('"none": null', '"none": ' + "[" * 900 + "]" * 900), "nested"),
    ],
    ids=["huge number", "infinite", "surrogate", "deep"],
)
def test_results_that_json_allows_and_this_program_does_not(
    results: str, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = tmp_path / "evaluation.json"
    assert change[0] in results
    path.write_text(results.replace(*change, 1))
    with pytest.raises(UserError, match=message):
        load_json(path)


# -- episode stores --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from run_fixtures import DUO

    return make_store(tmp_path_factory.mktemp("store") / "whole", DUO, [0, 1, 1, 0, 1], segments=2).path


def read_store(folder: Path) -> bool:
    from tdmpc2.data.sampler import SliceSampler
    from tdmpc2.data.store import EpisodeStore
    from tdmpc2.tasks import task_set

    def read() -> None:
        store = EpisodeStore.open(folder)
        sampler = SliceSampler(store, task_set("duo", store.tasks), 4, 3, 1)
        assert np.asarray(store.returns()).shape == (len(store),)
        store.episode(0)
        sampler.batch(0)

    def verify() -> None:
        EpisodeStore.open(folder).verify()

    loads(verify, folder)
    return loads(read, folder)


@cases(250)
@given(data=st.data())
def test_odd_store_headers(store_folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "store"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(store_folder, folder)
    header = folder / "store.json"
    header.write_bytes(data.draw(odd_json(header.read_text())).encode(errors="surrogatepass"))
    read_store(folder)


@cases(150)
@given(data=st.data())
def test_damaged_store_files(store_folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "store"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(store_folder, folder)
    file = folder / data.draw(st.sampled_from(sorted(p.name for p in folder.iterdir() if p.stat().st_size)))
    file.write_bytes(data.draw(damage(file.read_bytes())))
    read_store(folder)
