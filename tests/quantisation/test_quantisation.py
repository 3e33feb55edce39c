"""Codecs and schemes: bounds on the error, what is published, round trips through files, integer products, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from model_fixtures import (
    RELEASED,
    SMALL_DIMS,
    SMALL_PLAN,
    assert_close,
    golden_plan,
    relative,
    single_task_model,
    small_model,
    small_tasks,
)
from model_fixtures import golden as golden_figures
from torch import Tensor

from tdmpc2.agent import load_agent
from tdmpc2.checkpointing import (
    CheckpointMetadata,
    load_model,
    read_checkpoint,
    save_checkpoint,
)
from tdmpc2.errors import UserError
from tdmpc2.model import ACTING_PARTS, WorldModel
from tdmpc2.quantisation import SCHEMES, quantise, storage_scheme, without_target
from tdmpc2.quantisation.codecs import SCALE, Cast, ChannelInt8, Codec, GroupInt4, UnitInt8


def metadata(scheme: str, **changes: Any) -> CheckpointMetadata:
    tasks = small_tasks()
    return replace(CheckpointMetadata(tasks.name, tasks.tasks, SMALL_DIMS, None, 7, scheme=scheme), **changes)


def store(path: Path, scheme: str, model: WorldModel | None = None, target: bool = True) -> dict[str, Tensor]:
    tensors = quantise((model or small_model()).state_dict(), scheme).tensors
    tensors = tensors if target else without_target(tensors)
    assert save_checkpoint(path, tensors, metadata(scheme)) == path.stat().st_size
    return tensors


def there_and_back(codec: Codec, tensor: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Decoded and stored tensors; what is stored looks as the layout says."""
    before = tensor.clone()
    stored = codec.encode("w", tensor)
    assert torch.equal(tensor, before)
    layout = codec.layout(tuple(tensor.shape))
    assert layout.keys() == stored.keys()
    for suffix, part in stored.items():
        assert tuple(part.shape) == layout[suffix].shape and part.dtype in layout[suffix].dtypes
        assert part.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
    decoded = codec.decode(stored, tuple(tensor.shape))
    assert torch.equal(codec.rounded(tensor), decoded)
    assert decoded.shape == tensor.shape and decoded.dtype == torch.float32
    return decoded, stored


def steps(codec: Codec, stored: dict[str, Tensor], width: int) -> Tensor:
    """The step of every number, [..., out, in]."""
    scale = stored[SCALE].float()
    if isinstance(codec, GroupInt4):
        return scale.repeat_interleave(codec.group, dim=-1)[..., :width]
    return scale.unsqueeze(-1)


# -- codecs ------------------------------------------------------------------------------------------------------------

MATRICES = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=70),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
    | st.floats(-(2.0**-10), 2.0**-10, width=32, allow_subnormal=False)
    | st.just(0.0),
    fill=st.floats(-1, 1, width=32, allow_subnormal=False),
)


@pytest.mark.parametrize("codec", [ChannelInt8(), GroupInt4(), GroupInt4(16)], ids=["int8", "int4", "int4 of 16"])
@settings(max_examples=60, deadline=None)
@given(values=MATRICES)
def test_no_number_is_off_by_more_than_half_a_step(codec: Codec, values: np.ndarray) -> None:
    tensor = torch.from_numpy(values)
    decoded, stored = there_and_back(codec, tensor)
    step = steps(codec, stored, tensor.shape[-1])
    # The bound is exact but for float32's rounding of quotient and product.
    assert bool(((decoded - tensor).abs() <= 0.5 * step + 1e-6 * tensor.abs()).all())
    assert bool((decoded[tensor == 0] == 0).all())


