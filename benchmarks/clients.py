"""Runs other projects' programs on this one, and writes what came of it: docs/clients.md.

python benchmarks/clients.py --out docs/clients.md [--only stable-baselines3 torchrl] [--npm]

Packages that this project does not need are installed into a temporary folder, without what they depend on: the rest
is this environment's. Each client runs in a process and a folder of its own. --npm fetches onnxruntime-web too.

Exit status: 0 when every client ended well, 1 when one did not.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path

from tdmpc2.fileio import atomic_write_text
from tdmpc2.reporting.tables import format_table

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Client:
    """One program of another project.

    Attributes:
        name: the package it is of, whose version is told.
        what: was run, in words.
        code: Python that fails if anything is not as it should be.
        fetched: packages to install for it, with the pinned or newest version.
    """

    name: str
    what: str
    code: str
    fetched: tuple[str, ...] = ()


AGENT = """
import numpy as np, torch, tdmpc2
from tdmpc2.places import CHECKPOINTS
planner = tdmpc2.PlannerSettings(iterations=1, num_samples=16, num_elites=4, num_pi_trajs=4)
agent = tdmpc2.load_agent(CHECKPOINTS / "quickstart_teacher.safetensors", device="cpu", planner=planner)
make = lambda: tdmpc2.make_env("pendulum-spin")
"""

CLIENTS = (
    Client(
        "gymnasium",
        "its checker on all 30 tasks; RecordEpisodeStatistics over SyncVectorEnv and AsyncVectorEnv, 20 steps",
        """
import warnings, gymnasium, tdmpc2
from gymnasium.utils.env_checker import check_env
from tdmpc2.tasks import known_tasks
warnings.filterwarnings("error")  # but for its remarks that observations have no bounds, and on what make_env returns
for remark in ("infinity", "wrapper"):
    warnings.filterwarnings("ignore", message=f".*{remark}.*")
for task in known_tasks():
    check_env(tdmpc2.make_env(task), skip_render_check=True)
warnings.resetwarnings()
for kind in (gymnasium.vector.SyncVectorEnv, gymnasium.vector.AsyncVectorEnv):
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(kind([lambda: tdmpc2.make_env("cup-spin")] * 2))
    env.reset(seed=1)
    for _ in range(20):
        env.step(env.action_space.sample())
    env.close()
""",
    ),
    Client(
        "stable-baselines3",
        "check_env; evaluate_policy of an agent, planning in one environment and by its prior in a DummyVecEnv of two "
        "(an episode each); PPO for 128 steps",
        AGENT
        + """
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
check_env(make(), warn=False)
env = make_vec_env(make, 1)
mean, _ = evaluate_policy(agent.policy(env), env, n_eval_episodes=1)
assert 0 <= mean <= 1000
env = make_vec_env(make, 2)
mean, _ = evaluate_policy(agent.policy(env, mpc=False), env, n_eval_episodes=2)
assert 0 <= mean <= 1000
PPO("MlpPolicy", env, n_steps=64, device="cpu").learn(128)
""",
        ("stable-baselines3", "pandas", "pytz"),
    ),
    Client(
        "torchrl",
        "check_env_specs of GymWrapper; a Collector with an agent's module, 40 frames into a ReplayBuffer",
        AGENT
        + """
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.envs import GymWrapper, InitTracker, TransformedEnv
from torchrl.envs.utils import check_env_specs
check_env_specs(GymWrapper(make()))
buffer = ReplayBuffer(storage=LazyTensorStorage(100), batch_size=8)
env = TransformedEnv(GymWrapper(make()), InitTracker())
for frames in Collector(env, agent.policy(make()).module(), frames_per_batch=20, total_frames=40):
    buffer.extend(frames.reshape(-1))
assert len(buffer) == 40 and buffer.sample()["next", "reward"].isfinite().all()
""",
    ),
    Client(
        "safetensors",
        "save_file(load_file(…)) of a pretrained agent's weights by numpy, loaded again",
        AGENT
        + """
