"""Makes tests/golden/model_small.npz: `python tests/support/make_golden.py`, from the repository's root.

The figures come from the implementation below, not from the package: numpy in float64, one vector at a time in plain
loops, written from the formulas of TD-MPC2 (arXiv 2310.16828) and TD-MPC-Opt (arXiv 2507.01823). The model is tiny,
knows three tasks of different widths and has three Q heads; its weights are drawn here. `math_part.npz` and
`running_scale.npz` are figures of the public reference programs and are only stored, not made here.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

FILE = Path(__file__).resolve().parents[1] / "golden" / "model_small.npz"
TASKS = ("walker-walk", "cup-catch", "pendulum-spin")
ACTIONS = (6, 2, 1)
DIMS = {
    "obs_dim": 24,
    "action_dim": 6,
    "num_tasks": 3,
    "enc_dim": 16,
    "mlp_dim": 24,
    "latent_dim": 16,
    "num_enc_layers": 2,
    "num_q": 3,
    "task_dim": 5,
    "dropout": 0.0,
}
GAMMA = (0.99, 0.97, 0.95)
BINS = np.linspace(-10, 10, 101)
RHO, CONSISTENCY, REWARD, VALUE, D_COEF, ENTROPY = 0.5, 20.0, 0.1, 0.1, 0.4, 1e-4
PLAN = {"horizon": 3, "iterations": 3, "num_samples": 16, "num_elites": 5, "num_pi_trajs": 3}
MIN_STD, MAX_STD, TEMPERATURE = 0.05, 2.0, 0.5

Arrays = dict[str, np.ndarray]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def symlog(x: float) -> float:
    return float(np.sign(x) * np.log(1 + abs(x)))


def symexp(x: float) -> float:
    return float(np.sign(x) * (np.exp(abs(x)) - 1))


def two_hot(x: float) -> np.ndarray:
    """By the definition: the weight of a bin falls off linearly over one bin's width."""
    distance = np.abs(BINS - np.clip(symlog(x), -10, 10)) / 0.2
    return np.clip(1 - distance, 0, None)


def decode(logits: np.ndarray) -> float:
    return symexp(float(softmax(logits) @ BINS))


def cross_entropy(logits: np.ndarray, target: float) -> float:
    shifted = logits - logits.max()
    return float(-(two_hot(target) @ (shifted - np.log(np.exp(shifted).sum()))))


def make_weights(seed: int, latent: int = 16) -> Arrays:
    """Weights large enough for outputs to differ; the first embedding row is longer than its limit."""
    rng = np.random.default_rng(seed)
    z, e, h, a, q = latent, 5, 24, 6, 3
    shapes: dict[str, tuple[int, ...]] = {"task_embedding": (3, e)}

    def mlp(part: str, widths: list[int], normed_output: bool, heads: tuple[int, ...] = ()) -> None:
        for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
            shapes[f"{part}.layers.{i}.weight"] = (*heads, n_out, n_in)
            shapes[f"{part}.layers.{i}.bias"] = (*heads, n_out)
            if i < len(widths) - 2 or normed_output:
                shapes[f"{part}.layers.{i}.norm_weight"] = (*heads, n_out)
                shapes[f"{part}.layers.{i}.norm_bias"] = (*heads, n_out)

    mlp("encoder", [24 + e, 16, z], True)
    mlp("dynamics", [z + e + a, h, h, z], True)
    mlp("reward_head", [z + e + a, h, h, 101], False)
    mlp("policy_head", [z + e, h, h, 2 * a], False)
    mlp("q_heads", [z + e + a, h, h, 101], False, (q,))
    mlp("target_q_heads", [z + e + a, h, h, 101], False, (q,))
    weights = {}
    for name, shape in shapes.items():
        centre = 1.0 if name.endswith("norm_weight") else 0.0
        weights[name] = (centre + 0.4 * rng.normal(size=shape)).astype(np.float32)
    rows = weights["task_embedding"]
    rows *= np.array([[1.7], [0.6], [0.9]], np.float32) / np.linalg.norm(rows, axis=1, keepdims=True)
    return weights