@pytest.mark.parametrize("codec", [ChannelInt8(), GroupInt4()], ids=["int8", "int4"])
def test_zero_constant_and_outlier_channels(codec: Codec) -> None:
    tensor = 0.01 * torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0))
    tensor[0, 0] = 0
    tensor[0, 1] = -0.3
    tensor[1, 2, 5] = 100.0
    decoded, _ = there_and_back(codec, tensor)
    assert torch.equal(decoded[0, 0], tensor[0, 0])
    torch.testing.assert_close(decoded[0, 1], tensor[0, 1], rtol=1e-3, atol=0)
    torch.testing.assert_close(decoded[1, 2, 5], tensor[1, 2, 5], rtol=1e-3, atol=0)
    # The outlier costs its own channel (or group) alone.
    others = torch.ones(2, 4, dtype=torch.bool)
    others[1, 2] = False
    worst = 0.5 * tensor[others].abs().amax(dim=-1) / (127 if isinstance(codec, ChannelInt8) else 7)
    assert bool(((decoded - tensor)[others].abs().amax(dim=-1) <= 1.001 * worst + 1e-9).all())
    if isinstance(codec, GroupInt4):
        assert float((decoded - tensor)[1, 2, 32:].abs().max()) < 0.01


@pytest.mark.parametrize("width", [1, 2, 31, 32, 33, 63, 65, 230])
def test_int4_of_any_width(width: int) -> None:
    codec = GroupInt4()
    tensor = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(width))
    decoded, stored = there_and_back(codec, tensor)
    assert stored[""].shape == (2, 5, (width + 1) // 2)
    assert stored[SCALE].shape == (2, 5, (width + 31) // 32)
    assert relative(decoded, tensor) < 0.15
    codes = torch.stack([stored[""] & 15, stored[""] >> 4], dim=-1).flatten(-2)
    assert int(codes.min()) >= 1  # -8 is not used
    if width % 2:
        assert bool((codes[..., -1] == 8).all()), "the unused half byte is zero"


@pytest.mark.parametrize("codec", [Cast(torch.float16), ChannelInt8(), GroupInt4(), UnitInt8()])
def test_what_cannot_be_stored_is_named(codec: Codec) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="'w' holds a value that is not finite"):
            codec.encode("w", torch.tensor([[1.0, value]]))
    if isinstance(codec, Cast | GroupInt4):
        with pytest.raises(UserError, match="'w' holds 1e\\+06, beyond"):
            codec.encode("w", torch.tensor([[1.0, 1e6]]))


# -- schemes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_tensor_is_skipped(scheme: str) -> None:
    state = small_model().state_dict()
    quantised = quantise(state, scheme)
    assert [line.name for line in quantised.report] == list(state)
    assert quantised.bytes == sum(t.numel() * t.element_size() for t in quantised.tensors.values())
    assert sum(line.numbers for line in quantised.report) == sum(t.numel() for t in state.values())
    kinds = {line.name: line.kind for line in quantised.report}
    matrix = {"fp16": "float16", "bf16": "bfloat16", "int4": "int4", "paper-int8": "int8, scale 1"}.get(scheme, "int8")
    for name, tensor in state.items():
        value = "q_heads" in name
        if name.endswith(".weight"):
            assert tensor.dim() == (3 if value else 2)
            expected = matrix
            if "mixed" in scheme:
                expected = ("int8, scale 1" if scheme == "paper-mixed" else "int8") if value else "float16"
        elif scheme == "paper-int8" or (scheme == "paper-mixed" and value):
            expected = "int8, scale 1"
        else:
            expected = "bfloat16" if scheme == "bf16" else "float16"
        assert kinds[name] == expected, name
    # No float copy of anything that is stored as integers.
    floats = {n for n, t in quantised.tensors.items() if t.is_floating_point()}
    assert floats.isdisjoint(n for n, kind in kinds.items() if kind.startswith("int"))


def test_names_that_no_rule_covers_and_unknown_schemes() -> None:
    with pytest.raises(UserError, match=r"'encoder\.layers\.0\.gain' is no tensor of a world model"):
        quantise({"encoder.layers.0.gain": torch.zeros(3)}, "int8")
    with pytest.raises(UserError, match="scheme=int3 is unknown; choose one of fp16, bf16, int8"):
        quantise({}, "int3")
    assert storage_scheme("float32", 1) is not None
    assert storage_scheme("int8", 2) is None and storage_scheme("int3", 1) is None


def test_the_published_files_come_out_of_their_schemes(shared_checkpoints: Path) -> None:
    source, _, _ = load_model(shared_checkpoints / RELEASED, "mt30")
    weights = source.state_dict()
    for kind in ("int8", "mixed"):
        published = read_checkpoint(shared_checkpoints / f"mt30_1M_steps_045dist_{kind}.pt")
        quantised = quantise(weights, f"paper-{kind}")
        assert quantised.tensors.keys() == published.tensors.keys()
        differ = 0
        for name, stored in quantised.tensors.items():
            theirs = published.tensors[name]
            assert stored.dtype == (torch.int8 if theirs.is_quantized else theirs.dtype)
            numbers = theirs.int_repr() if theirs.is_quantized else theirs
            off = numbers != stored
            differ += int(off.sum())
            # Published from float32: rounding to half may have moved a weight across a half-way point, no further.
            half = weights[name][off].abs()
            nearest = half.floor() + 0.5
            assert bool(((half - nearest).abs() <= 2.0**-11 * nearest.clamp(min=1)).all()), name
        assert differ < 2e-4 * sum(t.numel() for t in weights.values()), differ
    lines = {line.name: line for line in quantise(weights, "paper-int8").report}
    assert lines["encoder.layers.0.weight"].zeroed > 0.99
    assert quantise(weights, "int8").bytes < 0.52 * quantise(weights, "fp16").bytes


# -- through files -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def outputs(model: WorldModel) -> dict[str, Tensor]:
    obs, given, _, _ = golden_plan(golden_figures())
    z = model.encode(obs, given)
    action = torch.linspace(-1, 1, obs.shape[0] * model.dims.action_dim).view(obs.shape[0], -1)
    return {
        "z": z,
        "next": model.next(z, action, given),
        "reward": model.reward(z, action, given),
        "q": model.q_values(z, action, given),
        "policy": model.policy(z, given)[0],
    }


TOLERANCE = {"fp16": 2e-3, "bf16": 2e-2, "int8": 2e-2, "int8-dynamic": 4e-2, "mixed": 2e-2, "int4": 0.3}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("target", [True, False])
def test_round_trip(tmp_path: Path, scheme: str, target: bool) -> None:
    path = tmp_path / "model.safetensors"
    saved = store(path, scheme, target=target)
    checkpoint = read_checkpoint(path)
    assert checkpoint.is_float is SCHEMES[scheme].is_float
    assert checkpoint.metadata is not None and checkpoint.metadata.scheme == scheme
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in saved.items())
    model, tasks, _ = load_model(path)
    assert tasks == small_tasks() and not model.training and model.has_target_q is target
    integers = 0
    for name, tensor in checkpoint.float32_tensors().items():
        held = model.state_dict()[name]
        integers += held.dtype == torch.int8
        assert torch.equal(held, saved[name] if held.dtype == torch.int8 else tensor), name
    # Of int8-dynamic everything but the encoder's matrices stays as it is stored.
    assert integers == (12 + 3 * target if scheme == "int8-dynamic" else 0)
    found, expected = outputs(model), outputs(small_model())
    if scheme in TOLERANCE:
        for name, tensor in expected.items():
            assert_close(found[name], tensor, TOLERANCE[scheme], f"{scheme} {name}")
    assert all(tensor.isfinite().all() for tensor in found.values())
    # As evaluate.py and distillation read it: some of the parts, or a whole agent without further flags.
    assert not load_model(path, parts=ACTING_PARTS)[0].has_target_q
    agent = load_agent(path, planner=SMALL_PLAN, device="cpu")
    obs, task, _, _ = golden_plan(golden_figures())
    assert agent.act(obs, task).shape == (obs.shape[0], SMALL_DIMS.action_dim)


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int4", "mixed"])
def test_a_single_task_model(tmp_path: Path, scheme: str) -> None:
    path, model = tmp_path / "model.safetensors", single_task_model()
    quantised = quantise(model.state_dict(), scheme)
    assert "task_embedding" not in quantised.tensors
    meta = CheckpointMetadata("walker-walk", ("walker-walk",), model.dims, None, 0, scheme=scheme)
    save_checkpoint(path, quantised.tensors, meta)
    checkpoint = read_checkpoint(path)
    assert checkpoint.float32_tensors().keys() == model.state_dict().keys()
    for name, line in ((line.name, line) for line in quantised.report):
        error = (checkpoint.float32_tensors()[name] - model.state_dict()[name]).abs().max()
        assert float(error) == pytest.approx(line.largest_error, abs=1e-7)


def test_equal_weights_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        store(tmp_path / name, "int4")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
