"""What comes next plugs in: a new objective, another source of batches, another schedule; each is one small class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import torch
from model_fixtures import with_rewards
from run_fixtures import DUO, tiny_config, tiny_settings
from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.store import EpisodeStore
from tdmpc2.losses import LossWeights
from tdmpc2.model import WorldModel
from tdmpc2.objectives import Knowledge, Objective, RewardDistillation, Rollout
from tdmpc2.reporting.sinks import read_metrics
from tdmpc2.settings.convert import train_settings
from tdmpc2.training import Learner, OptimiserSettings, Ranks
from tdmpc2.training.interrupt import Interrupt
from tdmpc2.training.outputs import RunOutputs
from tdmpc2.training.preparing import prepare
from tdmpc2.training.schedule import Schedule
from tdmpc2.training.state import StateFolder
from tdmpc2.training.student import new_student
from tdmpc2.training.trainer import run_updates


@dataclass(frozen=True, eq=False)
class LargeRewards(Objective):
    """A new objective: the student's rewards of all steps should be large."""

    name: ClassVar[str] = "large_rewards"

    def ask(self, teacher: Knowledge) -> dict[str, Tensor]:
        return {}

    def has_target(self, batch: Batch) -> bool:
        return True

    def loss(self, model: WorldModel, batch: Batch, rollout: Rollout) -> Tensor:
        return -model.decode(rollout.reward_logits).mean()


def learner_with(run_dir: Path, *objectives: Objective) -> tuple[Learner, Batch]:
    settings = tiny_settings(run_dir)
    sampler = SliceSampler(EpisodeStore.open(settings.data_dir), DUO, 8, 3, 1)
    discounts = torch.from_numpy(DUO.discounts())
    learner = Learner(new_student(settings), discounts, LossWeights(), OptimiserSettings(), 1, objectives=objectives)
    return learner, sampler.batch(0)


def test_a_new_objective_is_one_class(tmp_path: Path) -> None:
    plain, batch = learner_with(tmp_path)
    metrics = plain.update(batch)
    assert "large_rewards_loss" not in metrics and "distillation_loss" not in metrics
    for coef in (0.0, 1.0):
        learner, batch = learner_with(tmp_path, RewardDistillation(0.4), LargeRewards(coef))
        found = learner.update(with_rewards(batch, torch.ones(8, 1)))
        assert found["distillation_loss"] > 0
        expected = found["original_loss"] + 0.4 * found["distillation_loss"] + coef * found["large_rewards_loss"]
        torch.testing.assert_close(found["total_loss"], expected)
    learner, batch = learner_with(tmp_path, LargeRewards(1.0))
    first = learner.update(batch)["large_rewards_loss"]
    for _ in range(30):
        last = learner.update(batch)["large_rewards_loss"]
    assert last < first, "it learns what the objective asks for"


class Repeated:
    """A new source: the same batch for ever."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.given = 0
        self.closed = False

    def __enter__(self) -> Repeated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True

    def __next__(self) -> Batch:
        self.given += 1
        return self._batch

    def drawn(self, step: int) -> str:
        return "the one batch"

    def state(self) -> dict[str, Any]:
        return {"given": self.given}

    def news(self) -> list[dict[str, float]]:
        return [{"fresh": 1.0}] if self.given == 1 else []

    def standing(self) -> dict[str, float]:
        return {"repeats": float(self.given)}


def test_another_source_and_another_schedule(tmp_path: Path) -> None:
    config = tiny_config("steps=6")
    run = prepare(train_settings(config, tmp_path), None, Ranks())
    source = Repeated(learner_with(tmp_path)[1])
    interrupt, schedule = Interrupt(), Schedule({"log": 2, "eval": 0, "save": 0, "state": 3}, steps=6)
    with source as batches, RunOutputs(run, batches, schedule, interrupt) as outputs:
        assert run_updates(run, batches, outputs, interrupt) == (6, True)
        outputs.finish(6, True)
    assert source.given == 6 and source.closed
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows if row["category"] == "train"] == [2, 4, 6]
    assert [row["repeats"] for row in rows if row["category"] == "train"] == [2, 4, 6]
    assert [row["step"] for row in rows if row["category"] == "episode"] == [1]
    assert StateFolder(tmp_path).load().source == {"given": 6}
    assert (tmp_path / "state" / "latest.pt").is_file() and outputs.final_path.is_file()


def test_a_schedule_ends_with_all_that_is_done_at_all() -> None:
    schedule = Schedule({"log": 3, "eval": 0, "save": 4, "state": 5}, steps=7)
    due = [schedule.due(step) for step in range(1, 8)]
    assert due == [set(), set(), {"log"}, {"save"}, {"state"}, {"log"}, {"log", "save", "state"}]
