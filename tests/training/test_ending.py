"""How a run ends: evaluations in its folder, what started it, objectives that learn of their own, controls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from run_fixtures import DUO, tiny_config, tiny_run, tiny_settings
from safetensors.torch import load_file

from tdmpc2 import embedded
from tdmpc2.checkpointing import read_checkpoint
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import UserError
from tdmpc2.evaluation.results import load_json
from tdmpc2.planner import PlannerSettings
from tdmpc2.programs import match_gradient
from tdmpc2.reporting.sinks import read_metrics
from tdmpc2.settings.convert import train_settings
from tdmpc2.tasks import task_set
from tdmpc2.training import evaluate_end

RANDOM = ("teacher=random", "teacher.latent_dim=32", "teacher.mlp_dim=32", "teacher.enc_dim=32")


def test_a_run_ends_with_what_is_asked_and_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("steps=4", "save_freq=2", "final_episodes=1", "evaluate_saved=true", "evaluate_schemes=[fp16,int4]")
    assert tiny_run(tmp_path, *keys).checkpoint is not None
    assert evaluate_end(tiny_settings(tmp_path)) is None, "nothing is asked for"
    settings = tiny_settings(tmp_path, *keys)
    score = evaluate_end(settings)
    names = {path.name for path in tmp_path.glob("evaluation*.json")}
    assert names == {
        *("evaluation.json", "evaluation-prior.json", "evaluation-fp16.json", "evaluation-int4.json"),
        *(f"evaluation-step_0000000{step}{way}.json" for step in (2, 4) for way in ("", "-prior")),
    }
    final = load_json(tmp_path / "evaluation.json")
    assert score == pytest.approx(final.score().value) and len(final.episodes) == 2
    assert final.configuration["mpc"] is True and final.configuration["checkpoint"] == "final.safetensors"
    assert load_json(tmp_path / "evaluation-prior.json").configuration["mpc"] is False
    half = tmp_path / "checkpoints" / "final-fp16.safetensors"
    assert read_checkpoint(half).stored_as == "float16" and half.stat().st_size * 2 < 5_000_000
    # The same weights: the last saved checkpoint is the final one.
    assert load_json(tmp_path / "evaluation-step_00000004.json").returns() == final.returns()

    (tmp_path / "evaluation-int4.json").unlink()
    (tmp_path / "evaluation-prior.json").write_text("{")
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names - {"evaluation-int4.json"}}
    capsys.readouterr()
    assert evaluate_end(settings) == score
    assert {path.name for path in tmp_path.glob("evaluation*.json")} == names
    changed = {name for name, time in before.items() if (tmp_path / name).stat().st_mtime_ns != time}
    assert changed == {"evaluation-prior.json"}, "a damaged one is made again, whole ones are kept"
    assert evaluate_end(tiny_settings(tmp_path, *keys, "num_samples=4")) is not None
    assert load_json(tmp_path / "evaluation.json").configuration["planner"]["num_samples"] == 4


def test_the_last_evaluation_between_updates_is_the_score_of_a_run_that_ends_with_none(tmp_path: Path) -> None:
    keys = ("steps=2", "eval_freq=1", "eval_episodes=1", "mpc=false")
    tiny_run(tmp_path, *keys)
    scores = [row["normalised_score"] for row in read_metrics(tmp_path) if row["category"] == "eval"]
    assert len(scores) > 1 and evaluate_end(tiny_settings(tmp_path, *keys)) == scores[-1]
    assert evaluate_end(tiny_settings(tmp_path / "other", *keys)) is None, "a run that has not logged anything"


@pytest.mark.parametrize("keys", [("evaluate_schemes=[int3]",), ("final_episodes=-1",)])
def test_an_end_that_cannot_be(tmp_path: Path, keys: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"scheme=int3 is unknown|final_episodes must be at least 0"):
        tiny_settings(tmp_path, *keys)


def test_what_started_a_run_is_kept(tmp_path: Path) -> None:
    tiny_run(tmp_path, "steps=2")
    tiny_run(tmp_path, "steps=4", "resume=true")
    record = json.loads((tmp_path / "run.json").read_text())
    assert [start["from_step"] for start in record["starts"]] == [0, 2] and record["ended"]["updates"] == 4
    start = record["starts"][1]
    assert start["command"] and start["machine"]["device"] == "cpu" and "torch" in start["versions"]
    assert start["commit"] is None or len(start["commit"]) == 40
    (tmp_path / "run.json").write_text('{"format": "tdmpc2-run"')
    tiny_run(tmp_path, "steps=5", "resume=true")
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 1, "a damaged record begins anew"


def test_what_an_objective_fits_and_learns_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    keys = (*RANDOM, "d_latent_pca=0.4", "d_latent_linear=0.4", "d_reward_off_data=0.4", "pca_batches=8")
    tiny_run(tmp_path / "whole", *keys, "steps=6")
    tiny_run(tmp_path / "parts", *keys, "steps=3")
    tiny_run(tmp_path / "parts", *keys, "steps=6", "resume=true")
    for name in ("checkpoints/final.safetensors", "objectives.safetensors"):
        whole, parts = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
        assert whole.keys() == parts.keys() and all(torch.equal(whole[n], parts[n]) for n in whole), name
    held = load_file(tmp_path / "whole" / "objectives.safetensors")
    rows = held["d_latent_pca.components"]
    torch.testing.assert_close(rows @ rows.T, torch.eye(32), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match=r"d_latent_pca was 0\.4 and is 0\.1"):
        tiny_run(tmp_path / "parts", *keys, "d_latent_pca=0.1", "steps=9", "resume=true")


def test_arms_of_a_seed_share_data_and_first_weights(tmp_path: Path) -> None:
    """Before its weights differ, an arm's own losses are those of the run from scratch."""
    tiny_run(tmp_path / "scratch", "steps=1", "log_freq=1")
    arms = (*RANDOM, "d_value=0.1", "d_policy=1", "d_reward_all=0.4"), ("teacher=dataset", "d_coef=0.4")
    (plain,) = read_metrics(tmp_path / "scratch")
    for number, keys in enumerate(arms):
        tiny_run(tmp_path / str(number), *keys, "steps=1", "log_freq=1")
        (found,) = read_metrics(tmp_path / str(number))
        for name in ("consistency_loss", "reward_loss", "value_loss", "original_loss"):
            assert found[name] == plain[name], name


