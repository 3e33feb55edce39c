"""Next-state latents through a learned linear projection (TD-MPC-Opt, table 1).

The papers name two ways to compare a latent of 128 numbers with one of 1376, a linear projection and PCA, and say no
more. Here both are of the first step, as reward distillation is: the student's d(h(obs_0), action_0) against the
teacher's own prediction. `latent_side` says which of the two is projected; by default the teacher's, as PCA does it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdmpc2.data.batch import Batch
from tdmpc2.keys import TDMPC_OPT, THIS_PROJECT, key
from tdmpc2.model import ModelDims, Part, WorldModel
from tdmpc2.objectives.base import Knowledge, Objective, Rollout, coefficient
from tdmpc2.ranges import OneOf


@dataclass(frozen=True, eq=False)
class LatentLinearDistillation(Objective):
    """MSE between the one's next latent and a linear projection, learned with the student, of the other's."""

    coef: float = coefficient(
        "d_latent_linear",
        "weight of the distillation of next latents through a learned linear projection",
        source=f"{TDMPC_OPT}, table 1",
    )
    side: str = key(
        "teacher",
        "whose next latent is projected to the other's width in d_latent_linear and d_latent_pca: teacher or student",
        name="latent_side",
        unit="name",
        source=f"{THIS_PROJECT}; the papers do not say",
        check=OneOf(("teacher", "student")),
    )
    name: ClassVar[str] = "d_latent_linear"
    parts: ClassVar[tuple[Part, ...]] = ("encoder", "dynamics")
    one_latent: ClassVar[bool] = True

    def bound(self, student: ModelDims, teacher: ModelDims | None, seed: int) -> LatentLinearDistillation:
        if teacher is None:
            return self
        widths = (teacher.latent_dim, student.latent_dim)
        projection = nn.Linear(*(widths if self.side == "teacher" else widths[::-1]))
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(projection.weight, std=projection.in_features**-0.5, generator=generator)
        nn.init.zeros_(projection.bias)
        return replace(self, module=projection)

    def ask(self, teacher: Knowledge) -> dict[str, Tensor]:
        return {"latent": teacher.next_latents()}

    def loss(self, model: WorldModel, batch: Batch, rollout: Rollout) -> Tensor:
        assert self.module is not None
        mine, teacher_s = rollout.latents[1], self.target(batch, "latent")
        if self.side == "teacher":
            return F.mse_loss(mine, self.module(teacher_s))
        return F.mse_loss(self.module(mine), teacher_s)
