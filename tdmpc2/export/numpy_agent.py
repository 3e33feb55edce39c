"""An exported agent that plans with numpy and onnxruntime alone.

This file is copied into every exported folder, so it imports nothing of this project. The planner is MPPI as in
`tdmpc2/planner/mppi.py` (TD-MPC2, section 3.3), step by step.

Axes: N environments, S samples, P prior trajectories, H horizon, I iterations, E heads, Z latent, O observation,
A action.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

try:
    import onnxruntime
except ImportError as error:
    raise ImportError("an exported agent needs the package onnxruntime: pip install onnxruntime") from error

Array = np.ndarray

FORMAT = "tdmpc2-onnx-agent"
FORMAT_VERSION = 1
PLANNING_GRAPHS = ("encoder", "policy", "dynamics", "value")


@dataclass(frozen=True)
class Noise:
    """All randomness of one decision for N environments; normal unless said otherwise, float32.

    Attributes:
        prior: [N, H, P, A] of the policy prior's trajectories.
        samples: [N, I, H, S - P, A] of the Gaussian ones.
        terminal: [N, I, S, A] of the terminal action.
        heads: uniform [N, I, E]; the two largest name the two Q heads.
        elite: uniform [N] in [0, 1); where it falls in the cumulated elite weights names the elite.
        action: [N, A] exploration noise.
        elite_rank: optional int64 [N], the elite to take (0 the best), instead of `elite`.
    """

    prior: Array
    samples: Array
    terminal: Array
    heads: Array
    elite: Array
    action: Array
    elite_rank: Array | None = None


@dataclass(frozen=True)
class Plan:
    """What a decision came to.

    Attributes:
        action: [N, A] to take, in [-1, 1].
        mean: [N, H, A], the warm start of the next decision once shifted by a step.
        candidates: [I, N, H, S, A] and values [I, N, S] of every iteration.
    """

    action: Array
    mean: Array
    candidates: list[Array]
    values: list[Array]


class OnnxAgent:
    """Acts in N environments at once, from a folder that `scripts/export.py` wrote.

    Args:
        folder: the exported folder.
        seed: of the planner's noise; None for one of the system's.
        threads: CPU threads of onnxruntime.

    Raises:
        ValueError: for a folder that is not a whole exported agent.
    """

    def __init__(self, folder: str | Path, seed: int | None = None, threads: int = 1) -> None:
        folder = Path(folder)
        facts = read_facts(folder)
        self.task_set: str = facts["task_set"]
        self.tasks: tuple[str, ...] = tuple(facts["tasks"])
        dims = facts["dims"]
        self.obs_dim: int = dims["obs_dim"]
        self.action_dim: int = dims["action_dim"]
        self.latent_dim: int = dims["latent_dim"]
        self.num_q: int = dims["num_q"]
        self.planner: dict[str, Any] = facts["planner"]
        masks = facts["action_masks"]
        self.action_masks = None if masks is None else np.asarray(masks, np.float32)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._sessions = {
            name: onnxruntime.InferenceSession(
                _checked(folder / f"{name}.onnx", facts["crc32"]), options, providers=["CPUExecutionProvider"]
            )
            for name in PLANNING_GRAPHS
        }
        self._rng = np.random.default_rng(seed)
        self._mean: Array | None = None

    def act(
        self,
        obs: Array,
        task: Sequence[int] | Array | None = None,
        first: Sequence[bool] | Array | None = None,
        greedy: bool = False,
    ) -> Array:
        """Plans one decision for N environments, each continuing its own last plan.

        Args:
            obs: [N, O], zero-padded to the task set's width.
            task: task ids [N], positions in `tasks`; may be left out for a single-task agent.
            first: bool [N], True where a new episode starts; default all if N changed or nothing was planned yet,
                else none.
            greedy: leave the exploration noise out.

        Returns:
            Actions float32 [N, A] in [-1, 1], 0 where the task has no such action.

        Raises:
            ValueError: for a wrong shape, an unknown task id, or an N that changed within episodes.
        """
        obs, ids = self._inputs(obs, task)
        count = len(obs)
        same = self._mean is not None and len(self._mean) == count
        fresh = np.full(count, not same) if first is None else np.asarray(first, bool)
        if fresh.shape != (count,):
            raise ValueError(f"first has shape {fresh.shape}, expected ({count},), one for each observation.")
        if not same and not fresh.all():
            raise ValueError(f"the number of environments changed to {count}: mark every one as first.")
        shape = (count, self.planner["horizon"], self.action_dim)
        warm = np.zeros(shape, np.float32) if not same or self._mean is None else self._mean
        warm = np.where(fresh[:, None, None], np.float32(0), warm)
        plan = self.plan(obs, ids, warm, self.draw_noise(count), greedy=greedy)
        shifted = np.concatenate([plan.mean[:, 1:], np.zeros_like(plan.mean[:, :1])], axis=1)
        self._mean = shifted if self.planner.get("warm_start", True) else np.zeros_like(shifted)
        return plan.action

    def draw_noise(self, count: int) -> Noise:
        """Noise for `count` environments from the agent's own generator."""
        p, a = self.planner, self.action_dim
        iterations, horizon, samples, prior = (p[n] for n in ("iterations", "horizon", "num_samples", "num_pi_trajs"))

        def normal(*shape: int) -> Array:
            return self._rng.standard_normal((count, *shape), np.float32)

        return Noise(
            prior=normal(horizon, prior, a),
            samples=normal(iterations, horizon, samples - prior, a),
            terminal=normal(iterations, samples, a),
            heads=self._rng.random((count, iterations, self.num_q), np.float32),
            elite=self._rng.random(count, np.float32),
            action=normal(a),
        )

    def plan(self, obs: Array, task: Array | None, warm_start: Array, noise: Noise, *, greedy: bool = False) -> Plan:
        """One decision for N environments, without state.

        Args:
            obs: float32 [N, O].
            task: int64 [N]; None for a single-task agent.
            warm_start: float32 [N, H, A], the first mean: the last plan shifted by one step, 0 at an episode's start.
            noise: all randomness of this decision.
            greedy: leave the exploration noise out of the action.
        """
        p = self.planner
        prior, elites = p["num_pi_trajs"], p["num_elites"]
        min_std, max_std = np.float32(p["min_std"]), np.float32(p["max_std"])
        mask = np.ones((len(obs), self.action_dim), np.float32)
        if self.action_masks is not None and task is not None:
            mask = self.action_masks[task]
        z = self._run("encoder", task, obs=obs)[:, None]  # [N, 1, Z]
        candidates = np.empty((len(obs), p["horizon"], p["num_samples"], self.action_dim), np.float32)
        if prior:
            candidates[:, :, :prior] = self._prior_trajectories(z, task, noise.prior)
        mean = warm_start * mask[:, None]
        std = np.full_like(mean, max_std) * mask[:, None]
        plan = Plan(np.empty(0), np.empty(0), [], [])
        for i in range(p["iterations"]):
            drawn = (mean[:, :, None] + std[:, :, None] * noise.samples[:, i]) * mask[:, None, None]
            candidates = candidates.copy()
            candidates[:, :, prior:] = np.clip(drawn, -1, 1)
            value = self.value(z, task, candidates, noise.terminal[:, i], noise.heads[:, i])
            plan.candidates.append(candidates)
            plan.values.append(value)
            best = np.argsort(-value, axis=1, kind="stable")[:, :elites]  # [N, elites], the best first
            top = np.take_along_axis(candidates, best[:, None, :, None], axis=2)
            score = np.float32(p["temperature"]) * np.take_along_axis(value, best, axis=1)
            weight = np.exp(score - score[:, :1])
            weight /= weight.sum(axis=1, keepdims=True)
            w = weight[:, None, :, None]
            mean = (w * top).sum(axis=2)
            spread = np.sqrt((w * np.square(top - mean[:, :, None])).sum(axis=2))
            mean, std = mean * mask[:, None], np.clip(spread, min_std, max_std) * mask[:, None]
        if noise.elite_rank is None:
            below = np.cumsum(weight, axis=1) <= noise.elite[:, None]
            rank = np.minimum(below.sum(axis=1), elites - 1)
        else:
            rank = noise.elite_rank
        action = top[np.arange(len(obs)), 0, rank]
        if not greedy:
            action = action + std[:, 0] * noise.action
        return Plan(np.clip(action * mask, -1, 1), mean, plan.candidates, plan.values)

    def value(self, z: Array, task: Array | None, actions: Array, terminal_noise: Array, heads: Array) -> Array:
        """Estimated return [N, S] of actions [N, H, S, A] from latents z [N, 1, Z]; not a number counts as 0."""
        inputs = {"z": z, "actions": actions, "terminal_noise": terminal_noise, "heads": heads}
        return np.nan_to_num(self._run("value", task, **inputs), nan=0.0)

    def _prior_trajectories(self, z: Array, task: Array | None, noise: Array) -> Array:
        """Actions [N, H, P, A] of P rollouts of the policy prior from latents z [N, 1, Z]."""
        _, horizon, trajectories, _ = noise.shape
        z = np.repeat(z, trajectories, axis=1)
        actions = []
        for t in range(horizon):
            actions.append(self._run("policy", task, z=z, noise=noise[:, t]))
            if t + 1 < horizon:
                z = self._run("dynamics", task, z=z, action=actions[-1])
        return np.stack(actions, axis=1)

    def _run(self, graph: str, task: Array | None, **inputs: Array) -> Array:
        """The first output of a graph."""
        feed = {name: np.ascontiguousarray(value, np.float32) for name, value in inputs.items()}
        if task is not None:
            feed["task"] = task
        session = self._sessions[graph]
        found: Array = session.run([session.get_outputs()[0].name], feed)[0]
        return found

    def _inputs(self, obs: Array, task: Sequence[int] | Array | None) -> tuple[Array, Array | None]:
        obs = np.asarray(obs, np.float32)
        if obs.ndim != 2 or obs.shape[1] != self.obs_dim:
            raise ValueError(f"observations have shape {obs.shape}, expected (N, {self.obs_dim}), zero-padded.")
        if self.action_masks is None:
            return obs, None
        if task is None:
            raise ValueError(f"this agent knows {len(self.tasks)} tasks: give the task ids, integers [N].")
        ids = np.asarray(task)
        if not np.issubdtype(ids.dtype, np.integer) or ids.shape != (len(obs),):
            raise ValueError(f"task is {ids.dtype} {ids.shape}, expected {len(obs)} integer ids, one each.")
        if ids.size and not (ids.min() >= 0 and ids.max() < len(self.tasks)):
            raise ValueError(
                f"task ids run from {ids.min()} to {ids.max()}; '{self.task_set}' has ids 0 to {len(self.tasks) - 1}."
            )
        return obs, ids.astype(np.int64)


def read_facts(folder: Path) -> dict[str, Any]:
    """What agent.json says; a ValueError where there is none of this format."""
    path = folder / "agent.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: not there or damaged ({error}); give a folder written by scripts/export.py."
        ) from error
    found = (facts.get("format"), facts.get("format_version")) if isinstance(facts, dict) else None
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"{path}: is {found}, expected {(FORMAT, FORMAT_VERSION)}; export the checkpoint anew.")
    return dict(facts)


def _checked(path: Path, checksums: dict[str, int]) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); export the checkpoint anew.") from error
    if zlib.crc32(data) != checksums[path.name]:
        raise ValueError(f"{path}: does not match its checksum in agent.json; export the checkpoint anew.")
    return data
