"""Controls a DMControl task with an exported agent; no torch is loaded.

python scripts/export.py checkpoints/quickstart_teacher.safetensors --out exported/quickstart
python examples/control_onnx.py exported/quickstart cup-spin --decisions 100
python examples/control_onnx.py exported/quickstart cup-spin --prior    # encoder.onnx and policy.onnx alone
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from tdmpc2 import make_env
from tdmpc2.export.numpy_agent import OnnxAgent

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", help="what scripts/export.py wrote")
parser.add_argument("task", help="one of the agent's tasks, cup-spin say")
parser.add_argument("--decisions", type=int, default=500, help="an episode has 500")
parser.add_argument("--prior", action="store_true", help="act by the policy prior's mean instead of planning")
parser.add_argument("--seed", type=int, default=1)
a = parser.parse_args()

agent = OnnxAgent(a.folder, seed=a.seed, mpc=not a.prior)
if a.task not in agent.tasks:
    parser.error(f"the agent knows {', '.join(agent.tasks)}, not {a.task}")
env = make_env(a.task, seed=a.seed)
obs, _ = env.reset()
total, acting = 0.0, 0.0
for step in range(a.decisions):
    padded = np.pad(obs, (0, agent.obs_dim - len(obs)))[None]
    started = time.perf_counter()
    action = agent.act(padded, task=[agent.tasks.index(a.task)], first=[step == 0], greedy=a.prior)
    acting += time.perf_counter() - started
    obs, reward, terminated, truncated, _ = env.step(action[0, : env.action_space.shape[0]])
    total += float(reward)
    if terminated or truncated:
        break
print(f"{a.task}: return {total:.1f} after {step + 1} decisions, {1000 * acting / (step + 1):.3g} ms each")
