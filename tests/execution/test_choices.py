"""The choices of how work runs, one class for updates and plans, and what a CPU supports of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_fixtures import tiny_config

from tdmpc2.errors import UserError
from tdmpc2.execution import PRECISIONS, Execution, Purpose
from tdmpc2.planner import PLANS
from tdmpc2.settings.convert import train_settings
from tdmpc2.training import UPDATES

CPU = torch.device("cpu")


@pytest.mark.parametrize("purpose", [UPDATES, PLANS], ids=lambda purpose: purpose.work)
def test_eager_float32_is_supported_everywhere_and_nothing_is_said_of_it(
    purpose: Purpose, capsys: pytest.CaptureFixture[str]
) -> None:
    for device in ("cpu", "cuda", "meta"):
        assert Execution().supported_on(torch.device(device), purpose) == Execution()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("purpose", "asker"), [(UPDATES, "this run"), (PLANS, "this agent")], ids=lambda value: getattr(value, "work", "")
)
def test_graphs_need_cuda(purpose: Purpose, asker: str) -> None:
    said = f"cudagraphs=true needs a CUDA device, and {asker} is on cpu: leave it out."
    with pytest.raises(UserError) as caught:
        Execution(cudagraphs=True).supported_on(CPU, purpose)
    assert str(caught.value) == said
    Execution(cudagraphs=True).check(torch.device("cuda"), purpose)


def test_what_is_computed_in_which_precision() -> None:
    """float16 is for plans on CUDA; a name that neither knows is refused by both, before any device is asked."""
    cuda = torch.device("cuda")
    assert Execution(precision="float16").supported_on(cuda, PLANS).dtype == torch.float16
    for precision in ("float16", "int8"):
        with pytest.raises(UserError) as caught:
            Execution(precision=precision).supported_on(cuda, UPDATES)
        assert str(caught.value) == f"precision={precision} is unknown for training; choose float32 or bfloat16."
    with pytest.raises(UserError) as caught:
        Execution(precision="int8").supported_on(cuda, PLANS)
    assert str(caught.value) == "precision=int8 is unknown; choose one of float32, float16, bfloat16."
    assert {Execution(precision=name).dtype for name in PRECISIONS} == set(PRECISIONS.values())


def test_a_runs_precision_is_refused_with_its_settings(tmp_path: Path) -> None:
    for precision in ("float16", "int8"):
        config = tiny_config(f"precision={precision}")
        with pytest.raises(UserError, match=f"^precision={precision} is unknown for training; choose float32 or bf"):
            train_settings(config, tmp_path)


def test_without_a_compiler_each_kind_of_work_says_so_and_runs_eagerly(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = Execution(compile=True, precision="float32")
    for purpose in (UPDATES, PLANS):
        without = replace(purpose, compile_problem=lambda device: f"nothing compiles for {device.type}")
        assert chosen.supported_on(CPU, without) == Execution()
        said = f"compile=true is not possible here, {purpose.work} run eagerly: nothing compiles for cpu\n"
        assert capsys.readouterr().err == said


def test_autocast_rounds_the_products_of_updates_alone() -> None:
    x = torch.rand(3, 3)
    for precision in ("float32", "bfloat16"):
        with Execution(precision=precision).arithmetic(CPU):
            assert (x @ x).dtype == PRECISIONS[precision]
            assert (x + x).dtype == torch.float32