class Reference:
    """A world model on single vectors."""

    def __init__(self, weights: Arrays) -> None:
        self.w = {name: value.astype(np.float64) for name, value in weights.items()}

    def embed(self, task: int) -> np.ndarray:
        row = self.w["task_embedding"][task]
        norm = float(np.linalg.norm(row))
        return row / (norm + 1e-7) if norm > 1 else row

    def mlp(self, part: str, x: np.ndarray, normed_output: bool = False, head: int | None = None) -> np.ndarray:
        count = sum(name.startswith(part + ".") and name.endswith(".weight") for name in self.w)
        for i in range(count):
            leaf = {n: self.w.get(f"{part}.layers.{i}.{n}") for n in ("weight", "bias", "norm_weight", "norm_bias")}
            if head is not None:
                leaf = {n: None if v is None else v[head] for n, v in leaf.items()}
            weight, bias = leaf["weight"], leaf["bias"]
            assert weight is not None and bias is not None
            x = weight @ x + bias
            if i == count - 1 and not normed_output:
                return x
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * leaf["norm_weight"] + leaf["norm_bias"]
            if i == count - 1:
                return np.concatenate([softmax(group) for group in x.reshape(-1, 8)])
            x = x * np.tanh(np.log1p(np.exp(x)))
        raise AssertionError(part)

    def encode(self, obs: np.ndarray, task: int) -> np.ndarray:
        return self.mlp("encoder", np.concatenate([obs, self.embed(task)]), True)

    def _joined(self, z: np.ndarray, action: np.ndarray, task: int) -> np.ndarray:
        return np.concatenate([z, self.embed(task), action])

    def next(self, z: np.ndarray, action: np.ndarray, task: int) -> np.ndarray:
        return self.mlp("dynamics", self._joined(z, action, task), True)

    def reward(self, z: np.ndarray, action: np.ndarray, task: int) -> np.ndarray:
        return self.mlp("reward_head", self._joined(z, action, task))

    def q(self, z: np.ndarray, action: np.ndarray, task: int, head: int, target: bool = False) -> np.ndarray:
        return self.mlp("target_q_heads" if target else "q_heads", self._joined(z, action, task), head=head)

    def policy(self, z: np.ndarray, task: int, noise: np.ndarray) -> Arrays:
        """The prior's distribution and sample; actions that the task does not have are 0 throughout."""
        out = self.mlp("policy_head", np.concatenate([z, self.embed(task)]))
        own = np.arange(6) < ACTIONS[task]
        mean = np.where(own, out[:6], 0)
        log_std = np.where(own, -10 + 0.5 * 12 * (np.tanh(out[6:]) + 1), 0)
        eps = np.where(own, noise, 0)
        action = np.tanh(mean + eps * np.exp(log_std))
        gaussian = sum(-0.5 * eps[i] ** 2 - log_std[i] - 0.5 * np.log(2 * np.pi) for i in range(6))
        squash = sum(np.log(max(1 - action[i] ** 2, 0) + 1e-6) for i in range(6))
        return {
            "mean": np.tanh(mean),
            "log_std": log_std,
            "action": action,
            "log_prob": np.array([gaussian - squash]),
            "scaled_entropy": np.array([-gaussian * ACTIONS[task]]),
        }

    def value(
        self, z: np.ndarray, actions: np.ndarray, task: int, terminal: np.ndarray, heads: tuple[int, int]
    ) -> float:
        """Discounted rewards of one action sequence [H, A] and the terminal value, mean of two heads."""
        total, discount = 0.0, 1.0
        for action in actions:
            total += discount * decode(self.reward(z, action, task))
            z = self.next(z, action, task)
            discount *= GAMMA[task]
        last = self.policy(z, task, terminal)["action"]
        return total + discount * sum(decode(self.q(z, last, task, head)) for head in heads) / 2

    def plan(self, obs: np.ndarray, task: int, warm: np.ndarray, noise: Arrays) -> Arrays:
        """One decision of MPPI for one environment, exploring."""
        horizon, samples, trajectories = PLAN["horizon"], PLAN["num_samples"], PLAN["num_pi_trajs"]
        own = np.arange(6) < ACTIONS[task]
        start = self.encode(obs, task)
        candidates = np.zeros((samples, horizon, 6))
        for p in range(trajectories):
            z = start
            for t in range(horizon):
                candidates[p, t] = self.policy(z, task, noise["prior"][t, p])["action"]
                z = self.next(z, candidates[p, t], task)
        mean, std = np.where(own, warm, 0), np.where(own, np.full((horizon, 6), MAX_STD), 0)
        all_candidates, all_values = [], []
        for i in range(PLAN["iterations"]):
            for s in range(trajectories, samples):
                drawn = mean + std * noise["samples"][i, :, s - trajectories]
                candidates[s] = np.where(own, np.clip(drawn, -1, 1), 0)
            order = np.argsort(-noise["heads"][i])
            heads = (int(order[0]), int(order[1]))
            values = np.array(
                [self.value(start, candidates[s], task, noise["terminal"][i, s], heads) for s in range(samples)]
            )
            all_candidates.append(candidates.copy())
            all_values.append(values)
            best = np.argsort(-values)[: PLAN["num_elites"]]
            weight = np.exp(TEMPERATURE * (values[best] - values[best].max()))
            weight /= weight.sum()
            mean = sum(w * candidates[s] for w, s in zip(weight, best, strict=True))
            spread = sum(w * (candidates[s] - mean) ** 2 for w, s in zip(weight, best, strict=True))
            std = np.where(own, np.clip(np.sqrt(spread), MIN_STD, MAX_STD), 0)
        rank, reached = 0, weight[0]
        while noise["elite"] >= reached:
            rank += 1
            reached += weight[rank]
        action = np.clip(candidates[best[rank], 0] + std[0] * noise["action"], -1, 1)
        return {
            "candidates": np.stack(all_candidates).transpose(0, 2, 1, 3),
            "values": np.stack(all_values),
            "mean": mean,
            "action": action,
            "greedy": candidates[best[rank], 0],
        }

    def td_targets(self, batch: Arrays, noise: Arrays) -> np.ndarray:
        targets = np.zeros(batch["reward"].shape)
        for t, b in np.ndindex(*targets.shape[:2]):
            task = int(batch["task"][b])
            z = self.encode(batch["obs"][t + 1, b], task)
            action = self.policy(z, task, noise["target_action"][t, b])["action"]
            lowest = min(decode(self.q(z, action, task, int(h), target=True)) for h in noise["target_heads"])
            targets[t, b, 0] = float(batch["reward"][t, b, 0]) + GAMMA[task] * lowest
        return targets

    def world_losses(self, batch: Arrays, targets: np.ndarray, next_z: np.ndarray, taught: np.ndarray) -> Arrays:
        """The world model's losses; `targets`, `next_z` and the teacher's rewards are constants to them."""
        horizon, count = batch["action"].shape[:2]
        consistency = reward = value = distillation = 0.0
        latents = np.zeros((horizon + 1, count, next_z.shape[-1]))
        for b in range(count):
            task = int(batch["task"][b])
            latents[0, b] = z = self.encode(batch["obs"][0, b], task)
            for t in range(horizon):
                action, share = batch["action"][t, b], RHO**t / (horizon * count)
                logits = self.reward(z, action, task)
                reward += share * cross_entropy(logits, batch["reward"][t, b, 0])
                if t == 0:
                    distillation += (decode(logits) - float(taught[b, 0])) ** 2 / count
                for head in range(3):
                    value += share / 3 * cross_entropy(self.q(z, action, task, head), targets[t, b, 0])
                latents[t + 1, b] = z = self.next(z, action, task)
                consistency += share * float(((z - next_z[t, b]) ** 2).mean())
        original = CONSISTENCY * consistency + REWARD * reward + VALUE * value
        figures = {
            "consistency": consistency,
            "reward": reward,
            "value": value,
            "original": original,
            "distillation": distillation,
            "total": original + D_COEF * distillation,
        }
        return {"latents": latents, **{name: np.array(figure) for name, figure in figures.items()}}

    def policy_loss(self, latents: np.ndarray, task: np.ndarray, noise: Arrays, scale: float | None = None) -> Arrays:
        """The policy's loss; the scale is one step from 1 by 0.01 unless it is given."""
        steps, count = latents.shape[:2]
        q, entropy = np.zeros((steps, count)), np.zeros((steps, count))
        for t, b in np.ndindex(steps, count):
            sample = self.policy(latents[t, b], int(task[b]), noise["policy_action"][t, b])
            entropy[t, b] = sample["scaled_entropy"][0]
            for head in noise["policy_heads"]:
                q[t, b] += decode(self.q(latents[t, b], sample["action"], int(task[b]), int(head))) / 2
        if scale is None:
            scale = running_scale(1.0, q[0])
        decay = RHO ** np.arange(steps)
        loss = -(decay * (q / scale + ENTROPY * entropy).mean(1)).mean()
        return {"loss": np.array(loss), "scale": np.array(scale)}