from safetensors.numpy import load_file, save_file
agent.save_pretrained("agent", data="none", licence="mit")
save_file(load_file("agent/model.safetensors"), "agent/model.safetensors")
assert tdmpc2.load_agent("agent", device="cpu").checksum() == agent.checksum()
""",
    ),
    Client(
        "onnxruntime",
        "quantize_dynamic of the policy's graph to int8, then tdmpc2 restamp and a decision",
        AGENT
        + """
from onnxruntime.quantization import quantize_dynamic
from tdmpc2.export.files import export_agent, restamp
from tdmpc2.export.numpy_agent import OnnxAgent
export_agent(CHECKPOINTS / "quickstart_teacher.safetensors", "exported", planner=planner)
quantize_dynamic("exported/policy.onnx", "exported/policy.onnx")
assert restamp("exported") == ["policy.onnx"]
assert np.isfinite(OnnxAgent("exported", seed=1).act(np.zeros((1, 8)), [1])).all()
""",
    ),
    Client(
        "hydra-core",
        "initialize_config_module and compose of every program's configuration",
        """
from hydra import compose, initialize_config_module
from tdmpc2.settings.schema import SCHEMAS
with initialize_config_module("tdmpc2.config", version_base="1.3"):
    for program in SCHEMAS:
        compose(program)
    assert compose("train", overrides=["experiment=table1/scratch", "scale=cpu"]).steps == 1600
""",
    ),
)


def run(client: Client, libraries: Path) -> str:
    """ "passed", or the last line of what the client said."""
    paths = os.pathsep.join([str(ROOT), str(libraries)])
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", client.code],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=900,
        )
    if done.returncode == 0:
        return "passed"
    return f"failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}"


def in_node(folder: Path) -> list[str] | None:
    """The row of onnxruntime-web in Node; None where it cannot be fetched."""
    from tdmpc2.export.files import export_agent
    from tdmpc2.places import CHECKPOINTS

    fetching = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "onnxruntime-web@1"]
    if shutil.which("npm") is None or subprocess.run(fetching, cwd=folder, capture_output=True).returncode:
        return None
    export_agent(CHECKPOINTS / "quickstart_teacher.safetensors", folder / "exported")
    shutil.copy2(ROOT / "examples" / "act.mjs", folder)
    command = ["node", "act.mjs", "exported", "cup-spin", "[0, 0, 0, 0.3, 0, 0, 0, 0]"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    result = "passed" if done.returncode == 0 else f"failed: {(done.stderr.splitlines() or ['no word'])[-1]}"
    text = subprocess.run(["npm", "ls", "onnxruntime-web"], cwd=folder, capture_output=True, text=True).stdout
    return ["onnxruntime-web (Node)", text.rpartition("@")[2].strip(), "`examples/act.mjs`", result]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the page to write; it is printed too")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[client.name for client in CLIENTS])
    parser.add_argument("--npm", action="store_true", help="fetch onnxruntime-web and run the example in Node")
    options = parser.parse_args()
    chosen = [client for client in CLIENTS if options.only is None or client.name in options.only]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        libraries = Path(temporary) / "libraries"
        wanted = [package for client in chosen for package in client.fetched]
        if wanted:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(libraries)]
            subprocess.run([*install, *wanted], check=True)
        fetched = {
            found.name.lower().replace("_", "-"): found.version for found in distributions(path=[str(libraries)])
        }
        for client in chosen:
            result = run(client, libraries)
            rows.append([client.name, fetched.get(client.name) or version(client.name), client.what, result])
            print(*rows[-1], sep=": ")
        if options.npm:
            folder = Path(temporary) / "node"
            folder.mkdir()
            if (row := in_node(folder)) is not None:
                rows.append(row)
    page = "\n\n".join(
        [
            "# Clients",
            "Programs of other projects that were run on this one, by `python benchmarks/clients.py --npm --out\n"
            "docs/clients.md`, which installs what is not here outside this environment.",
            format_table(["client", "version", "what was run", "result"], rows, align="llll", style="markdown"),
            f"Python {platform.python_version()}, torch {version('torch')}, {platform.system()}.",
        ]
    )
    print(page)
    if options.out is not None:
        atomic_write_text(options.out, page + "\n")
    if any(row[-1] != "passed" for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
