"""Writes a frozen teacher's reward for every transition of a store, so that runs with teacher=labels need no teacher.

python scripts/label.py data_dir=data/mt30 teacher=317M teacher.checkpoint=mt30-317M.pt teacher.precision=bfloat16
python tdmpc2/train.py data_dir=data/mt30 teacher=labels teacher.labels=data/mt30/labels/317M-bfloat16 d_coef=0.4
python scripts/label.py data_dir=data/mt30 teacher.labels=data/mt30/labels/317M-bfloat16 verify=true

An interrupted labelling is resumed by running it again.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from tdmpc2.agent import resolve_device
from tdmpc2.data.labels import LabelHeader, LabelWriter, verify_labels
from tdmpc2.data.store import EpisodeStore
from tdmpc2.distillation import label_facts, label_store
from tdmpc2.errors import UserError
from tdmpc2.fileio import human_bytes
from tdmpc2.reporting.progress import Progress
from tdmpc2.settings.convert import chosen_task_set, from_keys, live_teacher, path_of, required
from tdmpc2.settings.entry import hydra_entry
from tdmpc2.settings.schema import LabelKeys
from tdmpc2.training.interrupt import Interrupt


def label_folder(config: DictConfig) -> Path:
    """`teacher.labels`, or a folder of the teacher's name and precision beside the data."""
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


def told(path: Path, header: LabelHeader) -> str:
    facts = header.facts
    return (
        f"{path}: {header.done:,} of {facts.episodes:,} episodes, {human_bytes(header.committed_bytes)}, "
        f"by {facts.teacher} in {facts.precision}, checksum {header.checksum}"
    )


@hydra_entry("label")
def main(config: DictConfig) -> None:
    folder = label_folder(config)
    store = EpisodeStore.open(required(config, "data_dir"))
    if config.verify:
        header = verify_labels(folder, store)
        print(f"{told(folder, header)}\nverified: every checksum is right")
        return
    if config.teacher.name in ("none", "labels"):
        raise UserError(f"teacher={config.teacher.name} predicts nothing: give teacher=317M or another size.")
    tasks = chosen_task_set(config)
    if tasks is None:
        raise UserError("task=own is for evaluation: name the tasks to label, such as task=mt30.")
    keys = from_keys(LabelKeys, config)
    device = resolve_device(config.device)
    teacher = live_teacher(config, tasks, device)
    name = config.teacher.name
    print(
        f"teacher {name} ({teacher.num_parameters / 1e6:.1f}M parameters loaded) in {teacher.precision} on {device}: "
        f"{len(store):,} episodes of {store.path} into {folder}"
    )
    with Interrupt().watching() as interrupt, LabelWriter(folder, label_facts(store, teacher, name)) as writer:
        if writer.episodes:
            print(f"going on after {writer.episodes:,} episodes")
        with Progress(len(store) - writer.episodes, "labelling", "episodes") as progress:
            complete = label_store(
                store,
                teacher,
                writer,
                batch_size=keys.batch_size,
                on_episodes=progress.update,
                stop=lambda: interrupt.signal is not None,
            )
    print(told(folder, writer.header))
    if not complete:
        print("interrupted: run the same command again to go on")
        raise SystemExit(130)
    print(f"train from them with: teacher=labels teacher.labels={folder}")
