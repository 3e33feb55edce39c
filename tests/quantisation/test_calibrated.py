"""Rounding by what layers are given: less error than to nearest, in the same stored form; the program; bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_fixtures import randomise
from run_fixtures import DUO, DUO_KEYS, ROOT, TINY_PLANNER, run_program, store_path, tiny_settings
from torch import Tensor

from tdmpc2.calibration import calibrate
from tdmpc2.checkpointing import CheckpointMetadata, load_model, read_checkpoint, save_checkpoint
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import DataError, UserError
from tdmpc2.model import WorldModel
from tdmpc2.quantisation import SCHEMES, quantise
from tdmpc2.quantisation.calibrated import Moments, calibrated
from tdmpc2.quantisation.codecs import SCALE, ChannelInt8, Grid, GroupInt4
from tdmpc2.tasks import task_set

STATES = 96
CODECS = pytest.mark.parametrize("codec", [ChannelInt8(), GroupInt4()], ids=["int8", "int4"])

# -- one layer ---------------------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(rows: int, width: int, heads: int = 1) -> Tensor:
    """Inputs [E, rows, width] that go together and are not centred, as a layer's are."""
    mixed = normal(heads, rows, width // 2, seed=1) @ normal(heads, width // 2, width, seed=2)
    return mixed / width**0.5 + 0.3 * normal(heads, rows, width, seed=3) + 0.5


def moments_of(exact: Tensor, seen: Tensor, weight: Tensor | None = None) -> Moments:
    moments = Moments.of(exact.shape[-1], len(exact))
    moments.add(exact, seen, weight)
    return moments


def layout_kept(codec: Grid, stored: dict[str, Tensor], shape: tuple[int, ...]) -> None:
    layout = codec.layout(shape)
    assert stored.keys() == layout.keys()
    for suffix, part in stored.items():
        assert tuple(part.shape) == layout[suffix].shape and part.dtype in layout[suffix].dtypes
    assert bool((stored[SCALE].float() > 0).all() and stored[SCALE].isfinite().all())


@CODECS
@pytest.mark.parametrize("shape", [(20, 70), (3, 12, 33)])
def test_a_layer_s_outputs_are_nearer_than_to_nearest(codec: Grid, shape: tuple[int, ...]) -> None:
    heads = shape[0] if len(shape) == 3 else 1
    x, weight = inputs(400, shape[-1], heads), normal(*shape) * 0.1
    before = weight.clone()
    stored = calibrated(codec, "w", weight, moments_of(x, x), damping=0.01)
    assert torch.equal(weight, before)
    layout_kept(codec, stored, shape)
    found, nearest = codec.decode(stored, shape), codec.rounded(weight)
    errors = [(x @ (w - weight).reshape(heads, *shape[-2:]).mT).square().mean((1, 2)) for w in (found, nearest)]
    assert bool((errors[0] < 0.6 * errors[1]).all()), errors
    again = calibrated(codec, "w", weight, moments_of(x, x), damping=0.01)
    assert all(torch.equal(again[suffix], part) for suffix, part in stored.items())


def test_what_earlier_layers_are_off_by_is_made_up_for() -> None:
    """Its inputs are off in a way that a layer can undo: the outputs come nearer to the float model's."""
    exact, weight, codec = inputs(400, 64), normal(16, 64) * 0.1, GroupInt4()
    seen = exact @ (torch.eye(64) + 0.1 * normal(64, 64, seed=4) / 8) + 0.02
    wanted = exact[0] @ weight.mT
    errors = []
    for first in (exact, seen):  # told of the float inputs, and not
        stored = calibrated(codec, "w", weight, moments_of(first, seen), damping=0.01)
        errors.append(float((seen[0] @ codec.decode(stored, (16, 64)).mT - wanted).square().mean()))
    assert errors[0] < 0.7 * errors[1]


def test_rows_count_by_their_weight_and_blocks_add_up() -> None:
    x = inputs(60, 10, 2)
    weight = torch.rand(2, 60, generator=torch.Generator().manual_seed(5))
    whole, parts = moments_of(x, x + 1, weight), Moments.of(10, 2)
    for rows in (slice(0, 7), slice(7, 60)):
        parts.add(x[:, rows], x[:, rows] + 1, weight[:, rows])
    torch.testing.assert_close(parts.inputs, whole.inputs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.cross, whole.cross, rtol=1e-5, atol=1e-6)
    expected = torch.einsum("er,eri,erj->eij", weight, x, x + 1) / 60
    torch.testing.assert_close(whole.cross.float(), expected, rtol=1e-4, atol=1e-5)


@CODECS
def test_nothing_is_made_of_nothing(codec: Grid) -> None:
    """Channels of zeros stay so, and inputs that are never there do no harm."""
    x, weight = inputs(100, 64), normal(6, 64) * 0.1
    x[..., 5:40] = 0
    weight[2] = 0
    stored = calibrated(codec, "w", weight, moments_of(x, x))
    layout_kept(codec, stored, (6, 64))
    decoded = codec.decode(stored, (6, 64))
    assert decoded.isfinite().all() and not decoded[2].any()


def test_what_cannot_be_rounded_is_named() -> None:
    x = inputs(10, 8)
    with pytest.raises(UserError, match="'w' holds a value that is not finite"):
        calibrated(GroupInt4(), "w", torch.full((2, 8), float("nan")), moments_of(x, x))
    x[0, 0, 0] = float("inf")
    with pytest.raises(UserError, match="'w': what the layer is given holds values that are not finite"):
        calibrated(GroupInt4(), "w", torch.ones(2, 8), moments_of(x, x))


# -- a model -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student() -> WorldModel:
    model = WorldModel(tiny_settings(Path("run")).dims, DUO.action_masks())
    randomise(model, 0)
    return model.eval()


def shapes(model: WorldModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@torch.no_grad()
def outputs(model: WorldModel) -> dict[str, Tensor]:
    """Along slices that were not calibrated on."""
    batch = SliceSampler(EpisodeStore.open(store_path()), DUO, 128, 1, seed=77).batch(0)
    z = model.encode(batch.obs[0], batch.task)
    return {
        "z": z,
        "next": model.next(z, batch.action[0], batch.task),
        "reward": model.reward(z, batch.action[0], batch.task),
        "q": model.q_values(z, batch.action[0], batch.task),
        "policy": model.policy(z, batch.task)[0],
    }


@pytest.mark.parametrize("name", ["int4", "int8", "mixed"])
def test_a_model_s_outputs_are_nearer_than_to_nearest(student: WorldModel, name: str) -> None:
    scheme, before = SCHEMES[name], {n: t.clone() for n, t in student.state_dict().items()}
    quantised = calibrate(student, DUO, scheme, store_path(), STATES, seed=1)
    assert all(torch.equal(before[n], t) for n, t in student.state_dict().items())
    assert [line.name for line in quantised.report] == list(before)
    nearest = quantise(before, name)
    assert {n: (t.shape, t.dtype) for n, t in quantised.tensors.items()} == {
        n: (t.shape, t.dtype) for n, t in nearest.tensors.items()
    }
    exact, errors = outputs(student), []
    for tensors in (quantised.tensors, nearest.tensors):
        rounded = WorldModel(student.dims, DUO.action_masks())
        rounded.load_state_dict(scheme.decode(tensors, shapes(student)))
        found = outputs(rounded.eval())
        errors.append({n: float((found[n] - exact[n]).square().mean()) for n in exact})
    changed = ("q",) if name == "mixed" else tuple(exact)
    assert all(errors[0][n] < 0.8 * errors[1][n] for n in changed), errors


def test_it_follows_from_the_seed(student: WorldModel) -> None:
    one, same, other = (
        calibrate(student, DUO, SCHEMES["int4"], store_path(), STATES, seed).tensors for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], tensor) for name, tensor in same.items())
    assert not all(torch.equal(one[name], tensor) for name, tensor in other.items())


