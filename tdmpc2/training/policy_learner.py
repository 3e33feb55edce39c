"""One update of a policy prior in a frozen world model (`mode=extract`)."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from tdmpc2.data.batch import Batch
from tdmpc2.errors import UserError
from tdmpc2.execution import Execution
from tdmpc2.extraction import ExtractionSettings, Imagined, critic_loss, imagined, imitation
from tdmpc2.model import Part, WorldModel
from tdmpc2.objectives import Objective, PolicyRollout, task_of
from tdmpc2.training.execution import UPDATES
from tdmpc2.training.learner import OptimiserSettings, clipped_step


class PolicyLearner:
    """Owns what an update changes: the policy head, its average and critic, optimisers, running scale and noise.

    Args:
        model: a trained one; all but its policy head is frozen here.
        discounts: gamma of each task, float [tasks].
        settings: what the policy is trained to do.
        optimiser: lr, grad_clip_norm, tau and pi_scale.
        entropy_coef: weight of the scaled entropy beside the imagined return.
        updates: of the run, over which the learning rate falls.
        seed: of the noise.
        execution: how the update runs.
        objectives: of distillation, bound; those of the policy alone.

    Raises:
        UserError: for CUDA graphs, or an objective that trains the world model.
    """

    def __init__(
        self,
        model: WorldModel,
        discounts: Tensor,
        settings: ExtractionSettings,
        optimiser: OptimiserSettings,
        entropy_coef: float,
        updates: int,
        seed: int,
        execution: Execution | None = None,
        objectives: tuple[Objective, ...] = (),
    ) -> None:
        device = next(model.parameters()).device
        for objective in objectives:
            if not objective.of_policy:
                raise UserError(f"{objective.name} trains the world model, which mode=extract leaves as it is.")
        self.model = self.master = model.eval()
        """What acts and is kept: with `weight_average` its policy head is the average."""
        self.own = nn.ModuleDict()
        self.execution = (execution or Execution()).supported_on(device, UPDATES)
        if self.execution.cudagraphs:
            raise UserError("cudagraphs=true is not for mode=extract: leave it out.")
        self._settings, self._optimiser_settings = settings, optimiser
        self._entropy_coef, self._updates = entropy_coef, updates
        self._objectives = objectives
        self._discounts = discounts.to(device)
        model.requires_grad_(False)
        own: tuple[Part, ...] = ("policy_head",) if settings.weight_average else ()
        own += ("q_heads", "target_q_heads") if settings.imagine_critic else ()
        self._averaged: list[Tensor] = list(model.policy_head.parameters()) if settings.weight_average else []
        self._trained = _with_own(model, own) if own else model
        """Whose policy head the updates change; with `imagine_critic` its Q is the critic, its target Q that one's."""
        self._params = list(self._trained.policy_head.requires_grad_(True).parameters())
        self.optimiser = torch.optim.Adam(self._params, lr=optimiser.lr, eps=1e-5, fused=True)
        self._critic = list(self._trained.q_heads.parameters()) if settings.imagine_critic else []
        self._critic_target: list[Tensor] = list(self._trained.target_q_heads.parameters())
        for parameter in self._critic:
            parameter.requires_grad_(True)
        self.critic_optimiser = torch.optim.Adam(self._critic, lr=optimiser.lr, fused=True) if self._critic else None
        self.scale = optimiser.running_scale(discounts, device, measured=True)
        self.noise = torch.Generator(device=device).manual_seed(seed)
        self._done = 0
        self._imagined = torch.compile(imagined, dynamic=False) if self.execution.compile else imagined
        self._critic_loss = torch.compile(critic_loss, dynamic=False) if self.execution.compile else critic_loss

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Takes one step from the states of a batch, every observation of its slices, and returns its scalars."""
        model, settings = self._trained, self._settings
        steps, size = batch.obs.shape[:2]
        states = steps * size
        task = batch.task.repeat(steps)
        ids = task if model.dims.num_tasks else None
        device = self._discounts.device
        gamma = self._discounts[task].unsqueeze(-1)
        found: list[Imagined] = []
        loss, metrics = torch.zeros((), device=device), dict[str, Tensor]()
        with self.execution.arithmetic(device):
            with torch.no_grad():
                latents = model.encode(batch.obs, task_of(model, batch))
            z = latents.flatten(0, 1)
            if settings.e_imagine:
                length, width = settings.imagine_horizon + 1, model.dims.action_dim
                starts = settings.imagine_restarts + 1
                for drawn in torch.randn(starts, length, states, width, generator=self.noise, device=device):
                    found.append(self._imagined(model, z, ids, gamma, drawn, settings))
                    z = found[-1].latents[-1]
                first = found[0].first
            else:  # nothing is imagined: what is left needs the policy in the states themselves alone
                first = model.sample_policy(z, ids, z.new_zeros(states, model.dims.action_dim))
        if found:
            value, all_tasks = torch.cat([each.value for each in found]), task.repeat(len(found))
            self.scale.update(value.detach(), all_tasks)
            entropy = torch.stack([each.scaled_entropy for each in found]).mean()
            own = -((value.squeeze(-1) / self.scale.of(all_tasks)).mean() + self._entropy_coef * entropy)
            loss = settings.e_imagine * own
            metrics["imagined_return"] = value.detach().mean()
            metrics["pi_entropy"] = torch.stack([each.entropy for each in found]).mean()
            metrics["q_spread"] = torch.stack([each.spread for each in found]).mean()
            metrics["pi_scale"] = self.scale.value.mean()
        mean, log_std = (values.unflatten(0, (steps, size)) for values in (first.mean, first.log_std))
        rollout = PolicyRollout(latents, mean, log_std, torch.ones(steps, device=mean.device))
        if settings.e_imitate:
            better = settings.imitate_where == "better"
            imitated = imitation(model, batch, latents, mean, where_better=better)
            metrics["imitation_loss"] = imitated.loss.detach()
            metrics["labelled"] = imitated.labelled
            if imitated.better is not None:
                metrics["planner_better"] = imitated.better
            loss = loss + settings.e_imitate * imitated.loss
        for objective in self._objectives:
            if objective.has_target(batch):
                term = objective.policy_loss(model, batch, rollout)
                metrics[f"{objective.name}_loss"] = term.detach()
                loss = loss + objective.coef * term
        norm = self._step(loss)
        if self.critic_optimiser is not None:
            with self.execution.arithmetic(self._discounts.device):
                losses = [self._critic_loss(model, each, ids, gamma, settings) for each in found]
            metrics["critic_loss"] = self._critic_step(self.critic_optimiser, torch.stack(losses).mean())
        return {"pi_loss": loss.detach(), **metrics, "pi_grad_norm": norm}

    def _step(self, loss: Tensor) -> Tensor:
        """One clipped step; returns the gradient norm before clipping."""
        s = self._optimiser_settings
        left = 1 - self._done / self._updates
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = s.lr * (self._settings.lr_end + (1 - self._settings.lr_end) * left)
        self._done += 1
        gradients = torch.autograd.grad(loss, self._params)
        norm = clipped_step(self.optimiser, self._params, gradients, s.grad_clip_norm)
        if self._averaged:
            # At first less, so that the average soon forgets the weights that the run started from.
            decay = min(self._settings.weight_average, (1 + self._done) / (10 + self._done))
            with torch.no_grad():
                torch._foreach_lerp_(self._averaged, list[Tensor](self._params), 1 - decay)
        return norm

    def _critic_step(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
        """One clipped step of the critic, after which its target follows; returns the loss."""
        # Fused Adam reads gradients in their parameter's memory order; those of stacked heads come transposed.
        gradients = [gradient.contiguous() for gradient in torch.autograd.grad(loss, self._critic)]
        clipped_step(optimiser, self._critic, gradients, self._optimiser_settings.grad_clip_norm)
        with torch.no_grad():
            torch._foreach_lerp_(self._critic_target, list[Tensor](self._critic), self._optimiser_settings.tau)
        return loss.detach()

    @property
    def optimisers(self) -> tuple[torch.optim.Optimizer, ...]:
        return (self.optimiser,) if self.critic_optimiser is None else (self.optimiser, self.critic_optimiser)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        assert self.scale.updates is not None
        return {
            "model": self.model.state_dict(),
            **({"policy": self._trained.policy_head.state_dict()} if self._averaged else {}),
            "policy_optimiser": self.optimiser.state_dict(),
            **self._critic_state(),
            "scale": self.scale.value.clone(),
            "scale_updates": self.scale.updates.clone(),
            "noise": self.noise.get_state(),
            "done": self._done,
        }

    def _critic_state(self) -> dict[str, Any]:
        if self.critic_optimiser is None:
            return {}
        return {
            "critic": self._trained.q_heads.state_dict(),
            "critic_target": self._trained.target_q_heads.state_dict(),
            "critic_optimiser": self.critic_optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict()` of a learner of the same model."""
        self.model.load_state_dict(state["model"])
        if self._averaged:
            self._trained.policy_head.load_state_dict(state["policy"])
        self.optimiser.load_state_dict(state["policy_optimiser"])
        if self.critic_optimiser is not None:
            self._trained.q_heads.load_state_dict(state["critic"])
            self._trained.target_q_heads.load_state_dict(state["critic_target"])
            self.critic_optimiser.load_state_dict(state["critic_optimiser"])
        self.scale.value.copy_(state["scale"])
        assert self.scale.updates is not None
        self.scale.updates.copy_(state["scale_updates"])
        self.noise.set_state(state["noise"].cpu())
        self._done = int(state["done"])


def _with_own(model: WorldModel, parts: tuple[Part, ...]) -> WorldModel:
    """The model with copies of these parts; all other weights are the same tensors."""
    held = itertools.chain(model.named_parameters(), model.named_buffers())
    shared = {id(value): value for name, value in held if name.split(".")[0] not in parts}
    return copy.deepcopy(model, shared)
