"""One update of a world model: losses, gradients, both optimisers, target Q (TD-MPC2, section 3.1; method: update)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tdmpc2.data.batch import Batch
from tdmpc2.errors import UserError
from tdmpc2.execution import CapturedFunction, Execution
from tdmpc2.keys import TDMPC2, THIS_PROJECT, check_keys, key
from tdmpc2.losses import (
    LossTerms,
    LossWeights,
    RunningScale,
    UpdateNoise,
    policy_terms,
    world_model_losses,
)
from tdmpc2.model import WorldModel
from tdmpc2.objectives import Objective, task_of
from tdmpc2.quantisation import Scheme
from tdmpc2.ranges import MOST_FLOAT, OneOf, Share, Within
from tdmpc2.training.execution import UPDATES
from tdmpc2.training.ranks import Ranks
from tdmpc2.training.rounding import Rounding

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class OptimiserSettings:
    """Under the names of the released configuration."""

    lr: float = key(
        3e-4, "learning rate of Adam", unit="per update", source=TDMPC2, check=Within(0, MOST_FLOAT, above=True)
    )
    enc_lr_scale: float = key(
        0.3,
        "the encoder's learning rate as a part of lr",
        unit="ratio",
        source=TDMPC2,
        check=Within(0, MOST_FLOAT, above=True),
    )
    grad_clip_norm: float = key(
        20.0,
        "largest gradient norm, of the world model and of the policy each; inf does not clip",
        unit="gradient norm",
        source=TDMPC2,
        check=Within(0, math.inf, above=True, infinite=True),
    )
    tau: float = key(
        0.01,
        "how far target Q and the running scale move at each update",
        unit="ratio",
        source=TDMPC2,
        check=Share(zero=False),
    )
    pi_scale: str = key(
        "batch",
        "what Q is divided by in the policy's loss: one running scale of whole batches, or one of each task",
        unit="batch or task",
        source=f"{TDMPC2}; task: {THIS_PROJECT}",
        check=OneOf(("batch", "task")),
    )

    def __post_init__(self) -> None:
        check_keys(self)

    def running_scale(self, discounts: Tensor, device: torch.device, *, measured: bool) -> RunningScale:
        """A new one, of whole batches or of each task, as `pi_scale` says."""
        tasks = len(discounts) if self.pi_scale == "task" else None
        return RunningScale(self.tau, device, measured=measured, tasks=tasks)


class Learner:
    """Owns what an update changes: the model, two Adam optimisers, the running scale and the noise generator.

    Args:
        model: all parts, target Q included, on the training device.
        discounts: gamma of each task, float [tasks].
        weights: loss coefficients.
        optimiser: optimiser settings.
        seed: of the update's noise.
        execution: how the update runs; each choice gives the same update but for rounding.
        ranks: the processes that take parts of every batch; default this one alone.
        objectives: of distillation, bound to this student and its teacher; none trains from the data alone.
        measure_scale: measure the running scale on the first batches, for a model that is trained already.
        scheme: train for a quantisation scheme: the model holds what the scheme would store, and float weights of
            which it does so are trained (`master`). None trains the model's own.

    Raises:
        UserError: for CUDA graphs without a CUDA device, or with several processes.
    """

    def __init__(
        self,
        model: WorldModel,
        discounts: Tensor,
        weights: LossWeights,
        optimiser: OptimiserSettings,
        seed: int,
        execution: Execution | None = None,
        ranks: Ranks | None = None,
        objectives: tuple[Objective, ...] = (),
        *,
        measure_scale: bool = False,
        scheme: Scheme | None = None,
    ) -> None:
        device = next(model.parameters()).device
        self.model = model.eval()
        self._rounding = None if scheme is None else Rounding(model, scheme)
        self.master = model if self._rounding is None else self._rounding.master
        """Whose weights the optimisers change, and a run keeps: the model, but where it is trained for a scheme."""
        self.terms = LossTerms(weights, objectives)
        self.own = nn.ModuleDict({o.name: o.module for o in objectives if o.module is not None}).to(device)
        """What objectives learn or fit beside the student."""
        self.settings = optimiser
        self.execution = (execution or Execution()).supported_on(device, UPDATES)
        self.ranks = ranks or Ranks()
        if self.execution.cudagraphs and self.ranks.size > 1:
            raise UserError("cudagraphs=true runs in one process only: leave it out, or start without torchrun.")
        self.discounts = discounts.to(device)
        self.scale = optimiser.running_scale(discounts, device, measured=measure_scale)
        self.noise = torch.Generator(device=device).manual_seed(seed)
        own = list(self.own.parameters())
        encoder, rest, policy = _trained(self.master)
        self._world_params = encoder + rest + own
        self._policy_params = policy
        self._q_params = list(self.master.q_heads.parameters())
        self._target_params = list(self.master.target_q_heads.parameters())
        encoder_seen, rest_seen, self._policy_seen = _trained(model)
        self._world_seen = encoder_seen + rest_seen + own
        self.world_optimiser = torch.optim.Adam(
            [
                {"params": encoder, "lr": optimiser.lr * optimiser.enc_lr_scale},
                {"params": rest, "lr": optimiser.lr},
                *([{"params": own, "lr": optimiser.lr}] if own else []),
            ],
            fused=True,
            capturable=self.execution.cudagraphs,
        )
        self.policy_optimiser = torch.optim.Adam(
            policy, lr=optimiser.lr, eps=1e-5, fused=True, capturable=self.execution.cudagraphs
        )
        self._move_target = get_ema_multi_avg_fn(1 - optimiser.tau)
        self._world_losses = self._compiled(world_model_losses)
        self._policy_terms = self._compiled(policy_terms)
        self._captured: CapturedFunction | None = None

    def update(self, batch: Batch, noise: UpdateNoise | None = None) -> dict[str, Tensor]:
        """Takes one step and returns its scalars as tensors on the device: nothing here waits for it.

        Args:
            batch: obs [H+1, B, O], action [H, B, A], reward [H, B, 1], task [B], and what a teacher says of them for
                the objectives; this process's part of it, if there are several.
            noise: of the whole batch; drawn from the learner's own generator when not given.

        Returns:
            Scalars of the whole batch. With CUDA graphs they hold until the next update.

        The published program counted the previous policy step's gradient in the clipped norm, and left the policy
        loss's gradient on the task embedding; here each loss's gradient goes to its own parameters alone.
        """
        if not self.execution.cudagraphs or noise is not None:
            return self._update(batch, noise)
        if self._captured is None:
            self._captured = CapturedFunction(
                lambda **tensors: self._update(Batch.of(tensors)),
                self.discounts.device,
                generators=[self.noise],
                repeatable=False,  # the runs before the capture are updates
                copy_outputs=False,
            )
        return self._captured(batch.tensors())

    def _update(self, batch: Batch, noise: UpdateNoise | None = None) -> dict[str, Tensor]:
        model, w = self.model, self.terms.weights
        horizon, size = batch.action.shape[0], batch.action.shape[1] * self.ranks.size
        if noise is None:
            noise = UpdateNoise.draw(model.dims, horizon, size, self.noise)
        if self.ranks.size > 1:
            noise = noise.of_slices(self.ranks.part(size))
        self.master.limit_task_embedding(self.ranks.gather(batch.task))
        self._round("task_embedding")

        with self.execution.arithmetic(self.discounts.device):
            losses = self._world_losses(model, batch, self.discounts, self.terms, noise)
        grad_norm = self._step(self.world_optimiser, self._world_params, self._world_seen, losses.total)
        self._round("task_embedding", "encoder", "dynamics", "reward_head", "q_heads")

        with self.execution.arithmetic(self.discounts.device):
            objectives = self.terms.objectives
            terms = self._policy_terms(model, losses.latents, task_of(model, batch), w.rho, noise, objectives, batch)
        self.scale.update(self.ranks.gather(terms.first_q), self.ranks.gather(batch.task))
        policy_loss = terms.loss(self.scale.of(batch.task), w.entropy_coef)
        pi_grad_norm = self._step(self.policy_optimiser, self._policy_params, self._policy_seen, policy_loss)
        self._move_target(self._target_params, self._q_params, None)
        self._round("policy_head", "target_q_heads")

        metrics = {
            "consistency_loss": losses.consistency,
            "reward_loss": losses.reward,
            "value_loss": losses.value,
            "original_loss": losses.original,
            "total_loss": losses.total,
            "pi_loss": policy_loss,
            "pi_entropy": terms.entropy,
        }
        metrics |= {f"{name}_loss": loss for name, loss in (losses.distillation | terms.distillation).items()}
        metrics = {name: value.detach() for name, value in metrics.items()}
        self.ranks.average_(list(metrics.values()))
        return metrics | {
            "grad_norm": grad_norm,
            "pi_grad_norm": pi_grad_norm,
            "pi_scale": self.scale.value.mean(),
        }

    def _compiled(self, function: Callable[P, R]) -> Callable[P, R]:
        return torch.compile(function, dynamic=False) if self.execution.compile else function

    def _round(self, *parts: str) -> None:
        """After float weights have changed: the model holds what the scheme stores of them."""
        if self._rounding is not None:
            self._rounding.refresh(parts)

    def _step(
        self, optimiser: torch.optim.Optimizer, params: list[nn.Parameter], seen: list[nn.Parameter], loss: Tensor
    ) -> Tensor:
        """One clipped step of these parameters alone; returns the gradient norm before clipping.

        `seen` are those that the loss was computed with: the same, or what a scheme stores of them.
        """
        # Fused Adam reads gradients in their parameter's memory order; those of stacked heads come transposed.
        gradients = [gradient.contiguous() for gradient in torch.autograd.grad(loss, seen)]
        self.ranks.average_(gradients)
        return clipped_step(optimiser, params, gradients, self.settings.grad_clip_norm)

    @property
    def optimisers(self) -> tuple[torch.optim.Optimizer, ...]:
        return self.world_optimiser, self.policy_optimiser

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on: weights, optimisers, running scale, random state."""
        return {
            "model": self.master.state_dict(),
            "world_optimiser": self.world_optimiser.state_dict(),
            "policy_optimiser": self.policy_optimiser.state_dict(),
            "scale": self.scale.value.clone(),
            **({} if self.scale.updates is None else {"scale_updates": self.scale.updates.clone()}),
            "noise": self.noise.get_state(),
            **({"objectives": self.own.state_dict()} if len(self.own) else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict()` of a learner of the same model."""
        self._captured = None  # a graph works on the tensors that it was captured with
        self.master.load_state_dict(state["model"])
        if self._rounding is not None:
            self._rounding.refresh()
        self.world_optimiser.load_state_dict(state["world_optimiser"])
        self.policy_optimiser.load_state_dict(state["policy_optimiser"])
        self.scale.value.copy_(state["scale"])
        if self.scale.updates is not None:
            self.scale.updates.copy_(state["scale_updates"])
        if len(self.own):
            self.own.load_state_dict(state["objectives"])
        self.noise.set_state(state["noise"].cpu())


def clipped_step(
    optimiser: torch.optim.Optimizer, params: Sequence[nn.Parameter], gradients: Iterable[Tensor], limit: float
) -> Tensor:
    """A step by these gradients, scaled down to a norm of `limit`; returns their norm before."""
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient
    norm = nn.utils.clip_grad_norm_(params, limit)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm


def _trained(model: WorldModel) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that updates train: the encoder's, all others of the world model, the policy's."""
    encoder = list(model.encoder.parameters())
    policy = list(model.policy_head.parameters())
    apart = {id(p) for p in encoder + policy}
    return encoder, [p for p in model.parameters() if p.requires_grad and id(p) not in apart], policy
