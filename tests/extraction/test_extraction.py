"""Extraction of a policy: the imagined return, what an update changes, and runs of mode=extract."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from extraction_fixtures import HORIZON, STATES, asked, batch, learner
from run_fixtures import tiny_model, tiny_run
from safetensors.torch import load_file

from tdmpc2.errors import UserError
from tdmpc2.extraction import ExtractionSettings, Imagined, imagined
from tdmpc2.model import WorldModel
from tdmpc2.reporting.sinks import read_metrics
from tdmpc2.training import policy_learner


@pytest.mark.parametrize("imagine_q", ["mean", "min"])
def test_the_imagined_return_is_the_discounted_sum_of_what_the_model_says(imagine_q: str) -> None:
    model, (z, task, gamma, noise) = tiny_model(), asked()
    settings = ExtractionSettings(imagine_horizon=HORIZON, imagine_q=imagine_q, imagine_spread=0.5)
    found = imagined(model, z, task, gamma, noise, settings)
    for state in range(STATES):  # one at a time, step by step
        latent, ids = z[state : state + 1], task[state : state + 1]
        total, entropies = 0.0, []
        for step in range(HORIZON + 1):
            sample = model.sample_policy(latent, ids, noise[step, state : state + 1])
            entropies.append(float(sample.scaled_entropy.detach()))
            weight = float(gamma[state]) ** step
            if step == HORIZON:
                q = model.decode(model.q_values(latent, sample.action, ids)).flatten()
                end = q.mean() if imagine_q == "mean" else q.min()
                total += weight * float(end - 0.5 * q.std())
            else:
                total += weight * float(model.decode(model.reward(latent, sample.action, ids)))
                latent = model.next(latent, sample.action, ids)
        assert float(found.value[state]) == pytest.approx(total, rel=1e-4, abs=1e-5)
    assert float(found.spread) > 0


def test_its_gradient_is_that_of_finite_differences() -> None:
    """Through rewards, dynamics and the terminal Q of all steps, and of the policy head alone."""
    model, (z, task, gamma, noise) = tiny_model().double(), asked()
    z, gamma, noise = z.double(), gamma.double(), noise.double()
    settings = ExtractionSettings(imagine_horizon=HORIZON)
    parameters = list(model.policy_head.parameters())
    value = imagined(model, z, task, gamma, noise, settings).value.mean()
    found = torch.autograd.grad(value, parameters)
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    slope = sum(float((g * d).sum()) for g, d in zip(found, direction, strict=True))
    values = []
    with torch.no_grad():
        for by in (1e-4, -2e-4):
            for p, d in zip(parameters, direction, strict=True):
                p.add_(by * d)
            values.append(float(imagined(model, z, task, gamma, noise, settings).value.mean()))
    assert slope == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-2) and slope != 0


@pytest.mark.parametrize("pi_scale", ["batch", "task"])
def test_updates_raise_the_imagined_return_and_leave_the_model_as_it_is(pi_scale: str) -> None:
    held = learner(lr=1e-2, pi_scale=pi_scale)
    before = {name: value.clone() for name, value in held.model.state_dict().items()}
    metrics = [held.update(batch()) for _ in range(50)]
    assert float(metrics[-1]["imagined_return"]) > float(metrics[0]["imagined_return"])
    changed = {name for name, value in held.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("policy_head.") for name in changed)
    (group,) = held.optimiser.param_groups
    assert group["lr"] == pytest.approx(1e-2 / 50), "the last update's: it falls to nothing after it"


def test_restarts_begin_where_the_policy_came_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts of the second time are the first one's last states, and all of them count alike in the loss."""
    model, (z, task, gamma, noise) = tiny_model(), asked()
    first = imagined(model, z, task, gamma, noise, ExtractionSettings(imagine_horizon=HORIZON))
    latent = z
    for drawn in noise[:-1]:
        latent = model.next(latent, model.sample_policy(latent, task, drawn).action, task)
    torch.testing.assert_close(first.latents[-1], latent)
    assert not first.latents.requires_grad

    begun: list[torch.Tensor] = []

    def watched(model: WorldModel, z: torch.Tensor, *given: Any) -> Imagined:
        begun.append(z)
        return imagined(model, z, *given)

    monkeypatch.setattr(policy_learner, "imagined", watched)
    settings = ExtractionSettings(imagine_horizon=2, imagine_restarts=2)
    held, plain = learner(settings, lr=1e-2), learner(lr=1e-2)
    metrics, without = held.update(batch()), plain.update(batch())
    assert [tuple(z.shape) for z in begun] == [(32, tiny_model().dims.latent_dim)] * 4
    assert torch.equal(begun[0], begun[3]), "the batch's own"
    assert not torch.equal(begun[0], begun[1]) and not torch.equal(begun[1], begun[2])
    assert float(metrics["imagined_return"]) != float(without["imagined_return"])


