"""The ways a plan is computed: laid out, compiled, in half precision, as a CUDA graph, all against the same figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from model_fixtures import (
    RELEASED,
    ROOT,
    SMALL_PLAN,
    STUDENT_PLAN,
    assert_close,
    gammas,
    golden,
    golden_plan,
    group,
    relative,
    single_task_model,
    small_model,
    student_decisions,
    tensors,
)
from run_fixtures import TINY_PLANNER, run_program, tiny_run

from tdmpc2.checkpointing import load_model
from tdmpc2.errors import UserError
from tdmpc2.execution import Execution, capabilities
from tdmpc2.model import layers
from tdmpc2.model.layers import Layer
from tdmpc2.planner import PLANS, Plan, Planner, PlanNoise, native
from tdmpc2.planner.fused import FusedModel
from tdmpc2.planner.kernels import Dense, Kernels


def plan_with(planner: Planner, device: str = "cpu", trace: bool = True) -> Plan:
    obs, task, warm, noise = golden_plan(golden(), device)
    return planner.plan(obs, task, warm, noise, trace=trace)


def check(plan: Plan, tolerance: float = 1e-4, device: str = "cpu") -> None:
    figures = tensors(group(golden(), "plan_out"), device)
    assert plan.candidates is not None and plan.values is not None
    for name, found in (
        ("candidates", plan.candidates),
        ("values", plan.values),
        ("mean", plan.mean),
        ("action", plan.action),
    ):
        assert_close(found, figures[name], tolerance, name)


def needs_compiler() -> None:
    if (problem := native.build_problem()) is not None:
        pytest.skip(problem)


def in_the_models_order(layout: FusedModel, z: torch.Tensor) -> torch.Tensor:
    return z[..., layout.order.argsort()]


def test_compiled_plans_equal_the_reference() -> None:
    needs_compiler()
    check(plan_with(Planner(small_model(), SMALL_PLAN, gammas(), Execution(compile=True))))


@torch.no_grad()
def test_networks_together_equal_networks_one_by_one() -> None:
    """The layout of a GPU, on any device."""
    model, task = small_model(), torch.arange(3)
    layouts = [FusedModel(model, gammas(), torch.float32, Kernels(), together) for together in (False, True)]
    z, after = torch.rand(3, 1, 16), torch.rand(3, 4, 16)
    action, noise = torch.rand(3, 4, 6), torch.randn(3, 4, 6)
    for latents in (None, after):
        found = []
        for layout in layouts:
            start = layout.start(z, task)
            found.append((*layout.step(start, latents, action), layout.policy(start, latents, noise)))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    one, other = (layout.values(layout.start(z, task), after, action) for layout in layouts)
    assert one.shape == (3, 3, 4)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    # And both are what the model itself says.
    column = task.unsqueeze(1)
    expected = model.decode(model.q_values(in_the_models_order(layout, after), action, column)).squeeze(-1)
    torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_integer_products_are_those_of_the_model(device: str) -> None:
    model, task = small_model(), torch.arange(3)
    for part in (model.reward_head, model.dynamics, model.q_heads):
        floats = {name: tensor.clone() for name, tensor in part.state_dict().items()}
        part.use_int8_products()
        state = part.state_dict()
        for name, tensor in floats.items():
            if f"{name}_scale" in state:
                scale = tensor.abs().amax(-1) / 127
                state[f"{name}_scale"], tensor = scale, (tensor / scale.unsqueeze(-1)).round().to(torch.int8)
            state[name] = tensor
        part.load_state_dict(state)
    model, task = model.to(device), task.to(device)
    z, column = torch.rand(3, 4, 16, device=device), task.unsqueeze(1)
    action = torch.rand(3, 4, 6, device=device)
    for together in (False, True):
        fused = FusedModel(model, gammas(device), torch.float32, Kernels(), together)
        start = fused.start(z[:, :1], task)
        laid_out = z[..., fused.order]
        reward, after = fused.step(start, laid_out, action)
        assert_close(reward, model.decode(model.reward(z, action, column)).squeeze(-1), name="reward")
        assert_close(in_the_models_order(fused, after), model.next(z, action, column), name="next")
        q = model.decode(model.q_values(z, action, column)).squeeze(-1)
        assert_close(fused.values(start, laid_out, action), q, name="q")


@pytest.fixture
def tried_anew() -> Iterator[None]:
    """What the machine can do is tried again in the test, and again after it."""
    probes = (
        capabilities.packed_product_problem,
        capabilities.half_product_problem,
        capabilities.integer_product_problem,
        capabilities.autocast_problem,
    )
    for probe in probes:
        probe.cache_clear()
    yield
    for probe in probes:
        probe.cache_clear()


def with_other_products(monkeypatch: pytest.MonkeyPatch, torch_build: str) -> str:
    """Makes torch one whose private products are other ones; what is said of them."""
    if torch_build == "no oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        return "this torch has no oneDNN"
    if torch_build == "no such operation":
        operations = SimpleNamespace(_reorder_linear_weight=lambda weight: weight)
        monkeypatch.setattr(torch.ops, "mkldnn", operations)
        return "_linear_pointwise"
    plain = torch.nn.functional.linear
    changed = {
        "other arguments": (lambda x, weight: plain(x, weight), "positional arguments"),
        "other results": (lambda x, weight, *_: 2 * plain(x, weight), "products are wrong on this machine"),
    }
    function, said = changed[torch_build]
    operations = SimpleNamespace(_reorder_linear_weight=lambda weight: weight, _linear_pointwise=function)
    monkeypatch.setattr(torch.ops, "mkldnn", operations)
    return said


BUILDS = ("no oneDNN", "no such operation", "other arguments", "other results")


@pytest.mark.parametrize("torch_build", BUILDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_without_a_packed_form_give_the_same_product(
    monkeypatch: pytest.MonkeyPatch, tried_anew: None, torch_build: str, dtype: torch.dtype
) -> None:
    x, weight, bias = torch.rand(5, 7).to(dtype), torch.rand(3, 7), torch.rand(3)
    found = Dense(weight, bias, dtype)(x)
    said = with_other_products(monkeypatch, torch_build)
    for probe in (capabilities.packed_product_problem, capabilities.half_product_problem):
        probe.cache_clear()
    problem = capabilities.packed_product_problem(dtype)
    assert problem is not None and said in problem and "\n" not in problem
    torch.testing.assert_close(Dense(weight, bias, dtype)(x), found)


def test_plans_without_onednn_equal_the_reference(monkeypatch: pytest.MonkeyPatch, tried_anew: None) -> None:
    with_other_products(monkeypatch, "no oneDNN")
    was_enabled = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.set_flags(False)  # plain products do without as well
    try:
        check(plan_with(Planner(small_model(), SMALL_PLAN, gammas())))
        half = plan_with(Planner(small_model(), SMALL_PLAN, gammas(), Execution(precision="bfloat16")))
    finally:
        torch.backends.mkldnn.set_flags(was_enabled)
    assert half.action.isfinite().all()


def slow_in_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU whose products in half types are emulated."""
    for module in ("model.layers", "planner.kernels", "planner.execution", "training.execution"):
        monkeypatch.setattr(f"tdmpc2.{module}.half_product_problem", lambda dtype: "they are emulated")