@pytest.mark.parametrize("name", ["fp16", "paper-int8"])
def test_schemes_without_a_choice_are_refused(student: WorldModel, name: str) -> None:
    with pytest.raises(UserError, match=f"scheme={name} rounds in one way only: calibrate=… is for int8, int8-dynamic"):
        calibrate(student, DUO, SCHEMES[name], store_path(), STATES, seed=1)


def test_other_stores_are_refused(student: WorldModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no-store"):
        calibrate(student, DUO, SCHEMES["int4"], tmp_path / "no-store", STATES, seed=1)
    EpisodeStore.create(tmp_path / "empty", DUO.tasks, DUO.obs_dim, DUO.action_dim, 501)
    with pytest.raises(UserError, match="empty: holds no episodes to calibrate on"):
        calibrate(student, DUO, SCHEMES["int4"], tmp_path / "empty", STATES, seed=1)
    others = task_set("others", ("walker-walk", "pendulum-spin"))
    dims = replace(student.dims, obs_dim=others.obs_dim, action_dim=others.action_dim)
    model = WorldModel(dims, others.action_masks())
    randomise(model, 0)
    with pytest.raises(DataError, match="no episodes of walker-walk"):
        calibrate(model, others, SCHEMES["int4"], store_path(), STATES, seed=1)


def test_the_program(student: WorldModel, tmp_path: Path) -> None:
    """quantize.py calibrates on a store; what it writes is a file of the scheme like any other."""
    path = tmp_path / "student.safetensors"
    meta = CheckpointMetadata("duo", DUO.tasks, student.dims, None, 0)
    save_checkpoint(path, student.state_dict(), meta)
    done = run_program(
        "scripts/quantize.py",
        *(f"checkpoint={path}", "scheme=int4", f"calibrate={store_path()}", f"calibrate_states={STATES}"),
        *("output=out", "device=cpu", "evaluate=false", *DUO_KEYS, *TINY_PLANNER),
        cwd=tmp_path,
        PYTHONPATH=str(ROOT),
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"calibrating on {STATES} states of {store_path()}" in done.stdout
    full = tmp_path / "out" / "student-int4-calibrated.safetensors"
    checkpoint = read_checkpoint(full)
    assert checkpoint.metadata is not None
    assert (checkpoint.metadata.scheme, checkpoint.metadata.scheme_version) == ("int4", 1)
    expected = calibrate(student, DUO, SCHEMES["int4"], store_path(), STATES, seed=1)
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in expected.tensors.items())
    assert not load_model(full.with_name("student-int4-calibrated-deploy.safetensors"))[0].has_target_q
