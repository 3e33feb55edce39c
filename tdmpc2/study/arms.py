"""Which arms make each of the papers' tables, and what the papers have for them.

Published figures are those of TD-MPC-Opt (arXiv 2507.01823), tables 1 to 4: normalised scores on MT30, single runs. An
arm is the name of an experiment's run folder (config/arm).
"""

from __future__ import annotations

from dataclasses import dataclass

SCRATCH, DISTILLED, CONTROL = "scratch", "reward_0.40", "dataset_0.40"
BEST = "reward_0.45_long"
"""The papers' best run, whose quantised students are table 4."""
LONG = ("scratch_long", BEST)
"""The runs of figure 3."""


@dataclass(frozen=True)
class Row:
    """A row of a table: an arm's final student, or the same by a scheme.

    Attributes:
        text: what readers see.
        arm: the arm.
        published: the paper's normalised score.
        scheme: quantises the student; None for it as trained.
        published_mib: the size that the paper gives.
        name: of the experiment of this row alone, below its table's (config/experiment); None for the arm's.
    """

    text: str
    arm: str
    published: float | None = None
    scheme: str | None = None
    published_mib: float | None = None
    name: str | None = None


@dataclass(frozen=True)
class StudyTable:
    """One table: `experiment` runs its rows."""

    name: str
    title: str
    experiment: str
    rows: tuple[Row, ...]