def running_scale(scale: float, q: np.ndarray, tau: float = 0.01) -> float:
    low, high = np.percentile(q, [5, 95])
    return scale + tau * (max(high - low, 1.0) - scale)


def make_inputs(seed: int) -> Arrays:
    """Everything random, under the names of the package's noise classes; masked and padded where a task is narrow."""
    rng = np.random.default_rng(seed)
    h, n, b = PLAN["horizon"], 3, 5
    i, s, p = PLAN["iterations"], PLAN["num_samples"], PLAN["num_pi_trajs"]
    task = np.array([0, 1, 2, 0, 1])
    own = np.arange(6) < np.array(ACTIONS)[task][:, None]
    figures = {
        "batch/obs": rng.normal(size=(h + 1, b, 24)),
        "batch/action": rng.uniform(-1, 1, size=(h, b, 6)) * own,
        "batch/reward": rng.uniform(-1, 2, size=(h, b, 1)),
        "update/target_action": rng.normal(size=(h, b, 6)),
        "update/policy_action": rng.normal(size=(h + 1, b, 6)),
        "plan/obs": rng.normal(size=(n, 24)),
        "plan/warm": rng.uniform(-0.5, 0.5, size=(n, h, 6)),
        "plan/prior": rng.normal(size=(n, h, p, 6)),
        "plan/samples": rng.normal(size=(n, i, h, s - p, 6)),
        "plan/terminal": rng.normal(size=(n, i, s, 6)),
        "plan/heads": rng.uniform(size=(n, i, 3)),
        "plan/elite": rng.uniform(size=n),
        "plan/action": rng.normal(size=(n, 6)),
    }
    inputs = {name: value.astype(np.float32) for name, value in figures.items()}
    whole = {
        "batch/task": task,
        "update/target_heads": np.array([2, 0]),
        "update/policy_heads": np.array([1, 2]),
        "plan/task": np.array([0, 1, 2]),
    }
    return {**inputs, **whole}


