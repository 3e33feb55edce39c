"""A critic of the policy's own: its returns, its gradient, and that the student's Q stays as it is."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from extraction_fixtures import HORIZON, STATES, asked, batch, learner
from run_fixtures import tiny_model, tiny_run

from tdmpc2.errors import UserError
from tdmpc2.extraction import ExtractionSettings, critic_loss, imagined, lambda_returns
from tdmpc2.model import two_hot
from tdmpc2.reporting.sinks import read_metrics
from tdmpc2.training.policy_learner import PolicyLearner


@pytest.mark.parametrize("imagine_q", ["mean", "min"])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_its_returns_are_the_weighted_sums_of_n_step_returns(imagine_q: str, lam: float) -> None:
    model, (z, task, gamma, noise) = tiny_model(), asked()
    settings = ExtractionSettings(imagine_horizon=HORIZON, imagine_q=imagine_q, critic_lambda=lam)
    found = imagined(model, z, task, gamma, noise, settings)
    returns = lambda_returns(model, found, task, gamma, settings)
    assert returns.shape == (HORIZON, STATES, 1) and not returns.requires_grad
    q = model.decode(model.q_values(found.latents, found.actions, task, target=True)).detach()
    q = q.mean(0) if imagine_q == "mean" else q.amin(0)
    for state in range(STATES):
        for start in range(HORIZON):
            steps = HORIZON - start
            n_step = [
                sum(float(gamma[state]) ** k * float(found.rewards[start + k, state]) for k in range(n))
                + float(gamma[state]) ** n * float(q[start + n, state])
                for n in range(1, steps + 1)
            ]
            weights = [(1 - lam) * lam**k for k in range(steps - 1)] + [lam ** (steps - 1)]
            expected = sum(w * value for w, value in zip(weights, n_step, strict=True))
            assert float(returns[start, state]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_its_loss_is_the_cross_entropy_and_its_gradient_the_critic_s_alone() -> None:
    model, (z, task, gamma, noise) = tiny_model(), asked()
    settings = ExtractionSettings(imagine_horizon=HORIZON)
    found = imagined(model, z, task, gamma, noise, settings)
    loss = critic_loss(model, found, task, gamma, settings)
    targets = lambda_returns(model, found, task, gamma, settings)
    logits = model.q_values(found.latents[:-1], found.actions[:-1], task)
    hot = two_hot(targets, model.dims.vmin, model.dims.vmax, model.dims.num_bins)
    expected = -(hot * torch.log_softmax(logits, -1)).sum(-1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"q_heads", "task_embedding"}, "the embedding is frozen in an extraction"


def with_critic(average: float = 0.0) -> PolicyLearner:
    settings = ExtractionSettings(imagine_horizon=2, imagine_critic=True, imagine_restarts=1, weight_average=average)
    return learner(settings, lr=1e-3)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_it_learns_beside_the_model_which_stays_as_it_is(average: float) -> None:
    held = with_critic(average)
    before = {name: value.clone() for name, value in held.model.state_dict().items()}
    losses = [float(held.update(batch())["critic_loss"]) for _ in range(25)]
    assert sum(losses[-5:]) < sum(losses[:5])
    changed = {name for name, value in held.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("policy_head.") for name in changed)
    state = held.state_dict()
    for own, name in (("critic", "q_heads"), ("critic_target", "target_q_heads")):
        assert not torch.equal(state[own]["layers.2.weight"], before[f"{name}.layers.2.weight"])
    again = with_critic(average)
    again.load_state_dict(copy.deepcopy(state))
    for one in (held, again):
        one.update(batch())
    for part in ("model", "critic", "critic_target"):
        for name, value in held.state_dict()[part].items():
            assert torch.equal(again.state_dict()[part][name], value), f"{part} {name}"
    assert len(held.optimisers) == 2


def test_a_run_resumes_with_its_critic(tmp_path: Path) -> None:
    tiny_run(tmp_path / "student", "steps=2")
    student = tmp_path / "student" / "checkpoints" / "final.safetensors"
    keys = ("mode=extract", f"checkpoint={student}", "steps=4", "log_freq=1", "imagine_critic=true", "state_freq=2")
    tiny_run(tmp_path / "run", *keys)
    assert tiny_run(tmp_path / "run", *keys, "resume=true").step == 4
    rows = [row for row in read_metrics(tmp_path / "run") if row["category"] == "train"]
    assert all(row["critic_loss"] > 0 for row in rows)
    with pytest.raises(UserError, match="imagine_critic was True and is None"):
        tiny_run(tmp_path / "run", *keys[:4], "resume=true")
    with pytest.raises(UserError, match="imagine_critic=true serves the imagined return"):
        tiny_run(tmp_path / "none", *keys, "e_imagine=0", "e_imitate=1")
