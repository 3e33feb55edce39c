"""Planning as the papers describe it (TD-MPC2, section 3.3; method: planning): the place to read first.

MPPI looks for good action sequences by trying many in the model. Each round draws S sequences of H actions around a
mean, follows them through the latent dynamics, and values each by

    V(a_0 .. a_H-1)  =  sum over t of gamma^t R(z_t, a_t)  +  gamma^H Q(z_H, pi(z_H))

The best of them, weighted by softmax(temperature V), give the next round's mean and std. A few sequences are the policy
prior's. After the last round one of the best is drawn, and its first action is taken; of the rest, the mean is where
the next decision begins.

Here all of it stands in plain torch, in float32, each network given its whole input [z; e; a] for every trajectory, on
any device. `mppi.py` and `fused.py` come to the same numbers, but for rounding, at twice the speed and more: a test
holds them equal to this, and `benchmarks/plan.py` compares their times.

Axes: N environments, S samples, P prior trajectories, H horizon, I iterations, E heads, Z latent, A action.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tdmpc2.errors import UserError
from tdmpc2.model import WorldModel
from tdmpc2.model.layers import Int8Layer, Layer, Mlp
from tdmpc2.planner.plan import Plan, PlanNoise
from tdmpc2.planner.settings import PlannerSettings


class ReferencePlanner:
    """As `Planner`: a world model of float weights, the planner's numbers, and the discount of each task.

    Raises:
        UserError: for a model of int8 weights.
    """

    def __init__(self, model: WorldModel, settings: PlannerSettings, discounts: Tensor) -> None:
        if any(isinstance(layer, Int8Layer) for layer in model.modules()):
            raise UserError("the reference planner multiplies floats, and this model has int8 weights: use Planner.")
        self.model, self.settings, self.discounts = model, settings, discounts
        d = model.dims
        self._bins = torch.linspace(d.vmin, d.vmax, d.num_bins, device=discounts.device)

    @torch.no_grad()
    def plan(
        self, obs: Tensor, task: Tensor | None, warm_start: Tensor, noise: PlanNoise, *, greedy: bool = False
    ) -> Plan:
        """One decision for N environments; arguments as of `Planner.plan`. The plan holds its whole trace."""
        s, d = self.settings, self.model.dims
        obs = obs.float()
        # What the task says: its discount gamma, the actions that it has, its embedding e (of no width without tasks).
        row = torch.zeros(len(obs), dtype=torch.int64, device=obs.device) if task is None else task
        gamma = self.discounts[row][:, None]  # [N, 1]
        masks = self.model.action_masks
        mask = obs.new_ones(len(obs), 1, d.action_dim) if masks is None else masks[row][:, None]  # [N, 1, A]
        embedding = self.model.embed_task(task)
        e = obs.new_zeros(len(obs), 1, 0) if embedding is None else embedding.float()[:, None]  # [N, 1, task_dim]
        z0 = network(self.model.encoder, obs[:, None], e)  # [N, 1, Z]

        prior = self._prior_actions(z0, e, mask, noise)
        mean = warm_start.float() * mask
        std = torch.full_like(mean, s.max_std) * mask
        rounds = []
        for i in range(s.iterations):
            # S candidates: the prior's P, and Gaussian ones around the mean.
            drawn = mean[:, :, None] + std[:, :, None] * noise.samples[:, i]
            candidates = torch.cat([prior, drawn.clamp(-1, 1) * mask[:, None]], dim=2)  # [N, H, S, A]
            value = self._values(z0, e, mask, gamma, candidates, noise.terminal[:, i], noise.heads[:, i])
            rounds.append((candidates, value))
            # The elites' weighted moments are the next round's mean and std.
            best = value.topk(s.num_elites, dim=1)
            elites = candidates.gather(2, best.indices[:, None, :, None].expand(-1, s.horizon, -1, d.action_dim))
            weight = torch.softmax(s.temperature * best.values, dim=1)
            w = weight[:, None, :, None]
            mean = (w * elites).sum(2) * mask
            std = (w * (elites - mean[:, :, None]).square()).sum(2).sqrt().clamp(s.min_std, s.max_std) * mask

        # Of an elite drawn by weight, the first whose cumulated weight exceeds a uniform number, the first action.
        rank = noise.elite_rank
        if rank is None:
            rank = (weight.cumsum(1) <= noise.elite[:, None]).sum(1).clamp(max=s.num_elites - 1)
        action = elites[torch.arange(len(obs), device=obs.device), 0, rank]
        if not greedy:
            action = action + std[:, 0] * noise.action
        trace = (torch.stack(each, dim=1) for each in zip(*rounds, strict=True))
        return Plan((action * mask[:, 0]).clamp(-1, 1), mean, *trace)

    def _prior_actions(self, z0: Tensor, e: Tensor, mask: Tensor, noise: PlanNoise) -> Tensor:
        """Actions [N, H, P, A] of the policy prior's trajectories, candidates in every round."""
        z, actions = z0.expand(-1, self.settings.num_pi_trajs, -1), []
        for t in range(self.settings.horizon):
            actions.append(self._policy(z, e, mask, noise.prior[:, t]))
            z = network(self.model.dynamics, z, e, actions[t])
        return torch.stack(actions, dim=1)

    def _values(
        self, z: Tensor, e: Tensor, mask: Tensor, gamma: Tensor, actions: Tensor, terminal_noise: Tensor, heads: Tensor
    ) -> Tensor:
        """Estimated returns [N, S] of sequences [N, H, S, A]: V of the module's docstring."""
        model, samples = self.model, actions.shape[2]
        z = z.expand(-1, samples, -1)
        value, discount = gamma.new_zeros(1), torch.ones_like(gamma)
        for t in range(self.settings.horizon):
            value = value + discount * self._decode(network(model.reward_head, z, e, actions[:, t]))
            z = network(model.dynamics, z, e, actions[:, t])
            discount = discount * gamma
        last = self._policy(z, e, mask, terminal_noise)
        q = self._decode(network(model.q_heads, z, e, last))  # [E, N, S]
        two = heads.topk(2, dim=1).indices.T  # two heads drawn for each environment
        q = q.gather(0, two[:, :, None].expand(-1, -1, samples)).mean(0)
        return (value + discount * q).nan_to_num(0.0)  # of a model whose numbers overflow

    def _policy(self, z: Tensor, e: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """Actions [N, S, A] of the policy prior: tanh of a Gaussian (section 3.1), 0 where a task has none."""
        d = self.model.dims
        mean, raw = network(self.model.policy_head, z, e).chunk(2, dim=-1)
        log_std = d.log_std_min + 0.5 * (d.log_std_max - d.log_std_min) * (torch.tanh(raw) + 1)
        return torch.tanh(mean + noise * log_std.exp()) * mask

    def _decode(self, logits: Tensor) -> Tensor:
        """Scalars [...] that logits [..., bins] stand for: symexp of the expected bin (section 3.1)."""
        expected = torch.softmax(logits, dim=-1) @ self._bins
        return torch.sign(expected) * torch.expm1(expected.abs())


def network(part: Mlp, *pieces: Tensor) -> Tensor:
    """A part of the model on its input in pieces: [N, S, out], or [E, N, S, out] of an ensemble of E heads.

    The first piece is [N, S, ...]; later ones may be [N, 1, ...], the same for all trajectories. Each layer is linear;
    hidden ones go on with LayerNorm and Mish, a latent ends with LayerNorm and SimNorm, a softmax within each group of
    neighbours (section 3.1).
    """
    x = torch.cat([piece.expand(-1, pieces[0].shape[1], -1) for piece in pieces], dim=-1)
    lead = x.shape[:-1] if part.heads is None else (part.heads, *x.shape[:-1])
    x = x.flatten(0, 1) if part.heads is None else x.flatten(0, 1).expand(part.heads, -1, -1)
    for layer in part.layers:
        assert isinstance(layer, Layer)
        weight, bias = layer.weight.float(), layer.bias.float()
        stacked = part.heads is not None  # weight [E, out, in]: one batched product for all heads
        x = torch.baddbmm(bias[:, None], x, weight.mT) if stacked else F.linear(x, weight, bias)
        if layer.activation == "none":
            continue
        norm_weight, norm_bias = layer.norm_weight.float(), layer.norm_bias.float()
        if stacked:
            x = F.layer_norm(x, (layer.out_dim,)) * norm_weight[:, None] + norm_bias[:, None]
        else:
            x = F.layer_norm(x, (layer.out_dim,), norm_weight, norm_bias)
        groups = x.unflatten(-1, (-1, layer.simnorm_dim)) if layer.activation == "simnorm" else None
        x = F.mish(x) if groups is None else torch.softmax(groups, dim=-1).flatten(-2)
    return x.view(*lead, x.shape[-1])
