"""One update, run eagerly, compiled, as a CUDA graph, in bfloat16 products, and divided over processes."""

from __future__ import annotations

import copy
import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import gammas, golden, golden_batch, golden_update_noise, relative, small_model, with_rewards
from run_fixtures import ROOT, TINY, environment, store_path
from torch import Tensor

from tdmpc2.checkpointing import read_checkpoint
from tdmpc2.data.batch import Batch
from tdmpc2.errors import UserError
from tdmpc2.execution import Execution, capabilities
from tdmpc2.losses import LossWeights
from tdmpc2.objectives import RewardDistillation
from tdmpc2.quantisation import SCHEMES
from tdmpc2.training import UPDATES, Learner, OptimiserSettings, Ranks
from tdmpc2.training import execution as execution_module

# Distillation's MSE of two decoded rewards is the most sensitive of the losses to rounding.
BFLOAT16_TOLERANCE = 0.05


def learner_on(device: str, execution: Execution, seed: int = 3, scheme: str | None = None) -> Learner:
    model = small_model(device, dropout=0.1)
    objectives = (RewardDistillation(0.4),)
    settings = (model, gammas(device), LossWeights(), OptimiserSettings(), seed, execution)
    return Learner(*settings, objectives=objectives, scheme=None if scheme is None else SCHEMES[scheme])


def batches(device: str, count: int) -> list[Batch]:
    """Different ones, with a teacher's rewards."""
    batch = golden_batch(golden(), device)
    rewards = torch.linspace(-1, 2, 5, device=device).unsqueeze(1)
    return [with_rewards(replace(batch, obs=batch.obs * (1 + 0.1 * n)), rewards + n) for n in range(count)]


def run(learner: Learner, given: list[Batch]) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    metrics = [{name: float(value) for name, value in learner.update(batch).items()} for batch in given]
    return metrics, learner.master.state_dict()


def held_equal(device: str, execution: Execution, updates: int, scheme: str | None = None) -> None:
    """Losses, norms and weights after some updates, against the eager ones on the same batches and noise."""
    given = batches(device, updates)
    expected, weights = run(learner_on(device, Execution(), scheme=scheme), given)
    found, moved = run(learner_on(device, execution, scheme=scheme), given)
    for step, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6), f"update {step}"
    for name, value in weights.items():
        assert relative(moved[name], value) < 1e-4, name


@pytest.mark.timeout(1200)  # a slow machine's C++ compiler
@pytest.mark.parametrize("scheme", [None, "int4"])
def test_compiled_equals_eager(scheme: str | None) -> None:
    if execution_module.compile_problem(torch.device("cpu")) is not None:
        pytest.skip("no C++ compiler for torch.compile")
    held_equal("cpu", Execution(compile=True), 3, scheme)


@pytest.mark.cuda
@pytest.mark.parametrize(("compiled", "scheme"), [(False, None), (True, None), (False, "int4")])
def test_graph_captured_equals_eager(compiled: bool, scheme: str | None) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    held_equal("cuda", Execution(compile=compiled, cudagraphs=True), 8, scheme)


