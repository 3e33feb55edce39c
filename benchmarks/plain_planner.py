"""MPPI as one writes it plainly in eager torch: what `benchmarks/plan.py` compares the planner with.

All environments at once, no loop over them. Every part gets its whole input concatenated for every trajectory
(latent, task embedding, action); torch's own linear, layer_norm, mish and softmax; all heads of Q in one
batched product; nothing hoisted, fused, cast or compiled. The same numbers as `tdmpc2.planner` but for rounding; a test
holds them equal.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tdmpc2.model import WorldModel
from tdmpc2.model.layers import Layer, Mlp
from tdmpc2.planner import Plan, PlannerSettings, PlanNoise


class PlainPlanner:
    """Arguments as `tdmpc2.planner.Planner`."""

    def __init__(self, model: WorldModel, settings: PlannerSettings, discounts: Tensor) -> None:
        self.model, self.settings, self.discounts = model, settings, discounts
        d = model.dims
        self.bins = torch.linspace(d.vmin, d.vmax, d.num_bins, device=discounts.device)

    @torch.no_grad()
    def plan(self, obs: Tensor, task: Tensor, warm_start: Tensor, noise: PlanNoise) -> Plan:
        s, model = self.settings, self.model
        assert model.action_masks is not None
        mask = model.action_masks[task]  # [N, A]
        embedding = model.embed_task(task)
        assert embedding is not None
        z0 = self._mlp(model.encoder, torch.cat([obs, embedding], -1))
        gamma = self.discounts[task][:, None, None]

        z = z0[:, None].expand(-1, s.num_pi_trajs, -1)
        prior = []
        for t in range(s.horizon):
            prior.append(self._policy(z, embedding, mask, noise.prior[:, t]))
            z = self._mlp(model.dynamics, self._input(z, embedding, prior[-1]))
        candidates = torch.empty(len(obs), s.horizon, s.num_samples, model.dims.action_dim, device=obs.device)
        candidates[:, :, : s.num_pi_trajs] = torch.stack(prior, 1)

        mean = warm_start * mask[:, None]
        std = torch.full_like(mean, s.max_std) * mask[:, None]
        for i in range(s.iterations):
            drawn = (mean[:, :, None] + std[:, :, None] * noise.samples[:, i]).clamp(-1, 1)
            candidates[:, :, s.num_pi_trajs :] = drawn * mask[:, None, None]
            z = z0[:, None].expand(-1, s.num_samples, -1)
            value = torch.zeros(*z.shape[:2], 1, device=obs.device)
            discount = torch.ones_like(gamma)
            for t in range(s.horizon):
                x = self._input(z, embedding, candidates[:, t])
                value = value + discount * self._decode(self._mlp(model.reward_head, x))
                z = self._mlp(model.dynamics, x)
                discount = discount * gamma
            action = self._policy(z, embedding, mask, noise.terminal[:, i])
            q = self._decode(self._mlp(model.q_heads, self._input(z, embedding, action)))  # [E, N, S, 1]
            two = noise.heads[:, i].topk(2, 1).indices.T[:, :, None, None].expand(-1, -1, s.num_samples, 1)
            value = (value + discount * q.gather(0, two).mean(0)).squeeze(-1).nan_to_num(0.0)
            best = value.topk(s.num_elites, 1)
            elites = candidates.gather(2, best.indices[:, None, :, None].expand(-1, s.horizon, -1, mean.shape[-1]))
            weight = torch.softmax(s.temperature * best.values, 1)
            w = weight[:, None, :, None]
            mean = (w * elites).sum(2) * mask[:, None]
            spread = (w * (elites - mean[:, :, None]).square()).sum(2).sqrt()
            std = spread.clamp(s.min_std, s.max_std) * mask[:, None]
        rank = (weight.cumsum(1) <= noise.elite[:, None]).sum(1).clamp(max=s.num_elites - 1)
        action = elites[torch.arange(len(obs), device=obs.device), 0, rank] + std[:, 0] * noise.action
        return Plan((action * mask).clamp(-1, 1), mean)

    @staticmethod
    def _input(z: Tensor, embedding: Tensor, action: Tensor | None = None) -> Tensor:
        pieces = [z, embedding[:, None].expand(-1, z.shape[1], -1)]
        return torch.cat(pieces if action is None else [*pieces, action], -1)

    def _policy(self, z: Tensor, embedding: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        d, m = self.model.dims, mask[:, None]
        mean, raw = self._mlp(self.model.policy_head, self._input(z, embedding)).chunk(2, -1)
        log_std = d.log_std_min + 0.5 * (d.log_std_max - d.log_std_min) * (torch.tanh(raw) + 1)
        return torch.tanh(mean * m + noise * m * (log_std * m).exp())

    def _decode(self, logits: Tensor) -> Tensor:
        expected = (torch.softmax(logits, -1) @ self.bins).unsqueeze(-1)
        return torch.sign(expected) * torch.expm1(expected.abs())

    @staticmethod
    def _mlp(part: Mlp, x: Tensor) -> Tensor:
        for layer in part.layers:
            assert isinstance(layer, Layer)
            if part.heads is None:
                y = F.linear(x, layer.weight, layer.bias)
            else:
                rows = x.flatten(-3, -2) if x.dim() == 3 else x.flatten(1, 2)
                rows = rows.expand(part.heads, -1, -1)
                y = torch.baddbmm(layer.bias[:, None], rows, layer.weight.transpose(1, 2))
                y = y.unflatten(1, x.shape[-3:-1])
            if layer.activation != "none":
                if part.heads is None:
                    y = F.layer_norm(y, (layer.out_dim,), layer.norm_weight, layer.norm_bias)
                else:
                    y = F.layer_norm(y, (layer.out_dim,))
                    y = y * layer.norm_weight[:, None, None] + layer.norm_bias[:, None, None]
                if layer.activation == "mish":
                    y = F.mish(y)
                else:
                    y = torch.softmax(y.unflatten(-1, (-1, layer.simnorm_dim)), -1).flatten(-2)
            x = y
        return x
