"""The range of every number that a user can set: one check, one line that names the key, the value and the range.

`Whole`, `Within`, `Share` and `OneOf` are what a key's definition holds (`tdmpc2.keys`); the functions
are for what is no key. Upper bounds are far beyond any sane use; they keep lists and arrays bounded, and
give a typing error its own name.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

from tdmpc2.errors import UserError

MOST_STEPS = 10**12
MOST_SLICES = 2**20
"""Of a batch, and trajectories of a plan."""
MOST_WIDTH = 2**17
"""Of a layer, an observation, an action or a latent; bins."""
MOST_ROUNDS = 1000
"""Of a horizon, a planner's iterations, layers or heads."""
MOST_ENVS = 10_000
MOST_WORKERS = 1024
MOST_EPISODES = 10**6
"""Of each task, in one evaluation or collection."""
MOST_SEED = 2**63 - 1
MOST_EVALUATION_SEED = 2**32 - 1
"""What `envs.episode_seed` takes."""
MOST_SCALE = 1e6
"""Of coefficients, temperatures and standard deviations."""
MOST_FLOAT = 3e38
"""What float32 holds: of a learning rate, which may be tried at any size."""


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Raises a `UserError` unless `value` is a whole number of `low` to `high`; True and 3.0 are not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise UserError(f"{name} must be a whole number of {low:,} to {high:,}, not {_shown(value)}.")
    if int(value) < low:
        raise UserError(f"{name} must be at least {low}, not {value} (and at most {high:,}).")
    if int(value) > high:
        raise UserError(f"{name} must be at most {high:,}, not {_shown(value)} (and at least {low}).")


def check_range(
    name: str, value: object, low: float, high: float, *, above: bool = False, infinite: bool = False
) -> None:
    """Raises a `UserError` unless `value` is a number from `low` to `high`.

    Args:
        name: the key as the user writes it.
        value: what was given; True and nan are never right.
        low, high: the bounds, included.
        above: exclude `low`.
        infinite: allow inf, whatever `high` is: it switches something off.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UserError(f"{name} must be a number, not {_shown(value)}.")
    number = float(value)
    least = f"above {low:g}" if above else "0 or more" if low == 0 else f"at least {low:g}"
    most = f"at most {high:g}{', or inf' if infinite else ''}"
    if not (number > low if above else number >= low):
        raise UserError(f"{name} must be {least}, not {_shown(value)} (and {most}).")
    if number > high and not (infinite and math.isinf(number)):
        raise UserError(f"{name} must be {most}, not {_shown(value)} (and {least}).")


def check_share(name: str, value: object, *, zero: bool) -> None:
    """Raises a `UserError` unless `value` lies in [0, 1) or, without `zero`, in (0, 1]."""
    interval = "[0, 1)" if zero else "(0, 1]"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UserError(f"{name} must be a number in {interval}, not {_shown(value)}.")
    if not (0 <= float(value) < 1 if zero else 0 < float(value) <= 1):
        raise UserError(f"{name} must lie in {interval}, not {_shown(value)}.")


@dataclass(frozen=True)
class Whole:
    """A whole number of `low` to `high`."""

    low: int
    high: int

    def __call__(self, name: str, value: object) -> None:
        check_whole(name, value, self.low, self.high)

    def __str__(self) -> str:
        return f"{self.low:,} to {self.high:,}"


@dataclass(frozen=True)
class Within:
    """A number from `low`, which `above` excludes, to `high`; `infinite`: or inf."""

    low: float
    high: float
    above: bool = False
    infinite: bool = False

    def __call__(self, name: str, value: object) -> None:
        check_range(name, value, self.low, self.high, above=self.above, infinite=self.infinite)

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low:g}, or inf" if self.above else f"{self.low:g} or more, or inf"
        text = f"above {self.low:g}, to {self.high:g}" if self.above else f"{self.low:g} to {self.high:g}"
        return f"{text}, or inf" if self.infinite else text


@dataclass(frozen=True)
class Share:
    """A number in [0, 1) with `zero`, in (0, 1] without."""

    zero: bool

    def __call__(self, name: str, value: object) -> None:
        check_share(name, value, zero=self.zero)

    def __str__(self) -> str:
        return "[0, 1)" if self.zero else "(0, 1]"


@dataclass(frozen=True)
class OneOf:
    """One of some words; `message` has a place for name, value and choices."""

    choices: tuple[str, ...]
    message: str = "{name}={value} is unknown; choose one of {choices}."

    def __call__(self, name: str, value: object) -> None:
        if value not in self.choices:
            raise UserError(self.message.format(name=name, value=value, choices=", ".join(self.choices)))

    def __str__(self) -> str:
        return ", ".join(self.choices)


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
