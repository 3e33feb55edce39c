"""Stops a run at the first update whose numbers are not finite, before anything of it is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from tdmpc2.errors import UserError


class Drawing(Protocol):
    """Knows what an update's batch was drawn from."""

    def drawn(self, step: int) -> str: ...


class FiniteWatch:
    """Finds the first update whose numbers are not finite, without waiting for the device at every step."""

    def __init__(self, source: Drawing, device: torch.device) -> None:
        self._source = source
        self._names: tuple[str, ...] = ()
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._values = torch.zeros(0, device=device)

    def add(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Notes the metrics of an update that ended at `step`: scalars of the same names at every step."""
        values = torch.stack([value.float() for value in metrics.values()])
        if not self._names:
            self._names = tuple(metrics)
            self._values = values
        fine = self._first_bad < 0
        self._values = torch.where(fine, values, self._values)
        self._first_bad = torch.where(fine & ~values.isfinite().all(), step, self._first_bad)

    def check(self) -> None:
        """Raises a `UserError` that names the first bad step, its losses and the episodes that its batch drew."""
        step = int(self._first_bad)
        if step >= 0:
            bad = [n for n, v in zip(self._names, self._values.tolist(), strict=True) if not math.isfinite(v)]
            raise self._error(step, ", ".join(bad), len(bad))

    def check_state(self, step: int, state: Mapping[str, Any]) -> None:
        """The same for what the update that ended at `step` left: weights, optimisers, running scale."""
        self.check()
        named = {name: value for name, value in _floats(state, "") if value.numel()}
        if not named:
            return
        # The largest magnitude is NaN or infinite where any number is; it needs no copy, and one transfer reads all.
        largest = torch.stack([torch.linalg.vector_norm(v.detach().float(), math.inf) for v in named.values()])
        bad = [name for name, fine in zip(named, largest.isfinite().tolist(), strict=True) if not fine]
        if bad:
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            raise self._error(step, f"its losses are finite, but {', '.join(bad[:5])}{more}", len(bad))

    def _error(self, step: int, what: str, count: int) -> UserError:
        drawn = self._source.drawn(step - 1)
        return UserError(
            f"step {step}: {what} {'is' if count == 1 else 'are'} not finite; its batch drew {drawn}. "
            "The last state written is kept; check the data with scripts/import_data.py --verify, "
            "or start another run (exp_name=…) with a lower lr."
        )


def _floats(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every floating-point tensor in nested dictionaries, by its path."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _floats(item, f"{name}.{key}".lstrip("."))
