"""Next-state latents through the teacher's principal components (TD-MPC-Opt, table 1); see `latent_linear`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdmpc2.data.batch import Batch
from tdmpc2.errors import UserError
from tdmpc2.keys import TDMPC_OPT, THIS_PROJECT, key, key_of
from tdmpc2.model import ModelDims, Part, WorldModel
from tdmpc2.objectives.base import Knowledge, Objective, Rollout, coefficient
from tdmpc2.objectives.latent_linear import LatentLinearDistillation
from tdmpc2.ranges import MOST_ROUNDS, Whole


class PrincipalComponents(nn.Module):
    """The main directions of vectors [n, in], from sums over batches: exact, and no batch is kept.

    Attributes:
        mean: [in].
        components: [out, in], orthonormal rows, the largest variance first; each row's largest entry is positive.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_dim))
        self.register_buffer("components", torch.zeros(out_dim, in_dim))

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Sets both from batches [n, in]."""
        count, width = 0, len(self.mean)
        total, outer = (torch.zeros(s, dtype=torch.float64, device=self.mean.device) for s in (width, (width, width)))
        for batch in batches:
            values = batch.double()
            count += len(values)
            total += values.sum(0)
            outer += values.T @ values
        if count < len(self.components):
            raise UserError(
                f"{count} latents cannot give {len(self.components)} principal components; raise pca_batches."
            )
        mean = total / count
        _, vectors = torch.linalg.eigh(outer / count - torch.outer(mean, mean))
        main = vectors.T.flip(0)[: len(self.components)]  # eigh's order is ascending
        signs = main.gather(1, main.abs().argmax(1, keepdim=True)).sign()
        self.mean.copy_(mean)
        self.components.copy_(main * signs)

    def forward(self, values: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return (values - self.mean) @ self.components.T

    def inverse(self, values: Tensor) -> Tensor:
        """[..., out] -> [..., in]."""
        return values @ self.components + self.mean


@dataclass(frozen=True, eq=False)
class LatentPcaDistillation(Objective):
    """MSE between the student's next latent and the principal components of the teacher's.

    The components are fitted on the teacher's next latents of the first `pca_batches` batches, before the first update,
    and then stay. With latent_side=student the student's latent is taken back to the teacher's width by them: the same
    gradient, times the quotient of the widths. SimNorm latents lie in [0, 1] and components about 0, so that a student
    cannot match them: the papers' score fell by half.
    """

    coef: float = coefficient(
        "d_latent_pca",
        "weight of the distillation of next latents through the teacher's principal components",
        source=f"{TDMPC_OPT}, table 1",
    )
    side: str = key_of(LatentLinearDistillation, "latent_side")
    batches: int = key(
        64,
        "batches whose next latents the principal components of d_latent_pca are fitted on, before the first update",
        name="pca_batches",
        unit="batches",
        source=THIS_PROJECT,
        check=Whole(1, MOST_ROUNDS),
    )
    name: ClassVar[str] = "d_latent_pca"
    parts: ClassVar[tuple[Part, ...]] = ("encoder", "dynamics")
    one_latent: ClassVar[bool] = True

    @property
    def fit_batches(self) -> int:
        return self.batches

    def bound(self, student: ModelDims, teacher: ModelDims | None, seed: int) -> LatentPcaDistillation:
        if teacher is None:
            return self
        if teacher.latent_dim < student.latent_dim:
            raise UserError(
                f"{self.name}: the teacher's latent of {teacher.latent_dim} numbers has fewer components than the "
                f"student's latent of {student.latent_dim}; choose a wider teacher, or d_latent_linear."
            )
        return replace(self, module=PrincipalComponents(teacher.latent_dim, student.latent_dim))

    def fit(self, views: Iterable[Knowledge]) -> None:
        assert isinstance(self.module, PrincipalComponents)
        self.module.fit(view.next_latents() for view in views)

    def ask(self, teacher: Knowledge) -> dict[str, Tensor]:
        return {"latent": teacher.next_latents()}

    def loss(self, model: WorldModel, batch: Batch, rollout: Rollout) -> Tensor:
        assert isinstance(self.module, PrincipalComponents)
        mine, teacher_s = rollout.latents[1], self.target(batch, "latent")
        if self.side == "teacher":
            return F.mse_loss(mine, self.module(teacher_s))
        return F.mse_loss(self.module.inverse(mine), teacher_s)
