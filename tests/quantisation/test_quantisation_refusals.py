"""Integer products against exact arithmetic; damaged quantised files; and where integers are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import (
    SMALL_DIMS,
    SMALL_PLAN,
    checkpoint_error,
    gammas,
    golden,
    golden_plan,
    randomise,
    relative,
    small_model,
    small_tasks,
)
from run_fixtures import ROOT, TINY_PLANNER, run_program, tiny_settings
from torch import Tensor

from tdmpc2.checkpointing import CheckpointMetadata, load_model, read_checkpoint, require_float, save_checkpoint
from tdmpc2.distillation import load_teacher
from tdmpc2.errors import UserError
from tdmpc2.model import WorldModel
from tdmpc2.model.layers import Int8Layer, Layer, quantise_rows
from tdmpc2.planner import Planner
from tdmpc2.quantisation import SCHEMES, quantise
from tdmpc2.quantisation.codecs import SCALE, ChannelInt8
from tdmpc2.training.student import new_student


def store(path: Path, stored: str, **changes: Any) -> dict[str, Tensor]:
    """The small model by a scheme, in a file whose metadata may say otherwise."""
    tasks = small_tasks()
    tensors = quantise(small_model().state_dict(), stored).tensors
    meta = CheckpointMetadata(tasks.name, tasks.tasks, SMALL_DIMS, None, 7, scheme=stored)
    save_checkpoint(path, tensors, replace(meta, **changes))
    return tensors


# -- integer products --------------------------------------------------------------------------------------------------


def pair(heads: int | None, device: str, widths: tuple[int, ...] = (9, 6, 5), out: int = 13) -> tuple[Layer, Int8Layer]:
    """A float layer whose weights are what int8 holds, and the integer layer of the same weights."""
    generator = torch.Generator().manual_seed(0)
    layers = Layer(sum(widths), out, "mish", heads=heads), Int8Layer(sum(widths), out, "mish", heads=heads)
    lead = () if heads is None else (heads,)
    codec = ChannelInt8()
    weight = torch.randn(*lead, out, sum(widths), generator=generator)
    stored = codec.encode("w", weight)
    state = {name: torch.randn(*lead, out, generator=generator) for name in ("bias", "norm_weight", "norm_bias")}
    layers[0].load_state_dict({**state, "weight": codec.decode(stored, tuple(weight.shape))})
    layers[1].load_state_dict({**state, "weight": stored[""], "weight" + SCALE: stored[SCALE]})
    return layers[0].to(device), layers[1].to(device)


@pytest.mark.parametrize("heads", [None, 3])
@pytest.mark.parametrize("rows", [(1,), (40,), (2, 7)])
@torch.no_grad()
def test_integer_products(device: str, heads: int | None, rows: tuple[int, ...]) -> None:
    """Exact where the inputs are what int8 holds, and within their rounding where they are not."""
    exact, integer = pair(heads, device)
    generator = torch.Generator().manual_seed(1)
    whole = [torch.randint(-127, 128, (*rows, width), generator=generator).float() for width in (9, 6, 5)]
    for piece in whole:
        piece[..., 0] = 127  # so that a step is 1
    for inputs, tolerance in (
        (whole, 1e-5),
        ([torch.randn(piece.shape, generator=generator) for piece in whole], 2e-2),
    ):
        pieces = [piece.to(device) for piece in inputs]
        if heads is not None:
            pieces = [piece.expand(heads, *piece.shape) for piece in pieces]
        found = integer(*pieces)
        assert found.dtype == torch.float32
        assert relative(found, exact(*pieces)) < tolerance
        # As later layers get them: every head's own, in one piece.
        joined = torch.cat(pieces, dim=-1).contiguous()
        assert relative(integer(joined), exact(joined)) < 2e-2
        if heads is not None:
            two = torch.tensor([2, 0], device=device)
            picked = [piece[two] for piece in pieces]
            assert relative(integer(*picked, heads=two), exact(*picked, heads=two)) < tolerance


def test_rows_are_quantised_one_by_one() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1e-3, 0.0, 1e3], [float("nan"), 1.0, 1.0]])
    rows, scale = quantise_rows(x)
    assert rows.dtype == torch.int8 and scale.shape == (4, 1)
    assert bool(((rows.float() * scale - x).abs() <= 0.5001 * scale)[:3].all())
    assert rows[0].tolist() == [64, -127, 32] and rows[1].tolist() == [0, 0, 0]
    assert not scale[3].isfinite(), "what is not a number stays so"


@torch.no_grad()
def test_planning_with_integer_products(tmp_path: Path, device: str) -> None:
    path = tmp_path / "model.safetensors"
    store(path, "int8-dynamic")
    model, _, _ = load_model(path, device=device)
    kinds = {name for name, module in model.named_modules() if isinstance(module, Int8Layer)}
    assert len(kinds) == 15 and not any(name.startswith("encoder") for name in kinds)
    obs, task, warm, noise = golden_plan(golden(), device)
    planner = Planner(model, SMALL_PLAN, gammas(device))
    plan = planner.plan(obs, task, warm, noise)
    assert plan.action.isfinite().all() and plan.action.abs().max() <= 1
    again = planner.plan(obs, task, warm, noise)
    assert torch.equal(plan.action, again.action)
    z = model.encode(obs, task)
    with pytest.raises(UserError, match="int8 weights cannot be trained"):
        model.q_values(z, plan.action, task, dropout=torch.ones(1, device=device))


@torch.no_grad()
def test_scales_stay_float32_in_half_arithmetic() -> None:
    _, layer = pair(None, "cpu")
    scale = layer.weight_scale.clone()
    layer.to(torch.float16)
    assert layer.bias.dtype == torch.float16 and layer.weight.dtype == torch.int8
    assert torch.equal(layer.weight_scale, scale)
    assert "weight" not in dict(layer.named_parameters()) and "weight" in dict(layer.named_buffers())


# -- damaged and foreign files -----------------------------------------------------------------------------------------


def rewritten(path: Path, scheme: str, **changes: Tensor | None) -> None:
    """The file of a scheme with tensors replaced, added or (None) left out, checksums and all in order."""
    tensors = store(path, scheme)
    tensors |= {name.replace("/", "."): tensor for name, tensor in changes.items() if tensor is not None}
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name.replace("/", ".")]
    tasks = small_tasks()
    save_checkpoint(path, tensors, CheckpointMetadata(tasks.name, tasks.tasks, SMALL_DIMS, None, 7, scheme=scheme))


def test_damaged_quantised_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights = store(path, "int8")
    weight, scale = "policy_head/layers/2/weight", "policy_head/layers/2/weight_scale"
    numbers, steps = weights[weight.replace("/", ".")], weights[scale.replace("/", ".")]
    for changes, phrases in [
        ({scale: None}, ("'policy_head.layers.2.weight_scale' is missing, expected (12,)",)),
        ({scale: steps[:-1].clone()}, ("'policy_head.layers.2.weight_scale' is (11,), expected (12,)",)),
        ({weight: numbers.float()}, ("'policy_head.layers.2.weight' is stored as torch.float32, expected int8",)),
        ({scale: steps.half()}, ("is stored as torch.float16, expected float32 (scheme int8)",)),
        ({scale: -steps}, ("holds a scale that is not a positive number",)),
        ({scale: steps * float("nan")}, ("holds a scale that is not a positive number",)),
        ({"policy_head/layers/2/bias_scale": steps}, ("'policy_head.layers.2.bias_scale' is (12,), expected no such",)),
    ]:
        rewritten(path, "int8", **changes)
        with checkpoint_error(path, *phrases):
            read_checkpoint(path)
    whole = store(path, "int4")[weight.replace("/", ".")]
    rewritten(path, "int4", **{weight: whole[:, :-1].clone()})
    with checkpoint_error(path, "'policy_head.layers.2.weight' is (12, 11), expected (12, 12)"):
        read_checkpoint(path)


def test_metadata_and_tensors_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    store(path, "int8", scheme="int3")
    with checkpoint_error(path, "stored by scheme 'int3' version 1", "it knows float32, fp16, bf16, int8"):
        read_checkpoint(path)
    store(path, "int8", scheme_version=2)
    with checkpoint_error(path, "stored by scheme 'int8' version 2"):
        read_checkpoint(path)
    for stored, named in (("int8", "int4"), ("int8", "fp16"), ("fp16", "int8"), ("paper-int8", "int8")):
        store(path, stored, scheme=named)
        with checkpoint_error(path, "damaged or incomplete"):
            read_checkpoint(path)
    store(path, "int4")
    data = path.read_bytes()
    path.write_bytes(data[:-3] + bytes([data[-3] ^ 16]) + data[-2:])
    with checkpoint_error(path, "does not match its checksum"):
        read_checkpoint(path)


# -- where floats are needed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_needs_floats_but_a_teacher_does_not(tmp_path: Path, scheme: str) -> None:
    settings = tiny_settings(tmp_path / "run")
    tasks, path = settings.task_set, tmp_path / "student.safetensors"
    model = WorldModel(settings.dims, tasks.action_masks())
    randomise(model, 0)
    tensors = quantise(model.state_dict(), scheme).tensors
    save_checkpoint(path, tensors, CheckpointMetadata(tasks.name, tasks.tasks, settings.dims, 1, 0, scheme=scheme))
    checkpoint = read_checkpoint(path)
    started = replace(settings, checkpoint=path)
    if SCHEMES[scheme].is_float:
        require_float(checkpoint, "training")
        assert all(p.dtype == torch.float32 for p in new_student(started).parameters())
    else:
        with checkpoint_error(path, f"is quantised (stored as {scheme}, ", "training needs float weights"):
            new_student(started)
    teacher = load_teacher(path, tasks)
    reward = teacher.rewards(torch.zeros(4, tasks.obs_dim), torch.zeros(4, tasks.action_dim), torch.zeros(4).long())
    assert reward.shape == (4, 1) and reward.isfinite().all()


def test_released_integers_are_refused_too(shared_checkpoints: Path) -> None:
    for kind in ("int8", "mixed"):
        path = shared_checkpoints / f"mt30_1M_steps_045dist_{kind}.pt"
        checkpoint = read_checkpoint(path)
        with checkpoint_error(path, "is quantised", "qint8", "give the student it was made from"):
            require_float(checkpoint, "quantisation")


def test_the_program_and_its_result_given_back(tmp_path: Path) -> None:
    """quantize.py stores and evaluates; its file goes into evaluate.py as it is, and not into quantize.py again."""
    settings = tiny_settings(tmp_path / "run")
    tasks, path = settings.task_set, tmp_path / "student.safetensors"
    model = WorldModel(settings.dims, tasks.action_masks())
    randomise(model, 0)
    save_checkpoint(path, model.state_dict(), CheckpointMetadata(tasks.name, tasks.tasks, settings.dims, None, 0))
    common = ("device=cpu", "eval_episodes=1", f"tasks=[{tasks.tasks[0]}]", "num_workers=0", *TINY_PLANNER)
    paths = {"cwd": tmp_path, "PYTHONPATH": str(ROOT)}
    done = run_program(
        "scripts/quantize.py", f"checkpoint={path}", "scheme=int8-dynamic", "mpc=false", "output=out", *common, **paths
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "after: int8 products and float32 arithmetic" in done.stdout
    assert all(name in done.stdout for name in model.state_dict()), "a line for every tensor"
    deployed = tmp_path / "out" / "student-int8-dynamic-deploy.safetensors"
    assert deployed.stat().st_size < 0.6 * path.stat().st_size
    done = run_program("tdmpc2/evaluate.py", f"checkpoint={deployed}", "output=again", *common, **paths)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (tmp_path / "again" / "evaluation.json").is_file()
    done = run_program("scripts/quantize.py", f"checkpoint={deployed}", "scheme=int4", "output=twice", *common, **paths)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "is quantised (stored as int8-dynamic" in done.stderr and "quantisation needs float weights" in done.stderr
    assert not (tmp_path / "twice").exists()
