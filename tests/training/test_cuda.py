"""The whole path on a CUDA device: train, stop, resume, cast to half, evaluate in half arithmetic."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_fixtures import DUO, ROOT, TASKS, TINY_PLANNER, files_in, run_program, tiny_run

from tdmpc2.agent import Agent, load_agent
from tdmpc2.checkpointing import read_checkpoint
from tdmpc2.evaluation.results import load_json
from tdmpc2.planner import PlannerSettings
from tdmpc2.rollout import AgentController, Job
from tdmpc2.training import TrainResult
from tdmpc2.training.learner import Learner

pytestmark = pytest.mark.cuda
KEYS = ("device=cuda", "teacher=1M", "teacher.random_weights=true", "d_coef=0.4", "log_freq=4", "save_freq=100")
PLANNER = PlannerSettings(iterations=2, num_samples=32, num_elites=8, num_pi_trajs=4)


def interrupted_run(run_dir: Path, monkeypatch: pytest.MonkeyPatch, at_step: int) -> TrainResult:
    """A run of 8 steps that gets a real SIGTERM during update `at_step`."""
    real, updates = Learner.update, 0

    def update(self: Learner, *arguments: Any) -> dict[str, torch.Tensor]:
        nonlocal updates
        updates += 1
        if updates == at_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", update)
        return tiny_run(run_dir, "steps=8", *KEYS)


def decisions(agent: Agent, jobs: list[Job], obs: np.ndarray, *, mpc: bool) -> np.ndarray:
    """Actions [T, N, A] for observations [T, N, O] of jobs side by side, a generator for each slot."""
    controller = AgentController(agent, len(jobs), mpc=mpc, noise=0.1)
    for slot, job in enumerate(jobs):
        controller.start(slot, job)
    return np.stack([controller.actions(list(range(len(jobs))), step) for step in obs])


def test_train_stop_resume_quantise_and_evaluate_in_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    whole = tiny_run(tmp_path / "whole", "steps=8", *KEYS)
    assert whole.step == 8 and all(math.isfinite(value) for value in whole.metrics.values())
    stopped = interrupted_run(tmp_path / "parts", monkeypatch, at_step=5)
    assert stopped.interrupted and stopped.step == 5 and stopped.checkpoint is None
    torch.rand(3, device="cuda")  # what this process draws in between does not matter
    resumed = tiny_run(tmp_path / "parts", "steps=8", "resume=true", *KEYS)
    assert resumed.step == 8 and resumed.checkpoint is not None and whole.checkpoint is not None

    # The same random numbers; sums on a GPU need not be in the same order, so the weights are only close.
    states = [torch.load(tmp_path / run / "state" / "latest.pt", weights_only=True) for run in ("whole", "parts")]
    assert torch.equal(*(state["learner"]["noise"].cpu() for state in states))
    expected = read_checkpoint(whole.checkpoint).tensors
    for name, value in read_checkpoint(resumed.checkpoint).tensors.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-4, msg=lambda text, n=name: f"{n}: {text}")
    assert resumed.metrics == pytest.approx(whole.metrics, rel=1e-2, abs=1e-4)

    done = run_program(
        "scripts/quantize.py", f"checkpoint={resumed.checkpoint}", "scheme=fp16", "eval_episodes=1", "num_workers=0",
        "device=cuda", "output=half", *TINY_PLANNER, cwd=tmp_path, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert "after: float16 arithmetic on fp16 weights" in done.stdout
    half = tmp_path / "half"
    assert {"before.json", "after.json", "final-fp16-deploy.safetensors"} <= set(files_in(half))
    for label in ("before", "after"):
        result = load_json(half / f"{label}.json")
        assert result.machine.device == torch.cuda.get_device_name()
        assert result.tasks == TASKS and all(math.isfinite(e.episode_return) for e in result.episodes)

    agent = load_agent(half / "final-fp16-deploy.safetensors", DUO, "cuda", PLANNER, precision="float16")
    assert agent.device.type == "cuda" and agent.planner.execution.precision == "float16"
    jobs = [Job(TASKS[number % 2], number, 100 + number) for number in range(4)]
    obs = np.random.default_rng(0).normal(size=(3, 4, DUO.obs_dim)).astype(np.float32)
    for mpc in (True, False):
        actions = decisions(agent, jobs, obs, mpc=mpc)
        assert actions.shape == (3, 4, DUO.action_dim) and actions.dtype == np.float32
        assert np.isfinite(actions).all() and np.abs(actions).max() <= 1
        assert len(np.unique(actions[0, :, 0])) > 1, "every slot has other noise"
        np.testing.assert_allclose(decisions(agent, jobs, obs, mpc=mpc), actions, atol=1e-4)
    # Noise belongs to the job, not to its place. The prior alone: in half, a plan's choice of elite may tip over.
    prior, order = decisions(agent, jobs, obs, mpc=False), [2, 0]
    alone = decisions(agent, [jobs[number] for number in order], obs[:, order], mpc=False)
    np.testing.assert_allclose(alone, prior[:, order], atol=2e-2)
