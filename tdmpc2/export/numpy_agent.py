"""An exported agent that plans with numpy and onnxruntime alone.

This file is copied into every exported folder, so it imports nothing of this project. The planner is MPPI as in
`tdmpc2/planner/mppi.py` (TD-MPC2, section 3.3), step by step.

Axes: N environments, S samples, P prior trajectories, H horizon, I iterations, E heads, Z latent, O observation,
A action.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import reprlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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
PRIOR_GRAPHS = ("encoder", "policy")
"""All that acting by the policy prior alone needs, beside agent.json."""
CHECKSUM = "facts_crc32"
"""The key of agent.json that holds the CRC-32 of all others; the first exports had none."""
_KEYS = (
    *("format", "format_version", "task_set", "tasks", "obs_dims", "action_dims", "action_masks"),
    *("discounts", "dims", "planner", "versions", "crc32"),
)
_MAX_FACTS_BYTES = 4 << 20
_LONGEST_TEXT = 300
_LARGEST_DIM = 1 << 20
_LARGEST_NUMBER = 1e6
_MOST_TASKS = 10_000
_MOST_NUMBERS = 1 << 28
"""Of noise that one environment's decision may take: 1 GiB."""


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
        verify: compare the graphs with the checksums of agent.json; False takes graphs that another program has
            changed (quantised, simplified). What they take and give is checked all the same.
        providers: what onnxruntime computes with, by its names, the first that can; default the CPU.
        mpc: plan; False acts by the policy prior alone, one forward pass, and needs neither dynamics nor value.

    Raises:
        ValueError: in one line that names the file, for a folder that is not a whole exported agent, or for a provider
            that this onnxruntime does not have.
    """

    def __init__(
        self,
        folder: str | Path,
        seed: int | None = None,
        threads: int = 1,
        verify: bool = True,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        mpc: bool = True,
    ) -> None:
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
        there = onnxruntime.get_available_providers()
        for provider in providers:  # it would warn, and take another
            if provider not in there:
                raise ValueError(
                    f"providers: {_shown(provider)} is not in this onnxruntime; it has {', '.join(there)}."
                )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # What goes wrong is raised here; its log would show names from the file as they are.
        options.log_severity_level = 4
        self.mpc = mpc
        self._files = {name: folder / f"{name}.onnx" for name in (PLANNING_GRAPHS if mpc else PRIOR_GRAPHS)}
        self._sessions: dict[str, Any] = {}
        for name, path in self._files.items():
            data = _checked(path, facts["crc32"] if verify else None)
            with _one_kind_of_error(path, "is no graph that onnxruntime can load"):
                # Without its fallback, which prints the error and tries the same again.
                session = onnxruntime.InferenceSession(data, options, providers=list(providers), enable_fallback=0)
                _check_interface(path, session, self._interface(name))
            self._sessions[name] = session
        self._rng = np.random.default_rng(seed)
        self._mean: Array | None = None

    def act(
        self,
        obs: Array,
        task: Sequence[int] | Array | None = None,
        first: Sequence[bool] | Array | None = None,
        greedy: bool = False,
    ) -> Array:
        """One decision for N environments: planned, each continuing its last plan, or the policy prior's.

        Args:
            obs: [N, O], zero-padded to the task set's width.
            task: task ids [N], positions in `tasks`; may be left out for a single-task agent.
            first: bool [N], True where a new episode starts; default all if N changed or nothing was planned yet,
                else none.
            greedy: leave the exploration noise out; the prior's mean instead of a sample of it.

        Returns:
            Actions float32 [N, A] in [-1, 1], 0 where the task has no such action.

        Raises:
            ValueError: for a wrong shape, an observation that is not finite, an unknown task id, an N that changed
                within episodes, or graphs that compute no action from it.
        """
        obs, ids = self._inputs(obs, task)
        if not self.mpc:
            return self._finite(self._prior_actions(obs, ids, greedy))
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
        action = self._finite(plan.action)
        shifted = np.concatenate([plan.mean[:, 1:], np.zeros_like(plan.mean[:, :1])], axis=1)
        self._mean = shifted if self.planner.get("warm_start", True) else np.zeros_like(shifted)
        return action

    def _prior_actions(self, obs: Array, task: Array | None, greedy: bool) -> Array:
        """Actions [N, A] of the policy prior; without noise a sample is the mean."""
        shape = (len(obs), 1, self.action_dim)
        noise = np.zeros(shape, np.float32) if greedy else self._rng.standard_normal(shape, np.float32)
        z = self._run("encoder", task, (len(obs), self.latent_dim), obs=obs)[:, None]
        return self._run("policy", task, shape, z=z, noise=noise)[:, 0]

    def _finite(self, action: Array) -> Array:
        broken = np.flatnonzero(~np.isfinite(action).all(axis=1))
        if broken.size:
            raise ValueError(f"the graphs give environment {broken[0]} an action that is not a number.")
        return action

    def draw_noise(self, count: int) -> Noise:
        """Noise for `count` environments from the agent's generator."""
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
        z = self._run("encoder", task, (len(obs), self.latent_dim), obs=obs)[:, None]  # [N, 1, Z]
        candidates = np.empty((len(obs), p["horizon"], p["num_samples"], self.action_dim), np.float32)
        if prior:
            # Not a number comes of a model whose numbers overflow.
            candidates[:, :, :prior] = np.nan_to_num(self._prior_trajectories(z, task, noise.prior), nan=0.0)
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
            top_value = np.take_along_axis(value, best, axis=1)
            weight = np.exp(np.float32(p["temperature"]) * (top_value - top_value[:, :1]))
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
        shape = (len(actions), actions.shape[2])
        return np.nan_to_num(self._run("value", task, shape, **inputs), nan=0.0)

    def _prior_trajectories(self, z: Array, task: Array | None, noise: Array) -> Array:
        """Actions [N, H, P, A] of P rollouts of the policy prior from latents z [N, 1, Z]."""
        _, horizon, trajectories, _ = noise.shape
        z = np.repeat(z, trajectories, axis=1)
        actions = []
        for t in range(horizon):
            actions.append(self._run("policy", task, noise[:, t].shape, z=z, noise=noise[:, t]))
            if t + 1 < horizon:
                z = self._run("dynamics", task, z.shape, z=z, action=actions[-1])
        return np.stack(actions, axis=1)

    def _run(self, graph: str, task: Array | None, shape: tuple[int, ...], **inputs: Array) -> Array:
        """The first output of a graph, float32 of this shape."""
        feed = {name: np.ascontiguousarray(value, np.float32) for name, value in inputs.items()}
        if task is not None:
            feed["task"] = task
        path, session = self._files[graph], self._sessions[graph]
        with _one_kind_of_error(path, "cannot be run on these inputs"):
            found: Array = session.run([session.get_outputs()[0].name], feed)[0]
        if found.shape != shape or found.dtype != np.float32:
            raise ValueError(f"{path}: gives {found.dtype} {found.shape}, expected float32 {shape}; {_ANEW}")
        return found

    def _interface(self, graph: str) -> dict[str, tuple[int | None, ...]]:
        """Shapes of a graph's inputs and, last, of its first output; None where an axis is of any length."""
        o, a, z, e, h = self.obs_dim, self.action_dim, self.latent_dim, self.num_q, self.planner["horizon"]
        shapes: dict[str, dict[str, tuple[int | None, ...]]] = {
            "encoder": {"obs": (None, o)},
            "policy": {"z": (None, None, z), "noise": (None, None, a)},
            "dynamics": {"z": (None, None, z), "action": (None, None, a)},
            "value": {
                "z": (None, 1, z),
                "actions": (None, h, None, a),
                "terminal_noise": (None, None, a),
                "heads": (None, e),
            },
        }
        outputs: dict[str, dict[str, tuple[int | None, ...]]] = {
            "encoder": {"z": (None, z)},
            "policy": {"action": (None, None, a)},
            "dynamics": {"next_z": (None, None, z)},
            "value": {"value": (None, None)},
        }
        task: dict[str, tuple[int | None, ...]] = {} if self.action_masks is None else {"task": (None,)}
        renamed = {f"output {name}": shape for name, shape in outputs[graph].items()}
        return {**shapes[graph], **task, **renamed}

    def _inputs(self, obs: Array, task: Sequence[int] | Array | None) -> tuple[Array, Array | None]:
        try:
            with np.errstate(over="ignore"):  # a double too large for float32 becomes infinite, and is named below
                obs = np.asarray(obs, np.float32)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"observations are no numbers ({_shown(error)}), expected (N, {self.obs_dim}).") from error
        if obs.ndim != 2 or obs.shape[1] != self.obs_dim:
            raise ValueError(f"observations have shape {obs.shape}, expected (N, {self.obs_dim}), zero-padded.")
        broken = np.argwhere(~np.isfinite(obs))
        if len(broken):
            row, column = broken[0].tolist()
            raise ValueError(
                f"observations hold {obs[row, column]} (environment {row}, entry {column}), expected finite numbers."
            )
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