def group(figures: Arrays, prefix: str) -> Arrays:
    return {name.split("/", 1)[1]: value for name, value in figures.items() if name.startswith(prefix + "/")}


def reference_figures(weights: Arrays, teacher: Arrays, inputs: Arrays) -> Arrays:
    """What the package must reach, under `model/`, `plan_out/` and `losses/`."""
    model, batch, update, plan = Reference(weights), *(group(inputs, k) for k in ("batch", "update", "plan"))
    task, zeros = batch["task"], np.zeros(6)
    out: dict[str, list[np.ndarray]] = {}
    for b in range(len(task)):
        z = model.encode(batch["obs"][0, b], int(task[b]))
        action = batch["action"][0, b]
        row = {
            "z": z,
            "next_z": model.next(z, action, int(task[b])),
            "reward_logits": model.reward(z, action, int(task[b])),
            "reward": np.array([decode(model.reward(z, action, int(task[b])))]),
            "q_logits": np.stack([model.q(z, action, int(task[b]), h) for h in range(3)]),
            "target_q_logits": np.stack([model.q(z, action, int(task[b]), h, target=True) for h in range(3)]),
            **{f"pi0_{k}": v for k, v in model.policy(z, int(task[b]), zeros).items()},
            **{f"pi_{k}": v for k, v in model.policy(z, int(task[b]), update["policy_action"][0, b]).items()},
        }
        for name, figure in row.items():
            out.setdefault(f"model/{name}", []).append(figure)
    for n in range(3):
        own = {name: value[n] for name, value in plan.items()}
        for name, figure in model.plan(own["obs"], int(own["task"]), own["warm"], own).items():
            out.setdefault(f"plan_out/{name}", []).append(figure)
    figures = {name: np.stack(rows) for name, rows in out.items()}
    other = Reference(teacher)
    taught = []
    for b in range(len(task)):
        z = other.encode(batch["obs"][0, b], int(task[b]))
        taught.append([decode(other.reward(z, batch["action"][0, b], int(task[b])))])
    next_z = np.array(
        [[model.encode(batch["obs"][t + 1, b], int(task[b])) for b in range(len(task))] for t in range(3)]
    )
    targets = model.td_targets(batch, update)
    losses = model.world_losses(batch, targets, next_z, np.array(taught))
    policy = model.policy_loss(losses["latents"], task, update)
    losses |= {"td_target": targets, "next_z": next_z, "teacher_reward": np.array(taught)}
    losses |= {f"pi_{name}": value for name, value in policy.items()}
    return figures | {f"losses/{name}": value for name, value in losses.items()}


def main() -> None:
    weights, inputs = make_weights(1), make_inputs(3)
    used = ("task_embedding", "encoder.", "reward_head.")
    teacher = {name: value for name, value in make_weights(2, latent=24).items() if name.startswith(used)}
    figures = reference_figures(weights, teacher, inputs)
    content = {f"weights/{k}": v for k, v in weights.items()} | {f"teacher/{k}": v for k, v in teacher.items()}
    np.savez_compressed(FILE, **content, **inputs, **{k: v.astype(np.float32) for k, v in figures.items()})
    print(f"{FILE}: {FILE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
