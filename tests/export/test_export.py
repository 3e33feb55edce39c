"""Exported agents: graphs and decisions against the torch agent and reference figures, files, refusals, no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from model_fixtures import (
    RELEASED,
    ROOT,
    SMALL_DIMS,
    SMALL_PLAN,
    STUDENT_PLAN,
    assert_close,
    gammas,
    golden,
    golden_plan,
    group,
    single_task_model,
    small_model,
    small_tasks,
    student_decisions,
    tensors,
    with_tied_elites,
)

import tdmpc2
from tdmpc2.agent import load_agent
from tdmpc2.checkpointing import CheckpointMetadata, save_checkpoint
from tdmpc2.errors import CheckpointError, UserError
from tdmpc2.export import graphs
from tdmpc2.export.files import FILES, export_agent, restamp
from tdmpc2.export.numpy_agent import CHECKSUM, Noise, OnnxAgent, Plan, facts_checksum
from tdmpc2.model import WorldModel
from tdmpc2.planner import PlannerSettings, PlanNoise
from tdmpc2.programs.restamp import main as restamp_program
from tdmpc2.quantisation import quantise
from tdmpc2.tasks import TaskSet, task_set


def saved(path: Path, model: WorldModel, tasks: TaskSet, scheme: str = "float32", **changes: torch.Tensor) -> Path:
    state = {**model.state_dict(), **changes}
    if scheme != "float32":
        state = quantise(state, scheme).tensors
    save_checkpoint(path, state, CheckpointMetadata(tasks.name, tasks.tasks, model.dims, None, 0, scheme=scheme))
    return path


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("small") / "small.safetensors", small_model(), small_tasks())


@pytest.fixture(scope="module")
def small_folder(small_file: Path) -> Path:
    """The tiny golden model, exported."""
    folder = small_file.parent / "exported"
    export_agent(small_file, folder, planner=SMALL_PLAN)
    return folder


def as_numpy(noise: PlanNoise) -> Noise:
    values = {f.name: getattr(noise, f.name) for f in fields(noise)}
    return Noise(**{name: None if value is None else value.numpy() for name, value in values.items()})


def check(plan: Plan, figures: dict[str, torch.Tensor]) -> None:
    assert_close(torch.from_numpy(np.stack(plan.candidates, 1)), figures["candidates"], name="candidates")
    assert_close(torch.from_numpy(np.stack(plan.values, 1)), figures["values"], name="values")
    assert_close(torch.from_numpy(plan.mean), figures["mean"], name="mean")
    assert_close(torch.from_numpy(plan.action), figures["action"], name="action")


def run(folder: Path, graph: str, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    session = onnxruntime.InferenceSession((folder / f"{graph}.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return {output.name: torch.from_numpy(value) for output, value in zip(session.get_outputs(), found, strict=True)}


@torch.no_grad()
def test_every_graph_equals_its_part(small_folder: Path) -> None:
    model, d = small_model(), SMALL_DIMS
    g = torch.Generator().manual_seed(0)
    task, obs = torch.tensor([2, 0, 1, 1]), torch.randn(4, d.obs_dim, generator=g)
    z = model.encode(torch.randn(4, 7, d.obs_dim, generator=g), task[:, None])
    action, noise = torch.rand(4, 7, d.action_dim, generator=g) * 2 - 1, torch.randn(4, 7, d.action_dim, generator=g)
    column = task[:, None]
    mean, log_std, sampled = model.policy(z, column, noise)
    q = model.decode(model.q_values(z, action, column))
    expected = {
        "encoder": {"z": model.encode(obs, task)},
        "policy": {"action": sampled, "mean": mean, "log_std": log_std},
        "dynamics": {"next_z": model.next(z, action, column)},
        "reward": {"reward": model.decode(model.reward(z, action, column))},
        "q": {"q": q.squeeze(-1).permute(1, 2, 0)},
    }
    for name, figures in expected.items():
        second = {"encoder": {"obs": obs}, "policy": {"z": z, "noise": noise}}.get(name, {"z": z, "action": action})
        found = run(small_folder, name, task=task, **second)
        assert list(found) == list(figures)
        for output, figure in figures.items():
            assert figure is not None
            assert found[output].shape == figure.shape
            assert_close(found[output], figure, 1e-5, f"{name}.{output}")


def test_decisions_equal_the_independent_implementation(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TaskSet, "discounts", lambda self: gammas().numpy())  # the golden ones differ by task
    export_agent(small_file, tmp_path, planner=SMALL_PLAN)
    obs, task, warm, noise = golden_plan(golden())
    figures = tensors(group(golden(), "plan_out"))
    agent, given = OnnxAgent(tmp_path), (obs.numpy(), task.numpy(), warm.numpy(), as_numpy(noise))
    check(agent.plan(*given), figures)
    assert_close(torch.from_numpy(agent.plan(*given, greedy=True).action), figures["greedy"])


@pytest.mark.parametrize("together", [True, False])
def test_released_student_decides_as_the_reference(
    together: bool, shared_checkpoints: Path, shared_golden: Path, tmp_path: Path
) -> None:
    g = student_decisions(shared_golden)
    export_agent(shared_checkpoints / RELEASED, tmp_path, "mt30", STUDENT_PLAN)
    agent = OnnxAgent(tmp_path)
    for names in ("abc",) if together else ("a", "b", "c"):
        warm = np.zeros((len(names), 3, 6), np.float32)
        for step in "01":

            def of(key: str, names: str = names, step: str = step) -> np.ndarray:
                return np.stack([g[f"{name}{step}/{key}"] for name in names])

            noise = Noise(
                prior=of("prior_noise"),
                samples=of("sample_noise"),
                terminal=of("terminal_noise"),
                heads=np.random.default_rng(0).random((len(names), 4, 2), np.float32),
                elite=np.zeros(len(names), np.float32),
                action=of("action_noise"),
                elite_rank=of("elite_rank_drawn"),
            )
            plan = agent.plan(of("obs"), of("task"), warm, noise)
            reached = {"candidates": "actions", "values": "value", "mean": "mean", "action": "action"}
            figures = {name: torch.from_numpy(of(key)) for name, key in reached.items()}
            figures["mean"] = with_tied_elites(torch.from_numpy(plan.mean), figures, STUDENT_PLAN)
            check(plan, figures)
            warm = np.concatenate([of("mean")[:, 1:], np.zeros_like(plan.mean[:, :1])], axis=1)


def against_torch(checkpoint: Path, folder: Path, tasks: TaskSet, ids: list[int] | None, count: int = 3) -> None:
    """Exported and torch agents take the same decisions with the same noise, from the same file."""
    agent, exported = load_agent(checkpoint, tasks, "cpu", SMALL_PLAN), OnnxAgent(folder)
    g = torch.Generator().manual_seed(3)
    noise = agent.planner.draw_noise(count, g)
    obs = torch.randn(count, tasks.obs_dim, generator=g)
    warm = torch.rand(count, SMALL_PLAN.horizon, tasks.action_dim, generator=g) - 0.5
    task = None if ids is None else torch.tensor(ids)
    expected = agent.planner.plan(obs, task, warm, noise, trace=True)
    figures = {n: getattr(expected, n) for n in ("candidates", "values", "mean", "action")}
    task_ids = None if task is None else task.numpy()
    check(exported.plan(obs.numpy(), task_ids, warm.numpy(), as_numpy(noise)), figures)


def test_single_task_agent(tmp_path: Path) -> None:
    tasks = task_set("cup-catch")
    path = saved(tmp_path / "one.safetensors", single_task_model(), tasks)
    export_agent(path, tmp_path / "out", planner=SMALL_PLAN)
    against_torch(path, tmp_path / "out", tasks, None)
    agent = OnnxAgent(tmp_path / "out", seed=1)
    assert agent.act(np.zeros((2, 8))).shape == (2, 2)


@pytest.mark.parametrize("scheme", ["fp16", "int8", "mixed", "int4"])
def test_quantised_checkpoints_export_the_floats_they_stand_for(tmp_path: Path, scheme: str) -> None:
    path = saved(tmp_path / "q.safetensors", small_model(), small_tasks(), scheme)
    export_agent(path, tmp_path / "out", planner=SMALL_PLAN)
    against_torch(path, tmp_path / "out", small_tasks(), [2, 0, 1])


def test_int8_dynamic_exports_as_int8(tmp_path: Path) -> None:
    for scheme in ("int8", "int8-dynamic"):
        path = saved(tmp_path / f"{scheme}.safetensors", small_model(), small_tasks(), scheme)
        export_agent(path, tmp_path / scheme, planner=SMALL_PLAN)
    for graph in graphs.GRAPHS:
        first, second = ((tmp_path / s / f"{graph}.onnx").read_bytes() for s in ("int8", "int8-dynamic"))
        assert first == second


def test_numbers_that_are_broken_count_as_zero(tmp_path: Path) -> None:
    """Weights so large that every Q value is inf - inf; weights that are not finite are refused before."""
    weight = torch.full_like(small_model().q_heads.layers[2].get_parameter("weight"), 3e38)
    path = saved(tmp_path / "large.safetensors", small_model(), small_tasks(), **{"q_heads.layers.2.weight": weight})
    export_agent(path, tmp_path / "out", planner=SMALL_PLAN)
    agent = OnnxAgent(tmp_path / "out", seed=0)
    obs, task, warm, noise = golden_plan(golden())
    plan = agent.plan(obs.numpy(), task.numpy(), warm.numpy(), as_numpy(noise))
    assert not np.stack(plan.values).any()
    assert np.isfinite(plan.action).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    bias = torch.full_like(small_model().q_heads.layers[2].get_parameter("bias"), value)
    path = saved(tmp_path / "nan.safetensors", small_model(), small_tasks(), **{"q_heads.layers.2.bias": bias})
    with pytest.raises(CheckpointError, match=r"nan\.safetensors: 'q_heads\.layers\.2\.bias' holds NaN or infinity"):
        export_agent(path, tmp_path / "out", planner=SMALL_PLAN)
    assert not (tmp_path / "out").exists()


def test_a_broken_action_spoils_its_own_trajectory_alone(small_folder: Path) -> None:
    agent, rng = OnnxAgent(small_folder), np.random.default_rng(0)
    z, actions = rng.random((1, 1, 16), np.float32), rng.random((1, 3, 4, 6), np.float32)
    actions[0, 1, 2, 0] = np.nan
    rest = rng.standard_normal((1, 4, 6), np.float32), rng.random((1, 3), np.float32)
    value = agent.value(z, np.array([0]), actions, *rest)
    assert value[0, 2] == 0
    assert (value[0, [0, 1, 3]] != 0).all()


def test_acting_carries_plans_on_and_masks(small_folder: Path) -> None:
    obs, task = np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32), [0, 1, 2]
    agents = [OnnxAgent(small_folder, seed=5) for _ in range(3)]
    first = [agent.act(obs, task) for agent in agents]
    assert np.array_equal(first[0], first[1])
    assert not first[0][1, 2:].any()
    assert not first[0][2, 1:].any()
    assert (np.abs(first[0]) <= 1).all()
    warm, again, fresh = (a.act(obs, task, f) for a, f in zip(agents, (None, [False] * 3, [True] * 3), strict=True))
    assert np.array_equal(warm, again)
    assert not np.array_equal(warm, fresh)
    # What act carries on is the plan shifted by a step.
    one, two = (OnnxAgent(small_folder, seed=7) for _ in range(2))
    one.act(obs, task)
    plan = two.plan(obs, np.array(task), np.zeros((3, 3, 6), np.float32), two.draw_noise(3))
    shifted = np.concatenate([plan.mean[:, 1:], np.zeros((3, 1, 6), np.float32)], axis=1)
    expected = two.plan(obs, np.array(task), shifted, two.draw_noise(3), greedy=True).action
    assert np.array_equal(one.act(obs, task, greedy=True), expected)


def test_acting_by_the_prior_alone(small_file: Path, small_folder: Path, tmp_path: Path) -> None:
    """Its mean is the torch agent's; a sample differs; dynamics and values need not be there."""
    for name in ("agent.json", "encoder.onnx", "policy.onnx"):
        shutil.copy(small_folder / name, tmp_path)
    agent, torch_agent = OnnxAgent(tmp_path, seed=3, mpc=False), load_agent(small_file, device="cpu")
    rng = np.random.default_rng(1)
    obs = rng.standard_normal((3, agent.obs_dim), np.float32)
    greedy = agent.act(obs, [0, 1, 2], greedy=True)
    model, task = torch_agent.model, torch.tensor([0, 1, 2])
    with torch.no_grad():
        expected, _, _ = model.policy(model.encode(torch.from_numpy(obs), task), task)
    np.testing.assert_allclose(greedy, expected.numpy(), atol=1e-5)
    assert greedy.shape == (3, agent.action_dim) and agent.action_masks is not None
    assert (greedy[agent.action_masks[:3] == 0] == 0).all()
    sampled = agent.act(obs, [0, 1, 2])
    assert not np.allclose(sampled, greedy) and (sampled[agent.action_masks[:3] == 0] == 0).all()
    np.testing.assert_array_equal(agent.act(obs[:1], [0], greedy=True), greedy[:1])  # any number, at any time
    with pytest.raises(ValueError, match=r"dynamics\.onnx"):
        OnnxAgent(tmp_path)