_ANEW = "export the checkpoint anew."


def read_facts(folder: Path) -> dict[str, Any]:
    """What agent.json says, every key of it checked; a ValueError where there is none of this format."""
    path = folder / "agent.json"
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FACTS_BYTES + 1)
        if len(data) > _MAX_FACTS_BYTES:
            raise ValueError(f"more than {_MAX_FACTS_BYTES} bytes")
        facts = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_each_once)
    except Exception as error:  # also RecursionError, which JSON that is nested deep ends in
        raise ValueError(
            f"{path}: not there or damaged ({_shown(error)}); give a folder written by scripts/export.py."
        ) from error
    found = (facts.get("format"), facts.get("format_version")) if isinstance(facts, dict) else None
    if found != (FORMAT, FORMAT_VERSION) or isinstance(facts["format_version"], bool):
        raise ValueError(f"{path}: is {_shown(found)}, expected {(FORMAT, FORMAT_VERSION)}; {_ANEW}")
    with _one_kind_of_error(path, "is damaged"):
        if CHECKSUM in facts and facts.pop(CHECKSUM) != facts_checksum(facts):
            raise ValueError("it does not match its own checksum")
        _check_facts(facts)
    return dict(facts)


def facts_checksum(facts: Mapping[str, Any]) -> int:
    """CRC-32 of the content of agent.json, the checksum itself left out."""
    return zlib.crc32(json.dumps(facts, sort_keys=True, allow_nan=False).encode())