def test_the_average_is_kept_beside_the_weights_that_are_trained() -> None:
    held, plain = learner(ExtractionSettings(imagine_horizon=2, weight_average=0.5), lr=1e-2), learner(lr=1e-2)
    expected = [p.detach().clone() for p in plain.model.policy_head.parameters()]
    frozen = {id(p) for name, p in held.model.named_parameters() if not name.startswith("policy_head.")}
    for done in range(1, 13):
        for one in (held, plain):
            one.update(batch())
        decay = min(0.5, (1 + done) / (10 + done))
        trained = [p.detach() for p in plain.model.policy_head.parameters()]
        expected = [decay * a + (1 - decay) * p for a, p in zip(expected, trained, strict=True)]
    for found, average in zip(held.model.policy_head.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), average)
    state = held.state_dict()
    for name, value in plain.model.policy_head.state_dict().items():
        assert torch.equal(state["policy"][name], value), "updates do not see the average"
    assert {id(p) for name, p in held.model.named_parameters() if not name.startswith("policy_head.")} == frozen
    again = learner(ExtractionSettings(imagine_horizon=2, weight_average=0.5), lr=1e-2)
    again.load_state_dict(copy.deepcopy(state))
    for one in (held, again):
        one.update(batch())
    for name, value in held.state_dict()["model"].items():
        assert torch.equal(again.state_dict()["model"][name], value), name


def last(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "final.safetensors")


def test_a_run_extracts_resumes_and_ends_as_an_ordinary_checkpoint(tmp_path: Path) -> None:
    tiny_run(tmp_path / "student", "steps=2")
    student = tmp_path / "student" / "checkpoints" / "final.safetensors"
    keys = ("mode=extract", f"checkpoint={student}", "steps=6", "log_freq=1", "state_freq=2", "pi_scale=task")
    tiny_run(tmp_path / "whole", *keys, "final_episodes=1", "eval_episodes=1", "mpc=false", "eval_freq=6")
    before, after = last(tmp_path / "student"), last(tmp_path / "whole")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert changed == {name for name in before if name.startswith("policy_head.")}
    rows = [row for row in read_metrics(tmp_path / "whole") if row["category"] == "train"]
    assert len(rows) == 6 and {"imagined_return", "pi_loss", "pi_scale", "q_spread"} <= rows[0].keys()

    with pytest.raises(UserError, match="updates was 6 and is 7"):
        tiny_run(tmp_path / "whole", *keys[:2], "steps=7", "resume=true", *keys[3:])
    with pytest.raises(UserError, match="needs a trained model"):
        tiny_run(tmp_path / "none", "mode=extract")
    with pytest.raises(UserError, match="nothing to learn"):
        tiny_run(tmp_path / "none", *keys, "e_imagine=0")
    with pytest.raises(UserError, match="d_value trains the world model"):
        tiny_run(tmp_path / "none", *keys, "teacher=random", "teacher.mlp_dim=32", "d_coef=0", "d_value=1")


def test_the_teacher_s_prior_is_another_thing_to_learn_from(tmp_path: Path) -> None:
    tiny_run(tmp_path / "student", "steps=2")
    student = tmp_path / "student" / "checkpoints" / "final.safetensors"
    dims = ("teacher=1M", "teacher.enc_dim=32", "teacher.mlp_dim=32", "teacher.latent_dim=32")
    teacher = (*dims, f"teacher.checkpoint={student}", "d_coef=0", "d_policy=1", "e_imagine=0")
    tiny_run(tmp_path / "run", "mode=extract", f"checkpoint={student}", "steps=2", "log_freq=1", *teacher)
    rows = [row for row in read_metrics(tmp_path / "run") if row["category"] == "train"]
    assert rows[0]["d_policy_loss"] == pytest.approx(0, abs=1e-9), "it is its own teacher"
