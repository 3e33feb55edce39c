"""One update of a world model: losses, gradients, both optimisers, target Q (TD-MPC2, section 3.1; method: update)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tdmpc2.data.batch import Batch
from tdmpc2.errors import UserError
from tdmpc2.losses import (
    LossWeights,
    RunningScale,
    UpdateNoise,
    policy_loss,
    world_model_losses,
)
from tdmpc2.model import WorldModel


@dataclass(frozen=True)
class OptimiserSettings:
    """Under the names of the released configuration.

    Attributes:
        lr: learning rate of Adam.
        enc_lr_scale: the encoder's share of it.
        grad_clip_norm: largest gradient norm, of the world model and of the policy each.
        tau: how far target Q and the running scale move at each update.
    """

    lr: float = 3e-4
    enc_lr_scale: float = 0.3
    grad_clip_norm: float = 20.0
    tau: float = 0.01

    def __post_init__(self) -> None:
        for name in ("lr", "enc_lr_scale", "grad_clip_norm"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, not {getattr(self, name)}.")
        if not 0 < self.tau <= 1:
            raise UserError(f"tau must lie in (0, 1], not {self.tau}.")


class Learner:
    """Owns what an update changes: the model, two Adam optimisers, the running scale and the noise generator.

    Args:
        model: all parts, target Q included, on the training device.
        discounts: gamma of each task, float [tasks].
        weights: loss coefficients.
        optimiser: optimiser settings.
        seed: of the update's noise.
    """

    def __init__(
        self,
        model: WorldModel,
        discounts: Tensor,
        weights: LossWeights,
        optimiser: OptimiserSettings,
        seed: int,
    ) -> None:
        device = next(model.parameters()).device
        self.model = model.eval()  # dropout is on within an update only
        self.weights = weights
        self.settings = optimiser
        self.discounts = discounts.to(device)
        self.scale = RunningScale(optimiser.tau, device)
        self.noise = torch.Generator(device=device).manual_seed(seed)
        encoder = list(model.encoder.parameters())
        policy = list(model.policy_head.parameters())
        apart = {id(p) for p in encoder + policy}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
        self._world_params: list[nn.Parameter] = encoder + rest
        self._policy_params: list[nn.Parameter] = policy
        self._q_params = list(model.q_heads.parameters())
        self._target_params = list(model.target_q_heads.parameters())
        self.world_optimiser = torch.optim.Adam(
            [
                {"params": encoder, "lr": optimiser.lr * optimiser.enc_lr_scale},
                {"params": rest, "lr": optimiser.lr},
            ],
            fused=True,
        )
        self.policy_optimiser = torch.optim.Adam(policy, lr=optimiser.lr, eps=1e-5, fused=True)
        self._move_target = get_ema_multi_avg_fn(1 - optimiser.tau)

    def update(
        self, batch: Batch, teacher_reward: Tensor | None, noise: UpdateNoise | None = None
    ) -> dict[str, Tensor]:
        """Takes one step and returns its scalars as tensors on the device: nothing here waits for it.

        Args:
            batch: obs [H+1, B, O], action [H, B, A], reward [H, B, 1], task [B].
            teacher_reward: [B, 1] for the first step of each slice, None to train from scratch.
            noise: drawn from the learner's own generator when not given.

        The published program counted the previous policy step's gradient in the clipped norm, and left the policy
        loss's gradient on the task embedding; here each loss's gradient goes to its own parameters alone.
        """
        model, w = self.model, self.weights
        model.train()
        horizon, batch_size = batch.action.shape[:2]
        if noise is None:
            noise = UpdateNoise.draw(model.dims, horizon, batch_size, self.noise)
        model.limit_task_embedding(batch.task)
        task = batch.task if model.dims.num_tasks else None
        discount = self.discounts[batch.task].unsqueeze(-1)

        losses = world_model_losses(
            model, batch.obs, batch.action, batch.reward, task, discount, w, noise, teacher_reward
        )
        grad_norm = self._step(self.world_optimiser, self._world_params, losses.total)

        policy = policy_loss(model, losses.latents, task, self.scale, w, noise)
        pi_grad_norm = self._step(self.policy_optimiser, self._policy_params, policy.loss)
        self._move_target(self._target_params, self._q_params, None)
        model.eval()

        metrics = {
            "consistency_loss": losses.consistency,
            "reward_loss": losses.reward,
            "value_loss": losses.value,
            "original_loss": losses.original,
            "total_loss": losses.total,
            "grad_norm": grad_norm,
            "pi_loss": policy.loss,
            "pi_entropy": policy.entropy,
            "pi_grad_norm": pi_grad_norm,
            "pi_scale": policy.scale.squeeze(),
        }
        if teacher_reward is not None:
            metrics["distillation_loss"] = losses.distillation
        return {name: value.detach() for name, value in metrics.items()}

    def _step(self, optimiser: torch.optim.Optimizer, params: list[nn.Parameter], loss: Tensor) -> Tensor:
        """One clipped step of these parameters alone; returns the gradient norm before clipping."""
        for param, gradient in zip(params, torch.autograd.grad(loss, params), strict=True):
            # Fused Adam reads gradients in their parameter's memory order; those of stacked heads come transposed.
            param.grad = gradient.contiguous()
        norm = nn.utils.clip_grad_norm_(params, self.settings.grad_clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on: weights, optimisers, running scale, random states."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "world_optimiser": self.world_optimiser.state_dict(),
            "policy_optimiser": self.policy_optimiser.state_dict(),
            "scale": self.scale.value.clone(),
            "noise": self.noise.get_state(),
            "torch_rng": torch.get_rng_state(),
        }
        if self.scale.value.device.type == "cuda":
            # Dropout draws from the device's own generator.
            state["cuda_rng"] = torch.cuda.get_rng_state(self.scale.value.device)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict()` of a learner of the same model."""
        self.model.load_state_dict(state["model"])
        self.world_optimiser.load_state_dict(state["world_optimiser"])
        self.policy_optimiser.load_state_dict(state["policy_optimiser"])
        self.scale.value.copy_(state["scale"])
        self.noise.set_state(state["noise"].cpu())
        torch.set_rng_state(state["torch_rng"].cpu())
        if "cuda_rng" in state and self.scale.value.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.scale.value.device)