def test_without_prior_trajectories(small_file: Path, tmp_path: Path) -> None:
    export_agent(small_file, tmp_path, planner=replace(SMALL_PLAN, num_pi_trajs=0, horizon=1))
    assert np.isfinite(OnnxAgent(tmp_path, seed=0).act(np.zeros((2, 24)), [0, 1])).all()


def test_noise_is_normal_and_uniform(tmp_path: Path, small_file: Path) -> None:
    export_agent(small_file, tmp_path)
    noise = OnnxAgent(tmp_path, seed=0).draw_noise(4)
    assert noise.samples.shape == (4, 6, 3, 488, 6)
    assert noise.samples.mean() == pytest.approx(0, abs=0.02)
    assert noise.samples.std() == pytest.approx(1, abs=0.02)
    assert noise.heads.min() >= 0
    assert noise.heads.max() < 1


def test_what_is_written(small_folder: Path) -> None:
    assert {p.name for p in small_folder.iterdir()} == set(FILES)
    facts = json.loads((small_folder / "agent.json").read_text())
    assert facts["tasks"] == list(small_tasks().tasks)
    assert facts["action_masks"] == small_tasks().action_masks().tolist()
    assert facts["discounts"] == pytest.approx(small_tasks().discounts().tolist())
    assert PlannerSettings(**facts["planner"]) == SMALL_PLAN
    assert (facts["dims"]["log_std_min"], facts["dims"]["num_bins"]) == (-10.0, 101)
    for name in graphs.GRAPHS:
        proto = onnx.load(small_folder / f"{name}.onnx")
        assert [o.version for o in proto.opset_import] == [graphs.OPSET]
        assert {prop.key: json.loads(prop.value) for prop in proto.metadata_props} == {"tasks": facts["tasks"]}
        assert (proto.producer_name, proto.producer_version) == ("tdmpc2", tdmpc2.__version__)
        names = [node.name for node in proto.graph.node]
        assert all(names) and len(set(names)) == len(names)


