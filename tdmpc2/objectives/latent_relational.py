"""Relations between next latents (beyond the papers): how alike samples are, which needs no common width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from tdmpc2.data.batch import Batch
from tdmpc2.keys import THIS_PROJECT
from tdmpc2.model import Part, WorldModel
from tdmpc2.objectives.base import Knowledge, Objective, Rollout, coefficient


@dataclass(frozen=True, eq=False)
class LatentRelationalDistillation(Objective):
    """MSE between the two models' similarities of the batch's next latents, which need no common width.

    A similarity is the cosine of two latents, each less the batch's mean. With several processes the pairs are those of
    each process's part of the batch.
    """

    coef: float = coefficient(
        "d_latent_relational",
        "weight of the distillation of the similarities between a batch's next latents",
        source=THIS_PROJECT,
    )
    name: ClassVar[str] = "d_latent_relational"
    parts: ClassVar[tuple[Part, ...]] = ("encoder", "dynamics")
    one_latent: ClassVar[bool] = True

    def ask(self, teacher: Knowledge) -> dict[str, Tensor]:
        return {"similarity": similarities(teacher.next_latents())}

    def loss(self, model: WorldModel, batch: Batch, rollout: Rollout) -> Tensor:
        error = (similarities(rollout.latents[1]) - self.target(batch, "similarity")).square()
        pairs = error.shape[0] * (error.shape[0] - 1)  # a latent's similarity to itself is 1 in both
        return error.sum() / max(pairs, 1)


def similarities(latents: Tensor) -> Tensor:
    """[B, Z] -> [B, B]: cosines of latents less their mean."""
    rows = F.normalize(latents - latents.mean(0), dim=-1)
    return rows @ rows.T