def _check_facts(facts: dict[str, Any]) -> None:
    """Raises a ValueError for the first key that is missing, of another type, or out of its range."""
    odd = sorted(facts.keys() ^ set(_KEYS))
    if odd:
        raise ValueError(f"it {'has an unknown key' if odd[0] in facts else 'lacks the key'} '{odd[0]}'")
    _need(_is_text(facts["task_set"]), "task_set", facts["task_set"], "text")
    tasks, dims, planner = facts["tasks"], facts["dims"], facts["planner"]
    names = isinstance(tasks, list) and 0 < len(tasks) <= _MOST_TASKS and all(_is_text(task) for task in tasks)
    _need(names and len(set(tasks)) == len(tasks), "tasks", tasks, "a list of names, none twice")
    _need(isinstance(dims, dict), "dims", dims, "an object")
    for name in ("obs_dim", "action_dim", "latent_dim", "num_q", "num_tasks"):
        least = {"num_q": 2, "num_tasks": 0}.get(name, 1)
        _need(_is_whole(dims.get(name), least, _LARGEST_DIM), f"dims.{name}", dims.get(name), f"{least} or more")
    for name, value in dims.items():
        _need(_is_number(value), f"dims.{name}", value, "a number")
    expected = len(tasks) if len(tasks) > 1 else 0
    _need(dims["num_tasks"] == expected, "dims.num_tasks", dims["num_tasks"], f"{expected}, as 'tasks' has it")
    for name in ("obs_dim", "action_dim"):
        _check_list(facts, f"{name}s", len(tasks), functools.partial(_is_whole, least=1, most=dims[name]))
    _check_list(facts, "discounts", len(tasks), lambda value: _is_number(value) and 0 < value <= 1)
    masks = facts["action_masks"]
    if expected:
        width = dims["action_dim"]
        _check_list(facts, "action_masks", len(tasks), lambda row: isinstance(row, list) and len(row) == width)
        _need(all(_is_number(x) and x in (0, 1) for row in masks for x in row), "action_masks", masks, "0 and 1")
    else:
        _need(masks is None, "action_masks", masks, "null for a single task")
    _check_planner(planner, dims["action_dim"])
    versions = facts["versions"]
    texts = isinstance(versions, dict) and all(_is_text(text) for pair in versions.items() for text in pair)
    _need(texts, "versions", versions, "an object of texts")
    sums = facts["crc32"]
    _need(isinstance(sums, dict), "crc32", sums, "an object")
    for name in (*(f"{graph}.onnx" for graph in PLANNING_GRAPHS), *sums):
        _need(_is_whole(sums.get(name), 0, (1 << 32) - 1), f"crc32.{name}", sums.get(name), "a CRC-32")


