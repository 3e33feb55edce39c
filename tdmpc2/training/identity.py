"""What a run is: what its updates depend on, and so may not change when it resumes.

Contents are compared, not names: the same checkpoint, data or teacher may lie elsewhere, and a store may have grown.
"""

from __future__ import annotations

import hashlib
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tdmpc2.data.labels import LabelColumn, PlannedColumn
from tdmpc2.data.store import EpisodeStore
from tdmpc2.distillation import AnyTeacher, DatasetRewards
from tdmpc2.errors import CheckpointError, UserError, printable

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlist = _SHORT.maxtuple = 40
_NAMES_ONLY = frozenset(("teacher", "checkpoint path"))
"""Entries that say how something was named; what it holds stands in an entry of its own."""
_DATA = re.compile(r"(\d+) episodes, fingerprint ([0-9a-f]{16})")


def content_identity(
    store: EpisodeStore | None,
    teacher: AnyTeacher | None,
    labels: LabelColumn | None,
    planned: PlannedColumn | None = None,
) -> dict[str, Any]:
    """What the data and the teacher are, whatever folder they lie in; without a store, the data is the simulator's."""
    weights = "none"
    if isinstance(teacher, DatasetRewards):
        weights = "the dataset's own rewards"
    elif teacher is not None:
        weights = f"checksum {teacher.checksum} in {teacher.precision}"
    elif labels is not None:
        weights = f"checksum {labels.header.facts.teacher_checksum} in {labels.header.facts.precision}"
    return {
        "data": "simulator" if store is None else f"{len(store)} episodes, fingerprint {store.fingerprint}",
        "teacher weights": weights,
        "teacher labels": "none" if labels is None else f"checksum {labels.header.checksum}",
        **({} if planned is None else {"planner labels": f"checksum {planned.header.checksum}"}),
    }


def start_identity(checkpoint: Path | None) -> dict[str, Any]:
    """What the run's first weights were: a file's content, or None for new ones."""
    if checkpoint is None:
        return {"checkpoint": None, "checkpoint path": None}
    try:
        with checkpoint.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise CheckpointError(f"{checkpoint}: cannot be read ({error.strerror}).") from error
    return {"checkpoint": f"content {digest.hexdigest()[:16]}", "checkpoint path": str(checkpoint.resolve())}


def resumed_start(saved: Mapping[str, Any], checkpoint: Path | None) -> dict[str, Any]:
    """The start's identity when a run resumes: a resumed student's weights are in its state, so it needs no file.

    None at all is the saved one; so is a file at the saved place that is gone. Any other file's content is compared.
    """
    before = {key: saved.get(key) for key in ("checkpoint", "checkpoint path")}
    if checkpoint is None:
        return before
    name = before["checkpoint"]
    if isinstance(name, str) and not name.startswith("content ") and Path(name).resolve() == checkpoint.resolve():
        return before  # states of earlier versions hold the path alone
    if not checkpoint.exists() and before["checkpoint path"] == str(checkpoint.resolve()):
        return before
    found = start_identity(checkpoint)
    return before if found["checkpoint"] == before["checkpoint"] else found


def recorded_store(store: EpisodeStore, saved: Mapping[str, Any]) -> EpisodeStore:
    """The store as the run knew it: the same one, or the episodes that it held then if it has grown since.

    Another store is given back as it is, for `check_identity` to tell.
    """
    known = _DATA.fullmatch(str(saved.get("data")))
    if known is None:
        return store
    episodes, fingerprint = int(known[1]), known[2]
    if (episodes, fingerprint) == (len(store), store.fingerprint):
        return store
    earlier = store.prefix(episodes, fingerprint)
    if earlier is None:
        return store
    print(f"{store.path} has grown from {episodes:,} to {len(store):,} episodes: the run goes on with the first ones.")
    return earlier


def check_identity(source: object, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises a `UserError` that names the differing entries of a state read from `source`."""
    differing = [
        f"{printable(key)} was {_SHORT.repr(saved.get(key))} and is {_SHORT.repr(now.get(key))}"
        for key in sorted(saved.keys() | now.keys())
        if key not in _NAMES_ONLY and not _same(saved.get(key), now.get(key))
    ]
    if differing:
        raise UserError(
            f"{source}: cannot resume with other settings: {'; '.join(differing)}. "
            "Set them back, or start another run with another exp_name."
        )


def _same(saved: object, now: object) -> bool:
    if isinstance(saved, Tensor):  # never written, and comparing one gives no answer
        return False
    return bool(saved == now)
