"""Labels a store: a frozen teacher's reward for every transition, or what a student's planner would do in every state.

python scripts/label.py data_dir=data/mt30 teacher=317M teacher.checkpoint=mt30-317M.pt teacher.precision=bfloat16
python tdmpc2/train.py data_dir=data/mt30 teacher=labels teacher.labels=data/mt30/labels/317M-bfloat16 d_coef=0.4
python scripts/label.py data_dir=data/mt30 teacher.labels=data/mt30/labels/317M-bfloat16 verify=true

python scripts/label.py what=planner data_dir=data/mine checkpoint=student.pt planner=fast
python tdmpc2/train.py mode=extract data_dir=data/mine checkpoint=student.pt e_imitate=1

An interrupted labelling is resumed by running it again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tdmpc2.agent import load_agent, resolve_device
from tdmpc2.data.labels import ColumnFacts, LabelFacts, LabelHeader, LabelWriter, PlanFacts, verify_labels
from tdmpc2.data.store import EpisodeStore
from tdmpc2.distillation import label_facts, label_store
from tdmpc2.errors import UserError
from tdmpc2.extraction import PLANNED, StateChoice, block_episodes, plan_facts, plan_store
from tdmpc2.fileio import human_bytes
from tdmpc2.reporting.progress import Progress
from tdmpc2.settings.convert import chosen_task_set, from_keys, live_teacher, path_of, planning_of, required
from tdmpc2.settings.entry import hydra_entry, set_matmul_precision
from tdmpc2.settings.schema import LabelKeys
from tdmpc2.training.interrupt import Interrupt

Label = Callable[[LabelWriter[Any], Callable[[int], None], Callable[[], bool]], bool]
"""Adds to a column, tells how many episodes it added, asks whether to stop; returns whether the column is complete."""


def label_folder(config: DictConfig) -> Path:
    """`teacher.labels`, or a folder of the teacher's name and precision beside the data; of plans, `labels`."""
    if config.what == "planner":
        return path_of(config, "labels") or required(config, "data_dir") / PLANNED
    teacher = config.teacher
    given = path_of(teacher, "labels")
    if given is not None:
        return given
    if teacher.name in ("none", "labels"):
        raise UserError(
            "which teacher? Give teacher=317M (or another size) and teacher.checkpoint=…, or with verify=true the "
            "labels themselves: teacher.labels=…"
        )
    parts = [teacher.name, "random"] if teacher.random_weights else [teacher.name]
    return required(config, "data_dir") / "labels" / "-".join([*parts, teacher.precision or "float32"])


def told(path: Path, header: LabelHeader[Any]) -> str:
    facts = header.facts
    return (
        f"{path}: {header.done:,} of {facts.episodes:,} episodes, {human_bytes(header.committed_bytes)}, "
        f"by {facts.maker}, checksum {header.checksum}"
    )


@hydra_entry("label")
def main(config: DictConfig) -> None:
    set_matmul_precision(config.matmul_precision)
    keys = from_keys(LabelKeys, config)
    _check_keys(config, keys)
    folder = label_folder(config)
    store = EpisodeStore.open(required(config, "data_dir"))
    if config.verify:
        kind: type[ColumnFacts] = PlanFacts if keys.what == "planner" else LabelFacts
        print(f"{told(folder, verify_labels(folder, store, kind))}\nverified: every checksum is right")
        return
    begin = _plans if keys.what == "planner" else _rewards
    writer, label, use = begin(config, keys, folder, store)
    with Interrupt().watching() as interrupt, writer:
        if writer.episodes:
            print(f"going on after {writer.episodes:,} episodes")
        with Progress(len(store) - writer.episodes, "labelling", "episodes") as progress:
            complete = label(writer, progress.update, lambda: interrupt.signal is not None)
    print(told(folder, writer.header))
    if not complete:
        print("interrupted: run the same command again to go on")
        raise SystemExit(130)
    print(f"train from them with: {use}")


def _check_keys(config: DictConfig, keys: LabelKeys) -> None:
    """Raises a UserError for a key of the other kind of labels."""
    if keys.what == "planner":
        if config.teacher.name != "none" or config.teacher.labels is not None:
            raise UserError("a teacher is for what=rewards; what=planner labels by the model of checkpoint=….")
        return
    for name, given in (("checkpoint", keys.checkpoint), ("labels", keys.labels)):
        if given is not None:
            hint = " (the folder of a teacher's rewards is teacher.labels)" if name == "labels" else ""
            raise UserError(f"{name} is for what=planner, not for what=rewards{hint}.")
    if (config.precision, config.compile, config.cudagraphs) != ("float32", False, False):
        raise UserError("precision, compile and cudagraphs are for what=planner; a teacher's is teacher.precision.")
    if keys.share != 1:
        raise UserError("share is for what=planner: a teacher's rewards are written for every transition.")


def _rewards(
    config: DictConfig, keys: LabelKeys, folder: Path, store: EpisodeStore
) -> tuple[LabelWriter[Any], Label, str]:
    """The column of a teacher's rewards, what fills it, and how it is used."""
    if config.teacher.name in ("none", "labels"):
        raise UserError(f"teacher={config.teacher.name} predicts nothing: give teacher=317M or another size.")
    tasks = chosen_task_set(config)
    if tasks is None:
        raise UserError("task=own is for evaluation: name the tasks to label, such as task=mt30.")
    device = resolve_device(config.device)
    teacher = live_teacher(config, tasks, device)
    name = config.teacher.name
    print(
        f"teacher {name} ({teacher.num_parameters / 1e6:.1f}M parameters loaded) in {teacher.precision} on {device}: "
        f"{len(store):,} episodes of {store.path} into {folder}"
    )

    def label(writer: LabelWriter[Any], on_episodes: Callable[[int], None], stop: Callable[[], bool]) -> bool:
        size = keys.batch_size or 2048
        return label_store(store, teacher, writer, batch_size=size, on_episodes=on_episodes, stop=stop)

    writer = LabelWriter(folder, label_facts(store, teacher, name))
    return writer, label, f"teacher=labels teacher.labels={folder}"


def _plans(
    config: DictConfig, keys: LabelKeys, folder: Path, store: EpisodeStore
) -> tuple[LabelWriter[Any], Label, str]:
    """Likewise of a planner's actions."""
    checkpoint = path_of(config, "checkpoint")
    if checkpoint is None:
        raise UserError("what=planner needs a model to plan with: give checkpoint=….")
    agent = load_agent(checkpoint, chosen_task_set(config), resolve_device(config.device), **planning_of(config))
    agent.check_plans()
    choice, size = StateChoice(keys.share, keys.seed), keys.batch_size or 256
    agent.planner.check_memory(size)
    facts = plan_facts(store, agent, choice)
    states = len(store) * choice.count(store.episode_steps)
    print(
        f"planner of {checkpoint} in {facts.precision} on {agent.device} ({facts.planner}): {states:,} states of "
        f"{len(store):,} episodes of {store.path} into {folder}"
    )

    def label(writer: LabelWriter[Any], on_episodes: Callable[[int], None], stop: Callable[[], bool]) -> bool:
        return plan_store(store, agent, choice, writer, batch_size=size, on_episodes=on_episodes, stop=stop)

    writer = LabelWriter(folder, facts, block_episodes=block_episodes(store, choice))
    named = "" if keys.labels is None else f" imitate_labels={folder}"
    return writer, label, f"mode=extract e_imitate=1{named}"