def _check_planner(planner: Any, action_dim: int) -> None:
    _need(isinstance(planner, dict), "planner", planner, "an object")

    def need(name: str, fits: bool, expected: str) -> None:
        _need(fits, f"planner.{name}", planner.get(name), expected)

    for name in ("horizon", "iterations", "num_samples", "num_elites", "num_pi_trajs"):
        least = 0 if name == "num_pi_trajs" else 1
        need(name, _is_whole(planner.get(name), least, _LARGEST_DIM), f"a whole number of {least} or more")
    samples = planner["num_samples"]
    for name in ("num_elites", "num_pi_trajs"):
        need(name, planner[name] <= samples, f"at most num_samples, {samples}")
    numbers = planner["iterations"] * planner["horizon"] * samples * action_dim
    need("num_samples", numbers <= _MOST_NUMBERS, "fewer: a decision would fill the memory")
    for name in ("min_std", "max_std", "temperature"):
        value = planner.get(name)
        need(name, _is_number(value) and 0 < value <= _LARGEST_NUMBER, f"above 0 and at most {_LARGEST_NUMBER:g}")
    need("min_std", planner["min_std"] <= planner["max_std"], "not above max_std")
    need("warm_start", isinstance(planner.get("warm_start", True), bool), "true or false")


def _check_list(facts: dict[str, Any], key: str, length: int, fits: Callable[[Any], bool]) -> None:
    values = facts[key]
    whole = isinstance(values, list) and len(values) == length and all(fits(value) for value in values)
    _need(whole, key, values, f"a list of {length}, one fitting each task")


def _need(fits: bool, key: str, found: Any, expected: str) -> None:
    if not fits:
        raise ValueError(f"'{key}' is {_shown(found, 60)}, expected {expected}")


def _is_text(value: Any) -> bool:
    """Whether a value is a text that any message can show."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_TEXT and value.isprintable()


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return _is_whole(value, -_LARGEST_DIM, _LARGEST_DIM)


def _refuse_constant(literal: str) -> None:
    raise ValueError(f"it holds {literal}, which is not JSON")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it holds a key twice")
    return found


def _checked(path: Path, checksums: Mapping[str, int] | None) -> bytes:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({_shown(error)}); {_ANEW}") from error
    if checksums is not None and zlib.crc32(data) != checksums[path.name]:
        raise ValueError(
            f"{path}: does not match its checksum in agent.json; {_ANEW} If another program was to change it: "
            "tdmpc2 restamp, or verify=False."
        )
    return data


def _check_interface(path: Path, session: Any, expected: Mapping[str, tuple[int | None, ...]]) -> None:
    """Raises a ValueError unless a graph takes and gives what agent.json says."""
    first = session.get_outputs()[0]
    found = {node.name: node for node in session.get_inputs()} | {f"output {first.name}": first}
    if found.keys() != expected.keys():
        raise ValueError(f"it has {', '.join(sorted(found))}, expected {', '.join(sorted(expected))}")
    for name, shape in expected.items():
        node = found[name]
        kind = "tensor(int64)" if name == "task" else "tensor(float)"
        axes = [axis if isinstance(axis, int) else None for axis in node.shape]
        if node.type != kind or axes != list(shape):
            raise ValueError(f"'{name}' is {node.type} {node.shape}, expected {kind} {list(shape)}")


@contextlib.contextmanager
def _one_kind_of_error(path: Path, what: str) -> Iterator[None]:
    """Turns whatever onnxruntime, json or numpy raise about a file into a ValueError of one line that names it."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path}: {what} ({_shown(error)}); {_ANEW}") from error


def _shown(value: object, limit: int = 200) -> str:
    """A value or an error as part of one line that any terminal can show."""
    if isinstance(value, BaseException):
        text = str(value) if type(value) is ValueError else f"{type(value).__name__}: {value}"
    else:
        text = ascii(value) if isinstance(value, str) else _bounded_repr(value)
    text = text[: limit + 1]
    if not text.isprintable():
        text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= limit else f"{text[:limit]}..."


def _bounded_repr(value: object) -> str:
    """What a value is; of a list or an object no more than that, since it may be of any size and depth."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return reprlib.repr(value)
