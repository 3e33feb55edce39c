"""Makes tests/golden/objectives_small.npz: `python tests/support/make_objective_golden.py`, from the repository's root.

The losses of the distillation objectives by an independent implementation: numpy in float64, in plain loops over single
vectors, on the tiny student and inputs of make_golden.py and a wider teacher whose weights are drawn here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from make_golden import ACTIONS, RHO, Arrays, Reference, decode, group, make_inputs, make_weights, softmax, two_hot

FILE = Path(__file__).resolve().parents[1] / "golden" / "objectives_small.npz"
TEACHER_LATENT = 24
NOISE = 0.3
"""Of the perturbed actions."""


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max()
    return shifted - np.log(np.exp(shifted).sum())


def make_draws(seed: int) -> Arrays:
    """What the package draws for its questions: uniform in [0, 1) and standard normal, [B, A]; and a projection."""
    rng = np.random.default_rng(seed)
    draws = {
        "uniform": rng.uniform(size=(5, 6)),
        "normal": rng.normal(size=(5, 6)),
        "to_student": rng.normal(size=(16, TEACHER_LATENT)) * 0.3,
        "to_student_bias": rng.normal(size=16) * 0.1,
        "to_teacher": rng.normal(size=(TEACHER_LATENT, 16)) * 0.3,
        "to_teacher_bias": rng.normal(size=TEACHER_LATENT) * 0.1,
    }
    return {name: value.astype(np.float32) for name, value in draws.items()}


def teacher_says(teacher: Reference, batch: Arrays, draws: Arrays) -> Arrays:
    """All that an objective asks for."""
    horizon, count = batch["action"].shape[:2]
    out: dict[str, list[np.ndarray]] = {}
    for b in range(count):
        task, action = int(batch["task"][b]), batch["action"][:, b].astype(np.float64)
        own = np.arange(6) < ACTIONS[task]
        z = [teacher.encode(batch["obs"][t, b], task) for t in range(horizon + 1)]
        uniform = np.where(own, 2 * draws["uniform"][b] - 1, 0)
        perturbed = np.where(own, np.clip(action[0] + NOISE * draws["normal"][b], -1, 1), 0)
        prior = teacher.policy(z[0], task, np.zeros(6))["mean"]
        row = {
            "reward": np.array([decode(teacher.reward(z[t], action[t], task)) for t in range(horizon)]),
            "reward_log_probs": log_softmax(teacher.reward(z[0], action[0], task)),
            "off_data_action": np.stack([uniform, perturbed]),
            "off_data_reward": np.array([decode(teacher.reward(z[0], a, task)) for a in (uniform, perturbed)]),
            "next_latent": teacher.next(z[0], action[0], task),
            "value_action": np.stack([action[0], prior, uniform]),
            "value": np.array(
                [np.mean([decode(teacher.q(z[0], a, task, h)) for h in range(3)]) for a in (action[0], prior, uniform)]
            ),
            "mean": np.stack([teacher.policy(z[t], task, np.zeros(6))["mean"] for t in range(horizon + 1)]),
        }
        for name, value in row.items():
            out.setdefault(name, []).append(value)
    return {name: np.stack(rows) for name, rows in out.items()}


def cosines(rows: np.ndarray) -> np.ndarray:
    """Of every two rows less the mean row, by the definition."""
    centred = rows - rows.mean(0)
    return np.array([[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in centred] for a in centred])


def student_losses(student: Reference, batch: Arrays, says: Arrays, draws: Arrays) -> dict[str, float]:
    """The world model's objectives; what the teacher says is constant to them."""
    horizon, count = batch["action"].shape[:2]
    says, draws = ({name: value.astype(np.float64) for name, value in given.items()} for given in (says, draws))
    losses = dict.fromkeys(
        ("reward", "reward_all", "reward_logits", "reward_off_data", "value", "linear_teacher", "linear_student"), 0.0
    )
    next_latents = []
    for b in range(count):
        task = int(batch["task"][b])
        first = z = student.encode(batch["obs"][0, b], task)
        for t in range(horizon):
            action = batch["action"][t, b].astype(np.float64)
            logits = student.reward(z, action, task)
            error = (decode(logits) - says["reward"][b, t]) ** 2
            losses["reward_all"] += RHO**t * error / (horizon * count)
            if t == 0:
                losses["reward"] += error / count
                wanted = says["reward_log_probs"][b]
                losses["reward_logits"] += float(np.exp(wanted) @ (wanted - log_softmax(logits))) / count
            z = student.next(z, action, task)
            if t == 0:
                next_latents.append(z)
                wanted = says["next_latent"][b]
                narrow = draws["to_student"] @ wanted + draws["to_student_bias"]
                losses["linear_teacher"] += float(((z - narrow) ** 2).mean()) / count
                wide = draws["to_teacher"] @ z + draws["to_teacher_bias"]
                losses["linear_student"] += float(((wide - wanted) ** 2).mean()) / count
        for a, wanted in zip(says["off_data_action"][b], says["off_data_reward"][b], strict=True):
            losses["reward_off_data"] += (decode(student.reward(first, a, task)) - wanted) ** 2 / (2 * count)
        for a, wanted in zip(says["value_action"][b], says["value"][b], strict=True):
            for head in range(3):
                logits = student.q(first, a, task, head)
                losses["value"] -= float(two_hot(wanted) @ np.log(softmax(logits))) / (9 * count)
    difference = cosines(np.stack(next_latents)) - cosines(says["next_latent"])
    losses["relational"] = float((difference**2).sum()) / (count * (count - 1))
    return losses


def policy_loss(student: Reference, latents: np.ndarray, batch: Arrays, says: Arrays) -> float:
    """The policy's objective on rolled-out latents [H+1, B, Z], which are constant to it."""
    steps, count = latents.shape[:2]
    wanted = says["mean"].astype(np.float64)
    total = 0.0
    for t, b in np.ndindex(steps, count):
        task = int(batch["task"][b])
        mean = student.policy(latents[t, b], task, np.zeros(6))["mean"]
        error = (mean - wanted[b, t])[: ACTIONS[task]] ** 2
        total += RHO**t * float(error.mean()) / (steps * count)
    return total


def main() -> None:
    weights, teacher, draws = make_weights(1), make_weights(2, latent=TEACHER_LATENT), make_draws(4)
    batch = group(make_inputs(3), "batch")
    student = Reference(weights)
    says = teacher_says(Reference(teacher), batch, draws)
    losses = student_losses(student, batch, says, draws)
    latents = np.zeros((4, 5, 16))
    for b in range(5):
        latents[0, b] = z = student.encode(batch["obs"][0, b], int(batch["task"][b]))
        for t in range(3):
            latents[t + 1, b] = z = student.next(z, batch["action"][t, b], int(batch["task"][b]))
    losses["policy"] = policy_loss(student, latents, batch, says)
    content = {f"teacher/{name}": value for name, value in teacher.items() if not name.startswith("target")}
    content |= {f"draws/{name}": value for name, value in draws.items()}
    content |= {f"says/{name}": value.astype(np.float32) for name, value in says.items()}
    content |= {f"losses/{name}": np.float32(value) for name, value in losses.items()}
    np.savez_compressed(FILE, **content, latents=latents)
    print(f"{FILE}: {FILE.stat().st_size / 1000:.0f} kB", losses)


if __name__ == "__main__":
    main()