@torch.no_grad()
def test_where_half_products_are_slow_half_numbers_are_multiplied_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers but for the order of sums: inputs, weights and results are rounded all the same."""
    slow_in_half(monkeypatch)
    half = torch.bfloat16
    for lead in ((), (2,)):
        x, weight, bias = torch.randn(*lead, 40, 33), torch.randn(*lead, 9, 33), torch.randn(*lead, 9)
        exact = x.to(half).double() @ weight.to(half).double().mT + bias.to(half).double().unsqueeze(-2)
        found = Dense(weight, bias, half)(x.to(half))
        assert found.dtype == half
        torch.testing.assert_close(found, exact.to(half), rtol=2**-7, atol=1e-6)
        layer = Layer(33, 9, "none", heads=lead[0] if lead else None)
        layer.load_state_dict({"weight": weight, "bias": bias})
        torch.testing.assert_close(layer.to(half)(x.to(half)), exact.to(half), rtol=2**-7, atol=1e-6)
    rounded = plan_with(Planner(small_model(), SMALL_PLAN, gammas(), Execution(precision="bfloat16")))
    full = plan_with(Planner(small_model(), SMALL_PLAN, gammas()))
    assert rounded.values is not None and full.values is not None
    drawn = slice(SMALL_PLAN.num_pi_trajs, None)
    assert 0 < relative(rounded.values[:, 0, drawn], full.values[:, 0, drawn]) < 0.12


@pytest.mark.parametrize("overflow", [False, True])
def test_products_of_integers_are_exact(monkeypatch: pytest.MonkeyPatch, overflow: bool) -> None:
    """Also at the largest numbers, over many inputs, and on a CPU whose sums of them overflow."""
    if overflow:
        monkeypatch.setattr("tdmpc2.model.layers.integer_product_problem", lambda: "its sums overflow")
    generator = torch.Generator().manual_seed(0)
    for width in (5, 1024, 2500):
        x, weight = (torch.randint(-128, 128, (rows, width), generator=generator).char() for rows in (37, 21))
        x[0], x[1], weight[0], weight[1] = -128, 127, -128, 127
        found = layers._integer_matmul(x, weight)
        assert found.dtype == torch.int32
        assert torch.equal(found, x.int() @ weight.int().T)


def test_a_planner_follows_its_models_weights() -> None:
    model = small_model()
    planner = Planner(model, SMALL_PLAN, gammas())
    before = plan_with(planner)
    assert planner.fused() is planner.fused()
    with torch.no_grad():
        model.q_heads.layers[2].get_parameter("weight").mul_(-1)
        model.dynamics.layers[0].get_parameter("weight").mul_(2)
    after = plan_with(planner)
    assert before.values is not None and after.values is not None
    assert not torch.equal(before.values, after.values)
    expected = plan_with(Planner(model, SMALL_PLAN, gammas()))
    assert torch.equal(after.action, expected.action)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_moves_values_a_little(device: str, precision: str) -> None:
    """The tiny model has large random weights. The first round's Gaussian candidates are the same in any arithmetic."""
    if precision == "float16" and device == "cpu":
        pytest.skip("float16 plans need CUDA")
    execution = Execution(precision=precision)
    half = plan_with(Planner(small_model(device), SMALL_PLAN, gammas(device), execution), device)
    full = plan_with(Planner(small_model(device), SMALL_PLAN, gammas(device)), device)
    assert half.values is not None and full.values is not None
    drawn = slice(SMALL_PLAN.num_pi_trajs, None)
    assert relative(half.values[:, 0, drawn], full.values[:, 0, drawn]) < 0.12
    assert half.action.dtype == half.mean.dtype == torch.float32


