"""Agents as folders and on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import yaml
from model_fixtures import SMALL_PLAN, small_model, small_tasks

from tdmpc2.agent import Agent, load_agent
from tdmpc2.checkpointing import read_checkpoint
from tdmpc2.errors import CheckpointError, UserError
from tdmpc2.evaluation.results import EpisodeResult, EvaluationResult, this_machine
from tdmpc2.pretrained import fetched

WORDS = {"data": "Episodes of random actions.", "licence": "mit"}


def agent() -> Agent:
    return Agent(small_model(), small_tasks(), SMALL_PLAN)


def evaluation(tasks: tuple[str, ...], name: str = "small") -> EvaluationResult:
    episodes = tuple(
        EpisodeResult(task, number, 7 + number, 100.0 * (1 + number), 500) for task in tasks for number in range(2)
    )
    return EvaluationResult("an agent", name, tasks, episodes, {}, this_machine("cpu"), 1.0, 1_000)


def test_a_folder_holds_all_that_is_needed(tmp_path: Path) -> None:
    given, folder = agent(), tmp_path / "agent"
    given.save_pretrained(folder, **WORDS)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    for place in (folder, str(folder), folder / "model.safetensors"):
        assert load_agent(place, device="cpu").checksum() == given.checksum()
    given.save_pretrained(folder, **WORDS)  # written anew


def test_weights_that_another_program_wrote_anew(tmp_path: Path) -> None:
    """As `save_file(load_file(…))` does, which knows nothing of metadata."""
    given = agent()
    given.save_pretrained(tmp_path, **WORDS)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file(tensors, file)
    found = load_agent(tmp_path, device="cpu")
    assert found.checksum() == given.checksum() and found.task_set == given.task_set
    safetensors.torch.save_file({name: tensor + 1 for name, tensor in tensors.items()}, file)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="metadata is damaged"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="without this project's metadata"):
        read_checkpoint(tmp_path)


def card(folder: Path) -> tuple[dict[str, Any], str]:
    _, facts, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(facts), text


def test_a_model_card_says_scores_data_licence_and_planner(tmp_path: Path) -> None:
    given = agent()
    given.save_pretrained(tmp_path, **WORDS, result=evaluation(given.task_set.tasks))
    facts, text = card(tmp_path)
    assert facts["license"] == "mit" and facts["library_name"] == "tdmpc2"
    (result,) = facts["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "normalised_score", "value": 15.0}
    assert "Normalised score 15.00 (95% interval" in text and "| walker-walk | 150.0 | 2 |" in text
    assert "Episodes of random actions." in text and f"{SMALL_PLAN.num_samples} samples" in text
    given.save_pretrained(tmp_path, **WORDS)
    facts, text = card(tmp_path)
    assert "model-index" not in facts and "## Scores" not in text


def test_a_card_that_cannot_be(tmp_path: Path) -> None:
    for wrong in ("data", "licence"):
        with pytest.raises(UserError, match=f"{wrong} is empty"):
            agent().save_pretrained(tmp_path, **{**WORDS, wrong: " "})
    with pytest.raises(UserError, match="the evaluation is of cup-spin, expected tasks of 'small'"):
        agent().save_pretrained(tmp_path, **WORDS, result=evaluation(("cup-spin",)))
    assert not list(tmp_path.iterdir())


def test_an_agent_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = agent()
    given.save_pretrained(tmp_path / "repository", **WORDS)
    asked: list[tuple[str, str, str | None]] = []

    def download(repository: str, path: str, *, revision: str | None) -> str:
        asked.append((repository, path, revision))
        return str(tmp_path / "repository" / path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for address in ("hf://me/small", "hf://me/small@v1/model.safetensors"):
        assert load_agent(address, device="cpu").checksum() == given.checksum()
    assert fetched("hf://me/small/multitask/a.pt").name == "a.pt"
    assert asked == [
        ("me/small", "model.safetensors", None),
        ("me/small", "model.safetensors", "v1"),
        ("me/small", "multitask/a.pt", None),
    ]
    for address in ("hf://", "hf://me", "hf://me/", "hf://me/small@/x"):
        with pytest.raises(UserError, match="expected hf://OWNER/NAME/FILE"):
            load_agent(address)


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UserError, match=r"hf://me/small cannot be fetched \(OSError: no network\); check its name"):
        load_agent("hf://me/small")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(UserError, match=r"me/small cannot be pushed to \(OSError: no network\)"):
        agent().push_to_hub("me/small", **WORDS)


def test_pushing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def create(hub: object, repository: str, *, private: bool, exist_ok: bool) -> None:
        seen["made"] = (repository, private, exist_ok)

    def upload(hub: object, *, repo_id: str, folder_path: str, commit_message: str) -> str:
        seen["files"] = sorted(path.name for path in Path(folder_path).iterdir())
        seen["steps"] = json.loads((Path(folder_path) / "config.json").read_text())["step"]
        return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert agent().push_to_hub("me/small", **WORDS, private=True) == "https://hub/me/small/commit/1"
    assert seen == {
        "made": ("me/small", True, True),
        "files": ["README.md", "config.json", "model.safetensors"],
        "steps": 0,
    }