WITHOUT_TORCH = """
import sys
for name in ("torch", "tdmpc2", "onnx", "safetensors", "dm_control"):
    sys.modules[name] = None
import numpy as np
from numpy_agent import OnnxAgent
action = OnnxAgent(".", seed=0).act(np.zeros((1, 24)), [1])
assert action.shape == (1, 6) and action[0, :2].all()
"""


def test_the_folder_runs_by_itself(small_folder: Path) -> None:
    command = [sys.executable, "-B", "-c", WITHOUT_TORCH]
    done = subprocess.run(command, cwd=small_folder, env={"PATH": ""}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_programs_export_and_control_a_task(small_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    numbers = {"iterations": 2, "num-samples": 12, "num-elites": 4, "num-pi-trajs": 2}
    flags = [f"--{name}={value}" for name, value in numbers.items()]
    export = [sys.executable, "scripts/export.py", str(small_file), "--out", str(out), *flags]
    place = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(export, cwd=ROOT, env=place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{(out / 'value.onnx').stat().st_size:,}" in done.stdout
    assert OnnxAgent(out).planner == asdict(
        replace(SMALL_PLAN, iterations=2, num_samples=12, num_elites=4, num_pi_trajs=2)
    )
    no_torch = "import sys, runpy; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    control = [sys.executable, "-c", no_torch, "examples/control_onnx.py", str(out), "cup-catch", "--decisions=5"]
    done = subprocess.run(control, cwd=ROOT, env=place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cup-catch: return ")
    assert "after 5 decisions" in done.stdout


def test_the_package_s_copy_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from tdmpc2.export.numpy_agent import OnnxAgent"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# -- graphs that another program has changed -----------------------------------------------------------------


def with_other_weights(folder: Path, out: Path) -> Path:
    """A copy whose encoder has coarser weights, as a program that quantises graphs makes them."""
    shutil.copytree(folder, out)
    proto = onnx.load(out / "encoder.onnx")
    for constant in proto.graph.initializer:
        if constant.name.endswith(".weight"):
            rounded = (onnx.numpy_helper.to_array(constant) * 8).round() / 8
            constant.CopyFrom(onnx.numpy_helper.from_array(rounded, constant.name))
    onnx.save(proto, out / "encoder.onnx")
    return out


def test_changed_graphs_are_taken_without_verifying_or_restamped(
    small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_other_weights(small_folder, tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"encoder\.onnx: does not match its checksum.*tdmpc2 restamp, or verify=False"
    ):
        OnnxAgent(folder)
    obs = np.ones((1, 24), np.float32)
    expected = OnnxAgent(folder, seed=1, verify=False).act(obs, [1])
    restamp_program([str(folder)])
    assert "encoder.onnx changed; agent.json has" in capsys.readouterr().out
    assert np.array_equal(OnnxAgent(folder, seed=1).act(obs, [1]), expected)
    assert not np.array_equal(OnnxAgent(small_folder, seed=1).act(obs, [1]), expected)
    assert restamp(folder) == [], "nothing has changed since"


def test_graphs_that_do_not_fit_are_not_restamped(small_folder: Path, tmp_path: Path) -> None:
    folder = with_other_weights(small_folder, tmp_path / "out")
    before = (folder / "agent.json").read_bytes()
    shutil.copy2(folder / "reward.onnx", folder / "policy.onnx")
    with pytest.raises(UserError, match=r"policy\.onnx: is no graph that onnxruntime can load"):
        restamp(folder)
    assert (folder / "agent.json").read_bytes() == before
    with pytest.raises(UserError, match=r"agent\.json: not there or damaged"):
        restamp(tmp_path)
    (folder / "q.onnx").unlink()
    shutil.copy2(small_folder / "policy.onnx", folder / "policy.onnx")
    with pytest.raises(UserError, match=r"q\.onnx: cannot be read"):
        restamp(folder)


def test_what_onnxruntime_computes_with(small_folder: Path) -> None:
    obs = np.ones((1, 24), np.float32)
    found = OnnxAgent(small_folder, seed=1, providers=["CPUExecutionProvider"]).act(obs, [1])
    assert np.array_equal(OnnxAgent(small_folder, seed=1).act(obs, [1]), found)
    with pytest.raises(
        ValueError, match=r"'AbacusExecutionProvider' is not in this onnxruntime; it has .*CPUExecution"
    ):
        OnnxAgent(small_folder, providers=["AbacusExecutionProvider"])


@pytest.mark.slow
def test_javascript_acts_by_the_same_graphs(small_folder: Path, tmp_path: Path) -> None:
    """In Node, where it and the network are; against the numpy agent's own graphs."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node is not here")
    shutil.copy2(ROOT / "examples" / "act.mjs", tmp_path)
    fetching = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "onnxruntime-web@1"]
    if subprocess.run(fetching, cwd=tmp_path, capture_output=True, timeout=240).returncode:
        pytest.skip("npm cannot fetch onnxruntime-web")
    tasks, obs = small_tasks(), np.linspace(-1, 1, 7).tolist()
    agent = OnnxAgent(small_folder)
    for index, task in enumerate(tasks.tasks):
        command = ["node", "act.mjs", str(small_folder), task, json.dumps(obs)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        padded, ids = np.zeros((1, 24), np.float32), np.array([index])
        padded[0, :7] = obs
        z = agent._run("encoder", ids, (1, agent.latent_dim), obs=padded)[:, None]
        silent = np.zeros((1, 1, agent.action_dim), np.float32)
        expected = agent._run("policy", ids, silent.shape, z=z, noise=silent)[0, 0, : tasks.action_dims[index]]
        np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=1e-4, atol=1e-5)


# -- refusals -------------------------------------------------------------------------------------------------


def refused(*arguments: object, modules: str = "") -> str:
    """The one line that `scripts/export.py` ends on; `modules` are made to look not installed."""
    hide = f"import sys; sys.argv = sys.argv[1:]; sys.path.insert(0, '.')\nfor name in {modules.split()}: "
    hide += "sys.modules[name] = None\nimport runpy; runpy.run_path('scripts/export.py', run_name='__main__')"
    command = [sys.executable, "-c", hide, "export.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize("module", ["onnx", "onnxruntime"])
def test_missing_packages_are_named(small_file: Path, tmp_path: Path, module: str) -> None:
    message = refused(small_file, "--out", tmp_path / "out", modules=module)
    assert "pip install onnx onnxruntime" in message
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_things_is_refused(small_file: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    assert "holds other things (thesis.txt)" in refused(small_file, "--out", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        export_agent(small_file, tmp_path / "thesis.txt")


def test_an_earlier_export_is_replaced(small_file: Path, tmp_path: Path) -> None:
    export_agent(small_file, tmp_path, planner=SMALL_PLAN)
    export_agent(small_file, tmp_path, planner=replace(SMALL_PLAN, num_samples=9))
    assert OnnxAgent(tmp_path).planner["num_samples"] == 9


def test_an_export_of_another_student_is_not_replaced(small_file: Path, tmp_path: Path) -> None:
    export_agent(small_file, tmp_path / "out")
    held = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    model = small_model()
    with torch.no_grad():
        model.policy_head.get_parameter("layers.0.weight").mul_(2)
    other = tmp_path / "other.safetensors"
    tasks = small_tasks()
    save_checkpoint(other, model.state_dict(), CheckpointMetadata(tasks.name, tasks.tasks, model.dims, None, 0))
    with pytest.raises(UserError, match="holds another agent"):
        export_agent(other, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == held


def test_released_files_need_their_task_set(shared_checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not name its tasks"):
        export_agent(shared_checkpoints / RELEASED, tmp_path)
    with pytest.raises(CheckpointError, match="expected a model of 'quickstart'"):
        export_agent(shared_checkpoints / RELEASED, tmp_path, "quickstart")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_needed_parts(tmp_path: Path) -> None:
    model = small_model()
    state = {n: t for n, t in model.state_dict().items() if not n.startswith(("q_heads", "target_q_heads"))}
    tasks = small_tasks()
    path = tmp_path / "teacher.safetensors"
    save_checkpoint(path, state, CheckpointMetadata(tasks.name, tasks.tasks, model.dims, None, 0))
    with pytest.raises(CheckpointError, match="q_heads"):
        export_agent(path, tmp_path / "out")


def test_a_model_beyond_the_limit_of_onnx_files(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "SIZE_LIMIT", 10_000)
    with pytest.raises(UserError, match=r"would hold [\d,]+ bytes of weights, an ONNX file at most 10,000 \(2 GiB"):
        export_agent(small_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_agent(small_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"agent\.json: not there or damaged"):
        OnnxAgent(tmp_path)
    export_agent(small_file, tmp_path, planner=SMALL_PLAN)
    graph = tmp_path / "value.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"value\.onnx: does not match its checksum"):
        OnnxAgent(tmp_path)
    graph.unlink()
    with pytest.raises(ValueError, match=r"value\.onnx: cannot be read"):
        OnnxAgent(tmp_path)
    (tmp_path / "agent.json").write_text("[]")
    with pytest.raises(ValueError, match="expected"):
        OnnxAgent(tmp_path)


def changed(folder: Path, out: Path, *keys: str, value: object = None, seal: bool = True) -> Path:
    """A copy of an exported folder with one value of agent.json replaced; its checksum fits where `seal` is set."""
    shutil.copytree(folder, out, dirs_exist_ok=True)
    facts = json.loads((out / "agent.json").read_text())
    inner = facts
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    if seal:
        facts.pop(CHECKSUM)
        facts[CHECKSUM] = facts_checksum(facts)
    (out / "agent.json").write_text(json.dumps(facts))
    return out


def test_agent_json_has_a_checksum_of_its_own(small_folder: Path, tmp_path: Path) -> None:
    folder = changed(small_folder, tmp_path / "out", "planner", "temperature", value=0.25, seal=False)
    with pytest.raises(ValueError, match=r"agent\.json: is damaged \(it does not match its own checksum\)"):
        OnnxAgent(folder)
    facts = json.loads((folder / "agent.json").read_text())
    facts.pop(CHECKSUM)  # as the first exports were
    (folder / "agent.json").write_text(json.dumps(facts))
    assert OnnxAgent(folder).planner["temperature"] == 0.25
    assert OnnxAgent(changed(small_folder, folder, "planner", "temperature", value=2)).planner["temperature"] == 2


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("planner", "horizon"), 0, "'planner.horizon' is 0, expected"),
        (("planner", "horizon"), True, "'planner.horizon' is True, expected"),
        (("planner", "horizon"), 2, "'actions' is tensor"),
        (("planner", "iterations"), 1 << 20, "'planner.num_samples' is .*, expected fewer"),
        (("planner", "num_elites"), 10**6, "'planner.num_elites' is 1000000, expected at most"),
        (("planner", "num_pi_trajs"), -1, "'planner.num_pi_trajs' is -1"),
        (("planner", "min_std"), 10.0, "'planner.min_std' is 10.0, expected not above max_std"),
        (("planner", "temperature"), 1e300, "'planner.temperature' is 1e"),
        (("planner", "temperature"), "0.5", "'planner.temperature' is '0.5'"),
        (("planner", "warm_start"), 1, "'planner.warm_start' is 1, expected true or false"),
        (("planner",), [], "'planner' is a list of 0, expected an object"),
        (("dims", "obs_dim"), 23, "obs_dims"),
        (("dims", "obs_dim"), 25, "'obs' is tensor"),
        (("dims", "latent_dim"), 8, "output z' is tensor"),
        (("dims", "num_q"), 4, "'heads' is tensor"),
        (("dims", "num_q"), 10**400, "'dims.num_q' is 1000"),
        (("dims", "num_tasks"), 0, "'dims.num_tasks' is 0, expected 3"),
        (("tasks",), ["a\x1b[31m", "b", "c"], "'tasks' is a list of 3"),
        (("tasks",), ["walker-walk"] * 3, "none twice"),
        (("task_set",), "x\ny", r"'task_set' is 'x\\ny'"),
        (("discounts",), [0.9, 0.9, 1.5], "'discounts' is a list of 3"),
        (("action_masks",), None, "'action_masks' is None"),
        (("action_masks",), [[1.0] * 6, [1.0] * 6, [0.5] * 6], "expected 0 and 1"),
        (("action_masks",), [[1.0] * 5] * 3, "a list of 3, one fitting each task"),
        (("crc32", "value.onnx"), None, "'crc32.value.onnx' is None"),
        (("crc32",), {}, "'crc32.encoder.onnx' is None, expected a CRC-32"),
        (("versions",), {"torch": 2}, "'versions' is a dict"),
        (("format_version",), 2, "is .*, expected"),
        (("more",), 1, "an unknown key 'more'"),
    ],
)
def test_every_key_of_agent_json_is_checked(
    small_folder: Path, tmp_path: Path, keys: tuple[str, ...], value: object, message: str
) -> None:
    folder = changed(small_folder, tmp_path / "out", *keys, value=value)
    with pytest.raises(ValueError, match=message) as caught:
        OnnxAgent(folder)
    assert str(folder) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe{}",
        b"[" * 200_000,
        b'{"a": ' * 990 + b"1" + b"}" * 990,
        b'{"format": NaN}',
        b'{"format": ' + b"1" * 5000 + b"}",
        b'{"format": "tdmpc2-onnx-agent", "format_version": 1}',
        b'{"a": 1, "a": 2}',
        b" " * (5 << 20),
        b'{"format": "\\ud800\\u001b[31m"}',
    ],
    ids=["encoding", "deep", "deep object", "nan", "digits", "bare", "twice", "long", "control"],
)
def test_an_agent_json_that_is_something_else(small_folder: Path, tmp_path: Path, text: bytes) -> None:
    shutil.copytree(small_folder, tmp_path / "out")
    (tmp_path / "out" / "agent.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"agent\.json: ") as caught:
        OnnxAgent(tmp_path / "out")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("other", ["policy", "reward", b"", b"no graph\n\x1b[31m", b"\x08\x08"])
def test_graphs_that_are_something_else(small_folder: Path, tmp_path: Path, other: str | bytes) -> None:
    """Checksums fit: what is wrong shows in the graph itself."""
    data = other if isinstance(other, bytes) else (small_folder / f"{other}.onnx").read_bytes()
    folder = changed(small_folder, tmp_path / "out", "crc32", "dynamics.onnx", value=zlib.crc32(data))
    (folder / "dynamics.onnx").write_bytes(data)
    with pytest.raises(ValueError, match=r"dynamics\.onnx: is no graph that onnxruntime can load") as caught:
        OnnxAgent(folder)
    assert str(caught.value).isprintable()


def test_a_graph_that_fails_while_it_runs(small_folder: Path, tmp_path: Path) -> None:
    proto = onnx.load(small_folder / "value.onnx")
    table = next(c for c in proto.graph.initializer if c.name == "discounts")
    table.CopyFrom(onnx.numpy_helper.from_array(np.ones((1, 4), np.float32), "discounts"))
    data = proto.SerializeToString()
    folder = changed(small_folder, tmp_path / "out", "crc32", "value.onnx", value=zlib.crc32(data))
    (folder / "value.onnx").write_bytes(data)
    agent = OnnxAgent(folder, seed=0)
    with pytest.raises(ValueError, match=r"value\.onnx: cannot be run on these inputs"):
        agent.act(np.zeros((2, 24)), [1, 2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_observations_that_are_not_finite_are_named(small_folder: Path, value: float) -> None:
    obs = np.zeros((2, 24))
    obs[1, 7] = value
    with pytest.raises(ValueError, match=r"observations hold -?(nan|inf) \(environment 1, entry 7\)"):
        OnnxAgent(small_folder).act(obs, [0, 1])
    for odd in ([[None] * 24], [["x"] * 24], [[1.0], [1.0, 2.0]], [[1j] * 24]):
        with pytest.raises(ValueError, match="observations"):
            OnnxAgent(small_folder).act(odd, [0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("obs", "task", "first", "message"),
    [
        ((2, 23), [0, 1], None, r"shape \(2, 23\), expected \(N, 24\)"),
        ((2, 24), None, None, "knows 3 tasks"),
        ((2, 24), [0.0, 1.0], None, "integer ids"),
        ((2, 24), [0], None, "2 integer ids"),
        ((2, 24), [0, 3], None, "run from 0 to 3"),
        ((2, 24), [0, 1], [True], r"first has shape \(1,\)"),
        ((2, 24), [0, 1], [True, False], "mark every one as first"),
    ],
)
def test_wrong_inputs_are_named(
    small_folder: Path, obs: tuple[int, ...], task: object, first: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        OnnxAgent(small_folder).act(np.zeros(obs), task, first)  # type: ignore[arg-type]