def test_half_precision_on_the_released_student(shared_checkpoints: Path, shared_golden: Path) -> None:
    g = tensors(student_decisions(shared_golden))
    model, tasks, _ = load_model(shared_checkpoints / RELEASED, "mt30", "cpu")
    planner = Planner(model, STUDENT_PLAN, torch.from_numpy(tasks.discounts()), Execution(precision="bfloat16"))
    names = [f"{name}{step}" for name in "abc" for step in "01"]

    def of(key: str) -> torch.Tensor:
        return torch.stack([g[f"{name}/{key}"] for name in names])

    z = model.encode(of("obs"), of("task")).detach().unsqueeze(1)
    value = planner.value(
        z, of("task").unsqueeze(1), of("actions")[:, 0], of("terminal_noise")[:, 0], torch.rand(len(names), 2)
    )
    expected = of("value")[:, 0].view_as(value)
    assert relative(value, expected) < 0.02


def test_single_task_models_and_no_gaussian_samples_plan_in_bfloat16() -> None:
    execution = Execution(precision="bfloat16")
    settings = replace(SMALL_PLAN, num_pi_trajs=SMALL_PLAN.num_samples)
    planner = Planner(single_task_model(), settings, torch.tensor([0.97]), execution)
    noise = planner.draw_noise(2, torch.Generator().manual_seed(0))
    assert planner.plan(torch.rand(2, 8), None, torch.zeros(2, 3, 2), noise).action.isfinite().all()


def test_what_a_cpu_cannot_do_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="precision=int8 is unknown; choose one of float32, float16, bfloat16"):
        Execution(precision="int8").check(cpu, PLANS)
    with pytest.raises(UserError, match="precision=float16 needs CUDA; on a CPU use bfloat16"):
        Execution(precision="float16").supported_on(cpu, PLANS)
    with pytest.raises(UserError, match="cudagraphs=true needs a CUDA device"):
        Execution(cudagraphs=True).supported_on(cpu, PLANS)
    monkeypatch.setattr("tdmpc2.planner.execution.cpu_has_bfloat16", lambda: False)
    assert Execution(precision="bfloat16").supported_on(cpu, PLANS).precision == "bfloat16"
    said = capsys.readouterr().err
    assert "precision=bfloat16 is slow here" in said and "precision=float32 is faster" in said
    assert said.count("\n") == 1
    monkeypatch.setattr("tdmpc2.planner.execution.build_problem", lambda: "no compiler")
    assert not Execution(compile=True).supported_on(cpu, PLANS).compile
    assert "plans run eagerly: no compiler" in capsys.readouterr().err