@pytest.mark.cuda
@pytest.mark.parametrize("execution", [Execution(), Execution(cudagraphs=True), Execution(precision="bfloat16")])
def test_an_update_does_not_wait_for_the_device(execution: Execution) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    learner, given = learner_on("cuda", execution), batches("cuda", 8)
    for batch in given[:5]:  # capture synchronises, once
        learner.update(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in given[5:]:
            learner.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_a_captured_learner_continues_from_its_state() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    given = batches("cuda", 10)
    whole, weights = run(learner_on("cuda", Execution(cudagraphs=True)), given)
    first = learner_on("cuda", Execution(cudagraphs=True))
    run(first, given[:6])
    second = learner_on("cuda", Execution(cudagraphs=True), seed=9)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    metrics, resumed = run(second, given[6:])
    assert metrics[-1] == pytest.approx(whole[-1], rel=1e-3)
    assert all(relative(resumed[name], value) < 1e-3 for name, value in weights.items())


def test_bfloat16_products_stay_near(device: str) -> None:
    figures = golden()
    batch, noise = golden_batch(figures, device), golden_update_noise(figures, device)
    batch = with_rewards(batch, torch.linspace(-1, 2, 5, device=device).unsqueeze(1))
    exact = learner_on(device, Execution()).update(batch, noise)
    learner = learner_on(device, Execution(precision="bfloat16"))
    rounded = learner.update(batch, noise)
    assert all(value.dtype == torch.float32 for value in learner.model.state_dict().values())
    for name in ("consistency_loss", "reward_loss", "value_loss", "total_loss", "distillation_loss"):
        assert float(rounded[name]) == pytest.approx(float(exact[name]), rel=BFLOAT16_TOLERANCE), name
    assert float(rounded["total_loss"]) != float(exact["total_loss"])


def test_without_a_compiler_updates_run_eagerly(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A compiler that is not there, by the setting with which torch is told of one."""
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(config, "force_disable_caches", True)
    torch._dynamo.reset()
    execution_module.compile_problem.cache_clear()
    try:
        learner = learner_on("cpu", Execution(compile=True))
    finally:
        execution_module.compile_problem.cache_clear()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("compile=true is not possible here, updates run eagerly: ")
    assert not learner.execution.compile
    assert all(value.isfinite() for value in learner.update(batches("cpu", 1)[0]).values())


def test_bfloat16_products_that_are_slow_or_do_not_work_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(execution_module, "half_product_problem", lambda dtype: "they are emulated")
    assert Execution(precision="bfloat16").supported_on(cpu, UPDATES).precision == "bfloat16"
    said = capsys.readouterr().err
    assert said == "precision=bfloat16 is slow here: they are emulated; precision=float32 is faster.\n"
    assert Execution().supported_on(cpu, UPDATES) == Execution() and not capsys.readouterr().err
    monkeypatch.setattr(execution_module, "autocast_problem", lambda device: "no such products")
    with pytest.raises(
        UserError, match="precision=bfloat16 does not work here: no such products; choose precision=float32"
    ):
        Execution(precision="bfloat16").supported_on(cpu, UPDATES)


def test_code_compiled_for_another_processor_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    """torch's cache does not tell them apart, and the process would end in "double free or corruption"."""
    probe = "import torch; import tdmpc2.execution.capabilities as c; print(c.compile_problem(torch.device('cpu')))"
    said = []
    for older in ({"ATEN_CPU_CAPABILITY": "avx2"}, {}):
        changes = {"PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), **older}
        done = subprocess.run(
            [sys.executable, "-c", probe], env=environment(**changes), capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]


def test_autocast_is_tried() -> None:
    assert capabilities.autocast_problem(torch.device("cpu")) is None
    problem = capabilities.autocast_problem(torch.device("meta"))
    assert problem is not None and "\n" not in problem


def test_choices_that_cannot_be() -> None:
    with pytest.raises(UserError, match="cudagraphs=true needs a CUDA device, and this run is on cpu"):
        learner_on("cpu", Execution(cudagraphs=True))
    with pytest.raises(UserError, match="precision=float16 is unknown for training; choose float32 or bfloat16"):
        Execution(precision="float16").check(torch.device("cpu"), UPDATES)
    with pytest.raises(UserError, match="batch_size 5 cannot be shared out evenly over 2 processes"):
        Ranks(1, 2).part(5)


# -- several processes -----------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, processes: int, *keys: str) -> list[subprocess.CompletedProcess[str]]:
    """train.py as torchrun starts it: one process a rank, told by the environment."""
    command = [sys.executable, str(ROOT / "tdmpc2/train.py"), *TINY, f"data_dir={store_path()}", "device=cpu"]
    command += ["exp_name=run", "teacher=1M", "teacher.random_weights=true", "log_freq=1", *keys]
    port = str(free_port())
    ranks = []
    for rank in range(processes):
        variables = {} if processes == 1 else {"RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank)}
        address = {} if processes == 1 else {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = environment(**variables, **address, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
        ranks.append(
            subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    done = []
    for rank in ranks:
        out, err = rank.communicate(timeout=240)
        done.append(subprocess.CompletedProcess(rank.args, rank.returncode, out, err))
    return done


def rows(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("logs/duo/run/seed1/*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The same total batch, losses and weights, but for the order of sums."""
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        ranks = start(folder, count, "steps=6", "save_freq=3", "dropout=0.1")
        for done in ranks:
            assert done.returncode == 0, done.stdout + done.stderr
        assert ("2 processes (cpu)" in ranks[0].stdout) == (count == 2)
        assert all(not done.stdout for done in ranks[1:]), "the first process speaks for all"
    one, two = (rows(tmp_path / str(count)) for count in (1, 2))
    assert len(one) == len(two) == 6
    for alone, shared in zip(one, two, strict=True):
        names = [name for name in alone if name.endswith(("_loss", "_norm", "_scale", "_entropy"))]
        assert len(names) == 11
        assert {k: shared[k] for k in names} == pytest.approx({k: alone[k] for k in names}, rel=1e-3, abs=1e-5)
    final = "logs/duo/run/seed1/checkpoints/final.safetensors"
    expected, found = (read_checkpoint(tmp_path / str(count) / final).tensors for count in (1, 2))
    for name, value in expected.items():
        assert relative(found[name], value) < 1e-3, name


def test_a_batch_that_cannot_be_shared_out_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for done in start(tmp_path, 2, "steps=2", "batch_size=7"):
        assert done.returncode == 2
        assert "batch_size 7 cannot be shared out evenly over 2 processes" in done.stderr
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.jsonl"))
