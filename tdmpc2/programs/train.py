"""Trains or distils a student, from a store or online.

python tdmpc2/train.py task=mt30 model_size=1 teacher=317M teacher.checkpoint=mt30-317M.pt d_coef=0.4
python tdmpc2/train.py mode=online task=walker-walk model_size=5 steps=50_000
torchrun --nproc_per_node=2 tdmpc2/train.py … splits every batch over two GPUs (or, without any, two CPU processes)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from tdmpc2.distillation import Committee, Teacher
from tdmpc2.embedded import embedded_folder, embedded_store
from tdmpc2.envs.gym_env import ACTION_REPEAT
from tdmpc2.errors import UserError
from tdmpc2.keys import keys_in
from tdmpc2.settings.convert import teacher_of, train_settings
from tdmpc2.settings.entry import be_deterministic, composed, hydra_entry, set_matmul_precision
from tdmpc2.study.page import write_report
from tdmpc2.training import Ranks, TrainResult, TrainSettings, evaluate_end, finished_run, joined
from tdmpc2.training import train as updates_of


def coefficients(settings: TrainSettings) -> str:
    """Those of the run's objectives, in words."""
    named = [(held.name, o.coef) for o in settings.objectives for f, held in keys_in(o) if f.name == "coef"]
    return ", ".join(f"{name} {value:g}" for name, value in named)


def acting(settings: TrainSettings) -> str:
    """What an online run does, in words: `steps` are decisions, of two environment steps each."""
    online = settings.online
    assert online is not None
    envs = online.envs(settings.task_set)
    places = f"{envs} environment{'s' if envs > 1 else ''}"
    decisions = f"{settings.steps:,} decisions ({settings.steps * ACTION_REPEAT:,} environment steps) in {places}"
    return f"{decisions} by {online.act_with}, {settings.updates:,} updates"


@hydra_entry("train")
def main(config: DictConfig) -> float | None:
    """One run, with the evaluations that it ends with; its last score, for a search."""
    set_matmul_precision(config.matmul_precision)
    be_deterministic(config.deterministic)
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    settings = train_settings(config, Path(HydraConfig.get().runtime.output_dir), sweep=sweep)
    settings = replace(settings, log_name="train.log")
    result = _whole(config, settings)
    if result.interrupted:
        raise SystemExit(130)
    if sweep and settings.end.episodes and result.score is not None:
        _report(settings.run_dir, str(config.exp_name))
    return result.score


def train(run_dir: str | Path, *keys: str) -> TrainResult:
    """The same run from Python, in this process.

    Args:
        run_dir: the run's folder.
        keys: as on the command line: `"task=quickstart"`, `"steps=100"`, `"teacher.checkpoint=mt30-317M.pt"`.

    Raises:
        UserError: for keys that the program would not take, or whatever it would end with.
    """
    config = composed("train", keys)
    set_matmul_precision(config.matmul_precision)
    be_deterministic(config.deterministic)
    return _whole(config, train_settings(config, Path(run_dir)))


def _whole(config: DictConfig, settings: TrainSettings) -> TrainResult:
    """A run with what it ends with; the score is the first process's alone."""
    with joined(settings.device) as ranks:
        result = _train(config, settings, ranks)
        if result.interrupted or not ranks.first:
            return result
        return replace(result, score=evaluate_end(settings))


def _report(run_dir: Path, exp_name: str) -> None:
    """Writes the report of an experiment's sweep anew, over all arms of its scale: its last run leaves it whole."""
    scale, _, arm = exp_name.rpartition("/")
    root = next((p for p in run_dir.parents if scale and p.name == scale and (p / arm) in run_dir.parents), None)
    if root is None:
        return
    try:
        print(f"report so far: {write_report([root], root / 'report')}")
    except UserError as error:  # the run itself is whole
        print(f"no report: {error}")


def _train(config: DictConfig, settings: TrainSettings, ranks: Ranks) -> TrainResult:
    """Does the run's updates, unless it has ended already."""
    if (final := finished_run(settings)) is not None:
        if ranks.first:
            print(f"{settings.run_dir} has ended already, after {settings.updates:,} updates")
        return TrainResult(settings.updates, False, final, metrics={}, updates_per_second=0.0)
    if config.make_data:
        if ranks.first:
            embedded_store(settings.data_dir, settings.task_set)
        ranks.wait()
        settings = replace(settings, data_dir=embedded_folder(settings.data_dir))
    teacher = teacher_of(config, settings.task_set, settings.device)
    if ranks.first:
        learns_from = "from scratch"
        if isinstance(teacher, Teacher):
            loaded = f"{teacher.num_parameters / 1e6:.1f}M parameters loaded"
            learns_from = f"teacher {settings.teacher_name} ({loaded}), {coefficients(settings)}"
        elif isinstance(teacher, Committee):
            loaded = f"{len(teacher.members)} of them, {teacher.num_parameters / 1e6:.1f}M parameters loaded"
            learns_from = f"teachers {settings.teacher_name} ({loaded}), {coefficients(settings)}"
        elif teacher is not None:
            learns_from = f"the dataset's rewards in a teacher's place, {coefficients(settings)}"
        elif settings.labels is not None:
            learns_from = f"labels in {settings.labels}, {coefficients(settings)}"
        if settings.extraction is not None:
            learns_from = "its policy prior alone" + ("" if teacher is None else f", {learns_from}")
        if settings.online is not None:
            learns_from += f"; acting: {acting(settings)}"
        where = f"{settings.device}" if ranks.size == 1 else f"{ranks.size} processes ({settings.device.type})"
        print(f"{settings.task_set.name}: {settings.dims.latent_dim}-wide latent, {learns_from}, on {where}")
    result = updates_of(settings, teacher, ranks)
    if ranks.first and not result.interrupted:
        print(f"{result.step:,} updates, {result.updates_per_second:.1f} a second; {result.checkpoint}")
    return result