def test_the_dataset_in_a_teacher_s_place(tmp_path: Path) -> None:
    tiny_run(tmp_path / "a", "teacher=dataset", "steps=2", "log_freq=1")
    assert all(row["distillation_loss"] > 0 for row in read_metrics(tmp_path / "a"))
    for keys, message in (
        (("d_value=0.1",), "d_value asks more of a teacher than the rewards that teacher=dataset has"),
        (("teacher.checkpoint=x.pt",), "teacher.checkpoint is set, but teacher=dataset trains without one"),
    ):
        with pytest.raises(UserError, match=message):
            tiny_run(tmp_path / "b", "teacher=dataset", "steps=2", *keys)
    with pytest.raises(UserError, match="teacher weights was"):
        tiny_run(tmp_path / "a", *RANDOM, "steps=4", "resume=true")


def test_the_reward_coef_of_a_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match_gradient, "BATCHES", 3)
    tiny_run(tmp_path, "steps=2")
    checkpoint = tmp_path / "checkpoints" / "final.safetensors"
    settings = train_settings(tiny_config(f"checkpoint={checkpoint}", "teacher=dataset"), tmp_path / "none")
    store = EpisodeStore.open(settings.data_dir)
    matched, alone, together = match_gradient.matched_reward_coef(settings, store, 0.4)
    assert matched == pytest.approx(0.1 * together / alone) and together != alone
    assert match_gradient.matched_reward_coef(settings, store, 0.0)[0] == pytest.approx(0.1)
    assert match_gradient.matched_reward_coef(settings, store, 4.0)[0] > matched


def test_the_embedded_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = embedded.TEACHER.name
    parts = (
        embedded.Collection("oscillate", 1, 0.1),
        embedded.Collection("prior", 1, 0.3, agent),
        embedded.Collection("planner", 1, 0.0, agent),
    )
    monkeypatch.setattr(embedded, "PLANNER", PlannerSettings(iterations=1, num_samples=8, num_elites=4, num_pi_trajs=2))
    monkeypatch.setattr(embedded, "COLLECTIONS", parts)
    monkeypatch.setattr(embedded, "default_workers", lambda: 0)
    tasks = task_set("quickstart")
    store = embedded.embedded_store(tmp_path / "data", tasks)
    assert store.path == embedded.embedded_folder(tmp_path / "data") and len(store) == 9
    again = embedded.embedded_store(tmp_path / "data", tasks)
    assert again.fingerprint == store.fingerprint, "it is made once"
    other = embedded.embedded_store(tmp_path / "elsewhere", tasks)
    assert other.fingerprint == store.fingerprint, "and the same anywhere"
    with pytest.raises(UserError, match=r"make_data=true makes data of cartpole-swingup, .* alone .*not of 'duo'"):
        embedded.embedded_store(tmp_path / "data", DUO)
