"""What the papers claim, each as a difference of two arms, and what the runs at hand say of it.

Published differences are of the tables of TD-MPC-Opt (arXiv 2507.01823), single runs on MT30.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tdmpc2.study.arms import BEST, CONTROL, DISTILLED, SCRATCH, TABLES
from tdmpc2.study.statistics import ArmDifference

Verdict = Literal["holds", "the opposite", "not shown", "no runs"]


@dataclass(frozen=True)
class Claim:
    """That one arm has a higher score than another.

    Attributes:
        text: the claim in words.
        better, worse: the arms.
        ours: whether it is a question of this project, which the papers do not ask.
    """

    text: str
    better: str
    worse: str
    ours: bool = False

    @property
    def published(self) -> float | None:
        """Points of normalised score between the papers' runs; None for what they do not have."""
        rows = [row for table in TABLES for row in table.rows if row.scheme is None and row.published is not None]
        scores = {row.arm: row.published for row in rows}
        better, worse = scores.get(self.better), scores.get(self.worse)
        return None if self.ours or better is None or worse is None else better - worse


CLAIMS: tuple[Claim, ...] = (
    Claim("reward distillation (d_coef 0.4) beats no teacher", DISTILLED, SCRATCH),
    Claim("so it does at the longest budget (d_coef 0.45)", BEST, "scratch_long"),
    Claim("it is the teacher's knowledge: more than the dataset's own rewards give", DISTILLED, CONTROL, True),
    Claim("it is more than a raised reward_coef gives", DISTILLED, "reward_coef", True),
    Claim("it is more than a teacher of random weights gives", DISTILLED, "random_0.40", True),
    Claim("d_coef 0.4 is better than 0.9", DISTILLED, "reward_0.90"),
    Claim("next latents through a learned projection hurt", DISTILLED, "reward_0.40+latent_linear"),
    Claim("next latents through principal components hurt", DISTILLED, "reward_0.40+latent_pca"),
    Claim("a larger teacher is better", DISTILLED, "reward_0.40_small_teacher"),
    Claim(
        "batch 256 beats 1024 at like transitions, distilled (1M and 337K updates)",
        BEST,
        "reward_0.40_large_batch_middle",
    ),
    Claim("so it does from scratch", "scratch_long", "scratch_large_batch_middle"),
    Claim("batch 256 beats 1024 at equal transitions, distilled", DISTILLED, "reward_0.40_large_batch_equal", True),
    Claim("batch 256 beats 128 at equal transitions, distilled", DISTILLED, "reward_0.40_small_batch_equal", True),
)


def verdict(difference: ArmDifference | None) -> Verdict:
    """By the 95% interval paired by seed: on which side of 0 all of it lies."""
    if difference is None:
        return "no runs"
    span = difference.interval
    if span is None or difference.over != "seeds" or span.low <= 0 <= span.high:
        return "not shown"
    return "holds" if span.low > 0 else "the opposite"