OLDER_CPU = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def test_programs_compute_in_bfloat16_on_a_cpu_without_avx512(tmp_path: Path) -> None:
    """As most desktops are: the project's advice of `precision=bfloat16` must not end there."""
    checkpoint = tiny_run(tmp_path / "run", "steps=1", "save_freq=1").checkpoint
    keys = [f"checkpoint={checkpoint}", *TINY_PLANNER, "eval_episodes=1", "num_workers=0", "device=cpu"]
    done = run_program("tdmpc2/evaluate.py", *keys, "precision=bfloat16", cwd=tmp_path, **OLDER_CPU)
    assert done.returncode == 0, done.stderr
    benchmark = ("--envs", "1", "--mode", "eager", "eager-bf16", "--seconds", "0.1", "--device", "cpu")
    done = run_program("benchmarks/plan.py", *benchmark, cwd=tmp_path, PYTHONPATH=str(ROOT), **OLDER_CPU)
    assert done.returncode == 0 and "eager-bf16" in done.stdout, done.stderr


def test_a_benchmark_goes_on_without_what_is_not_possible(tmp_path: Path) -> None:
    modes = ("--mode", "eager", "compiled", "--seconds", "0.1", "--device", "cpu", "--envs", "1")
    changes = {"CC": "no-such-compiler", "PYTHONPATH": str(ROOT)}
    done = run_program("benchmarks/plan.py", *modes, cwd=tmp_path, **changes)
    assert done.returncode == 0, done.stderr
    assert "compiled: mode compiled is not possible here" in done.stderr
    assert "eager" in done.stdout and "compiled" not in done.stdout
    rows = ("--rows", "8", "--repeats", "1", "--no-torch-compile")
    done = run_program("benchmarks/kernels.py", *rows, cwd=tmp_path, **changes)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("C is not possible here: no C compiler") and "LayerNorm, Mish" in done.stdout


# -- CUDA ------------------------------------------------------------------------------------------------------------


def cuda_planner(**choices: object) -> Planner:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return Planner(small_model("cuda"), SMALL_PLAN, gammas("cuda"), Execution(**choices))  # type: ignore[arg-type]


def noise_like(noise: PlanNoise, seed: int) -> PlanNoise:
    generator = torch.Generator(noise.samples.device).manual_seed(seed)
    return replace(noise, samples=torch.randn(noise.samples.shape, generator=generator, device=noise.samples.device))


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_captured_plans_equal_uncaptured_ones(compiled: bool, precision: str) -> None:
    captured = cuda_planner(cudagraphs=True, compile=compiled, precision=precision)
    plain = cuda_planner(compile=compiled, precision=precision)
    obs, task, warm, noise = golden_plan(golden(), "cuda")
    earlier = []
    for seed in range(3):
        given = noise_like(noise, seed)
        found, expected = (p.plan(obs + seed, task, warm, given) for p in (captured, plain))
        torch.testing.assert_close(found.action, expected.action, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-5)
        earlier.append((found.action, expected.action))
    for found, expected in earlier:  # outputs are copies, not the graph's memory
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    one = [p.plan(obs[:1], task[:1], warm[:1], planner_noise(p), greedy=True).action for p in (captured, plain)]
    torch.testing.assert_close(*one, rtol=1e-4, atol=1e-5)


def planner_noise(planner: Planner) -> PlanNoise:
    return planner.draw_noise(1, [torch.Generator("cuda").manual_seed(5)])


@pytest.mark.cuda
def test_a_captured_plan_follows_its_models_weights() -> None:
    planner = cuda_planner(cudagraphs=True)
    before = plan_with(planner, "cuda", trace=False)
    with torch.no_grad():
        planner.model.q_heads.layers[2].get_parameter("weight").mul_(-1)
    after = plan_with(planner, "cuda", trace=False)
    assert not torch.equal(before.action, after.action)
    expected = Planner(planner.model, SMALL_PLAN, gammas("cuda"))
    torch.testing.assert_close(after.action, plan_with(expected, "cuda").action, rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
def test_a_captured_plan_does_not_wait_for_the_device() -> None:
    planner = cuda_planner(cudagraphs=True)
    obs, task, warm, noise = golden_plan(golden(), "cuda")
    planner.plan(obs, task, warm, noise)
    torch.cuda.set_sync_debug_mode("error")
    try:
        planner.plan(obs, task, warm, noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")
