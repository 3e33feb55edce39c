"""The seed of an evaluation episode, from the run's seed, the task and the episode's number alone."""

from __future__ import annotations

import hashlib

import numpy as np

from tdmpc2.errors import UserError


def episode_seed(seed: int, task: str, episode: int) -> int:
    """A seed in [0, 2**31) that depends on these three alone, so neither on the order nor on the number of
    workers.

    The value for given arguments never changes: scores published with it can be computed again. Raises
    `UserError` unless `seed` and `episode` lie in [0, 2**32).
    """
    for name, value in (("seed", seed), ("episode", episode)):
        if not 0 <= value < 2**32:
            raise UserError(f"{name} must lie in [0, 2**32), not {value}.")
    digest = hashlib.sha256(task.encode()).digest()
    # Exactly one 32-bit word per entry: SeedSequence splits larger numbers, and then two inputs could
    # coincide.
    words = [seed, int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little"), episode]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint32)[0]) >> 1
