"""Time of a decision: the torch agent, the exported one, and the exported one with a call for every part.

python benchmarks/export.py ../shared/checkpoints/mt30_1M_steps_045dist_fp16.pt --task mt30 --threads 1

One environment, the papers' planner. Each of --rounds rounds times every agent once; the table shows medians, and the
ratio to the torch agent's in the same rounds. Also timed: importing and loading, each in a new process.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from tdmpc2.agent import load_agent
from tdmpc2.errors import run_program
from tdmpc2.export.files import export_agent
from tdmpc2.export.numpy_agent import Array, OnnxAgent
from tdmpc2.reporting.tables import format_table

TORCH_START = "from tdmpc2 import load_agent; load_agent({path!r}, {task!r}, 'cpu')"
ONNX_START = "import sys; sys.path.insert(0, {folder!r}); from numpy_agent import OnnxAgent; OnnxAgent({folder!r})"
MEMORY = (
    "\nimport pathlib; lines = pathlib.Path('/proc/self/status').read_text().splitlines()"
    "\nprint(next(int(l.split()[1]) for l in lines if l.startswith('VmRSS')) / 1024)"
)


class SeparateAgent(OnnxAgent):
    """Values trajectories by a call of a graph for every part and step, as a program without value.onnx would."""

    def __init__(self, folder: Path, seed: int, threads: int) -> None:
        super().__init__(folder, seed, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        for name in ("reward", "q"):
            self._sessions[name] = onnxruntime.InferenceSession(
                (folder / f"{name}.onnx").read_bytes(), options, providers=["CPUExecutionProvider"]
            )

    def value(self, z: Array, task: Array | None, actions: Array, terminal_noise: Array, heads: Array) -> Array:
        z = np.repeat(z, actions.shape[2], axis=1)
        total, gamma = np.zeros(z.shape[:2], np.float32), np.float32(0.99)  # every DMControl task's
        for t in range(actions.shape[1]):
            total += gamma**t * self._run("reward", task, z=z, action=actions[:, t])[..., 0]
            z = self._run("dynamics", task, z=z, action=actions[:, t])
        last = self._run("policy", task, z=z, noise=terminal_noise)
        q = self._run("q", task, z=z, action=last)
        two = np.argsort(-heads, axis=1)[:, None, :2]
        return np.nan_to_num(total + gamma ** actions.shape[1] * np.take_along_axis(q, two, axis=2).mean(axis=2))


def started(code: str) -> tuple[float, float]:
    """Seconds and resident MiB of a new process that runs `code`."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code + MEMORY], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--task", help="task set; needed for released files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    a = parser.parse_args()

    torch.set_num_threads(a.threads)
    agent = load_agent(a.checkpoint, a.task, "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = export_agent(a.checkpoint, folder, agent.task_set)
        fused, separate = OnnxAgent(folder, 0, a.threads), SeparateAgent(folder, 0, a.threads)
        starts = {
            "torch": started(TORCH_START.format(path=str(a.checkpoint), task=a.task)),
            "exported": started(ONNX_START.format(folder=name)),
        }
    obs = np.random.default_rng(0).standard_normal((1, agent.task_set.obs_dim)).astype(np.float32)
    task = [0] if agent.task_set.multitask else None
    decisions: dict[str, Callable[[], object]] = {
        "torch": lambda: agent.act(obs, task),
        "exported": lambda: fused.act(obs, task),
        "exported, a call for every part": lambda: separate.act(obs, task),
    }
    times: dict[str, list[float]] = {name: [] for name in decisions}
    for _ in range(a.rounds + 1):
        for name, decide in decisions.items():
            start = time.perf_counter()
            decide()
            times[name].append(1000 * (time.perf_counter() - start))
    rows = []
    for name, (_, *taken) in times.items():  # the first round warms up
        ratio = statistics.median(mine / base for mine, base in zip(taken, times["torch"][1:], strict=True))
        rows.append([name, f"{statistics.median(taken):.1f}", f"{ratio:.2f}"])
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {a.threads} thread(s), {a.rounds} rounds")
    print(format_table(["agent", "ms a decision", "of torch's"], rows, align="lrr"))
    rows = [[name, f"{seconds:.2f}", f"{mib:.0f}"] for name, (seconds, mib) in starts.items()]
    print(format_table(["agent", "start to loaded (s)", "resident memory (MiB)"], rows, align="lrr"))
    rows = [[name, f"{size:,}", f"{size / 2**20:.2f}"] for name, size in sizes.items()]
    print(format_table(["file", "bytes", "MiB"], rows, align="lrr"))


if __name__ == "__main__":
    run_program(main)