TABLES: tuple[StudyTable, ...] = (
    StudyTable(
        "table1",
        "Table 1: d_coef, and next-state latents",
        "table1",
        (
            Row("no distillation", SCRATCH, 14.04),
            Row("d_coef 0.05", "reward_0.05", 13.61),
            Row("d_coef 0.25", "reward_0.25", 14.49),
            Row("d_coef 0.4", DISTILLED, 17.85),
            Row("d_coef 0.55", "reward_0.55", 16.08),
            Row("d_coef 0.6", "reward_0.60", 14.83),
            Row("d_coef 0.9", "reward_0.90", 13.79),
            Row("0.4, with latents, linear projection", "reward_0.40+latent_linear", 7.69, name="latent_linear"),
            Row("0.4, with latents, PCA", "reward_0.40+latent_pca", 8.78, name="latent_pca"),
        ),
    ),
    StudyTable(
        "table2",
        "Table 2: batch size and updates",
        "table2",
        (
            Row("distilled, batch 128, 200K", "reward_0.40_small_batch", 17.37, name="distill_128_200k"),
            Row("scratch, batch 256, 200K", SCRATCH, 14.04, name="scratch_256_200k"),
            Row("distilled, batch 256, 200K", DISTILLED, 17.85, name="distill_256_200k"),
            Row("scratch, batch 1024, 200K", "scratch_large_batch", 18.70, name="scratch_1024_200k"),
            Row("distilled, batch 1024, 200K", "reward_0.40_large_batch", 18.11, name="distill_1024_200k"),
            Row("scratch, batch 1024, 337K", "scratch_large_batch_middle", 26.94, name="scratch_1024_337k"),
            Row("distilled, batch 1024, 337K", "reward_0.40_large_batch_middle", 25.44, name="distill_1024_337k"),
            Row("scratch, batch 256, 1M", "scratch_long", 27.36, name="scratch_256_1m"),
            Row("distilled, batch 256, 1M", BEST, 28.12, name="distill_256_1m"),
        ),
    ),
    StudyTable(
        "table3",
        "Table 3: the teacher's size",
        "table3",
        (
            Row("larger teacher (317M)", DISTILLED, 17.85, name="large_teacher"),
            Row("smaller teacher (48M)", "reward_0.40_small_teacher", 13.61, name="small_teacher"),
        ),
    ),
    StudyTable(
        "table4",
        "Table 4: quantised students",
        "table4",
        (
            Row("float32", BEST, 28.12, None, 7.9, name="quantised"),
            Row("FP16", BEST, 28.45, "fp16", 3.9, name="quantised"),
            Row("mixed, as published", BEST, 13.53, "paper-mixed", 2.8, name="quantised"),
            Row("INT8, as published", BEST, 5.09, "paper-int8", 1.95, name="quantised"),
            Row("int8 of this project", BEST, None, "int8", name="quantised"),
            Row("int4 of this project", BEST, None, "int4", name="quantised"),
        ),
    ),
    StudyTable(
        "controls",
        "Controls: is it the teacher's knowledge?",
        "controls",
        (
            Row("no teacher", SCRATCH),
            Row("the teacher's rewards, d_coef 0.4", DISTILLED),
            Row("the dataset's rewards in their place", CONTROL),
            Row("no teacher, reward_coef raised likewise", "reward_coef"),
            Row("a random teacher", "random_0.40"),
        ),
    ),
    StudyTable(
        "objectives",
        "Objectives beyond the papers",
        "objectives",
        (
            Row("no teacher", SCRATCH),
            Row("rewards, first step (the papers')", DISTILLED),
            Row("rewards, all steps", "reward_all"),
            Row("rewards, bins", "reward_logits"),
            Row("rewards at other actions", "reward_off_data"),
            Row("next latents, linear projection", "latent_linear"),
            Row("next latents, PCA", "latent_pca"),
            Row("next latents, relations", "latent_relational"),
            Row("values", "value"),
            Row("policy prior", "policy"),
            Row("values and prior", "value+policy", name="value_policy"),
            Row("together", "together"),
        ),
    ),
    StudyTable(
        "batches",
        "Batch sizes at equal transitions",
        "batches",
        (
            Row("scratch, batch 128", "scratch_small_batch_equal", name="scratch_small"),
            Row("scratch, batch 256", SCRATCH, name="scratch"),
            Row("scratch, batch 1024", "scratch_large_batch_equal", name="scratch_large"),
            Row("distilled, batch 128", "reward_0.40_small_batch_equal", name="distill_small"),
            Row("distilled, batch 256", DISTILLED, name="distill"),
            Row("distilled, batch 1024", "reward_0.40_large_batch_equal", name="distill_large"),
        ),
    ),
    StudyTable(
        "policy",
        "The policy prior",
        "policy",
        (
            Row("Q over one running scale", SCRATCH, name="scratch"),
            Row("Q over a scale of each task", "pi_scale_task", name="pi_scale"),
        ),
    ),
)
D_COEFS: dict[str, float] = {
    SCRATCH: 0.0,
    **{f"reward_{text}": float(text) for text in ("0.05", "0.25", "0.40", "0.55", "0.60", "0.90")},
}
"""Arms that differ in d_coef alone."""
NAMES: dict[str, str] = {row.arm: row.text for table in reversed(TABLES) for row in table.rows if row.scheme is None}
NAMES |= {SCRATCH: "scratch", DISTILLED: "d_coef 0.4", CONTROL: "dataset's rewards"}
"""What an arm is called in charts."""
_SCRATCH_OF: dict[str, str | None] = {
    "reward_0.40_small_batch": None,
    "reward_0.40_large_batch": "scratch_large_batch",
    "reward_0.40_large_batch_middle": "scratch_large_batch_middle",
    "reward_0.40_small_batch_equal": "scratch_small_batch_equal",
    "reward_0.40_large_batch_equal": "scratch_large_batch_equal",
    BEST: "scratch_long",
    **dict.fromkeys(
        (
            SCRATCH,
            "scratch_large_batch",
            "scratch_large_batch_middle",
            "scratch_small_batch_equal",
            "scratch_large_batch_equal",
            "scratch_long",
        )
    ),
}


def scratch_of(arm: str) -> str | None:
    """The arm from scratch with the same batch and updates, which an arm is to be compared with; None for none."""
    return _SCRATCH_OF.get(arm, SCRATCH)
