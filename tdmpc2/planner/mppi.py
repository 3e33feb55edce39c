"""Model predictive path integral control in latent space, for a batch of environments (TD-MPC2, section 3.3).

Axes: N environments, S samples, P prior trajectories, H horizon, I iterations, E heads, Z latent, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdmpc2.model import WorldModel
from tdmpc2.planner.settings import PlannerSettings


@dataclass(frozen=True)
class PlanNoise:
    """All randomness of one decision for N environments; normal unless said otherwise.

    Attributes:
        prior: [N, H, P, A] of the policy prior's trajectories.
        samples: [N, I, H, S - P, A] of the Gaussian ones.
        terminal: [N, I, S, A] of the terminal action.
        heads: uniform [N, I, E]; the two largest name the two Q heads.
        elite: uniform [N] in [0, 1); where it falls in the cumulated elite weights names the elite.
        action: [N, A] exploration noise.
        elite_rank: optional int64 [N], the elite to take (0 the best), instead of `elite`.
    """

    prior: Tensor
    samples: Tensor
    terminal: Tensor
    heads: Tensor
    elite: Tensor
    action: Tensor
    elite_rank: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """What a decision came to.

    Attributes:
        action: [N, A] to take, in [-1, 1].
        mean: [N, H, A], the warm start of the next decision.
        candidates: [N, I, H, S, A] and values [N, I, S], only when a trace was asked.
    """

    action: Tensor
    mean: Tensor
    candidates: Tensor | None = None
    values: Tensor | None = None


class Planner:
    """Plans with a world model; holds settings and task facts, no state between decisions.

    Args:
        model: the world model to plan in, in eval mode.
        settings: the planner's numbers.
        discounts: gamma of each task, float [tasks].
    """

    def __init__(self, model: WorldModel, settings: PlannerSettings, discounts: Tensor) -> None:
        self.model = model
        self.settings = settings
        self.discounts = discounts

    def draw_noise(self, count: int, generator: torch.Generator | Sequence[torch.Generator] | None) -> PlanNoise:
        """Noise for `count` environments.

        With one generator per environment, an environment's noise does not depend on those planned beside it.
        """
        s, d = self.settings, self.model.dims
        shapes = {
            "prior": (s.horizon, s.num_pi_trajs, d.action_dim),
            "samples": (s.iterations, s.horizon, s.num_samples - s.num_pi_trajs, d.action_dim),
            "terminal": (s.iterations, s.num_samples, d.action_dim),
            "action": (d.action_dim,),
        }
        sizes = [int(torch.Size(shape).numel()) for shape in shapes.values()]
        uniforms = s.iterations * d.num_q + 1
        device = self.discounts.device
        if generator is None or isinstance(generator, torch.Generator):
            normal = torch.randn(count, sum(sizes), generator=generator, device=device)
            uniform = torch.rand(count, uniforms, generator=generator, device=device)
        else:
            normal = torch.empty(count, sum(sizes), device=device)
            uniform = torch.empty(count, uniforms, device=device)
            for row, own in enumerate(generator):
                normal[row].normal_(generator=own)
                uniform[row].uniform_(generator=own)
        blocks = {
            name: block.unflatten(1, shape)
            for (name, shape), block in zip(shapes.items(), normal.split(sizes, dim=1), strict=True)
        }
        heads = uniform[:, :-1].unflatten(1, (s.iterations, d.num_q))
        return PlanNoise(heads=heads, elite=uniform[:, -1], **blocks)

    @torch.no_grad()
    def plan(
        self,
        obs: Tensor,
        task: Tensor | None,
        warm_start: Tensor,
        noise: PlanNoise,
        *,
        greedy: bool = False,
        trace: bool = False,
    ) -> Plan:
        """One decision for N environments.

        Args:
            obs: [N, O].
            task: int64 [N]; None for a single-task model.
            warm_start: [N, H, A] the first mean: the last plan shifted by one step, 0 at an episode's start.
            noise: all randomness of this decision.
            greedy: leave the exploration noise out of the action.
            trace: keep every iteration's candidates and values.
        """
        s, model = self.settings, self.model
        count, device = obs.shape[0], obs.device
        column = None if task is None else task.unsqueeze(1)
        mask = None if model.action_masks is None or task is None else model.action_masks[task]
        z = model.encode(obs, task).unsqueeze(1)  # [N, 1, Z]
        candidates = torch.empty(count, s.horizon, s.num_samples, model.dims.action_dim, device=device)
        if s.num_pi_trajs:
            candidates[:, :, : s.num_pi_trajs] = self._prior_trajectories(z, column, noise.prior)
        mean = warm_start.float()
        std = torch.full_like(mean, s.max_std)
        if mask is not None:
            mean, std = mean * mask[:, None], std * mask[:, None]
        traced: list[tuple[Tensor, Tensor]] = []
        for i in range(s.iterations):
            drawn = mean.unsqueeze(2) + std.unsqueeze(2) * noise.samples[:, i]
            if mask is not None:
                drawn = drawn * mask[:, None, None]
            candidates[:, :, s.num_pi_trajs :] = drawn.clamp(-1, 1)
            value = self.value(z, column, candidates, noise.terminal[:, i], noise.heads[:, i])
            if trace:
                traced.append((candidates.clone(), value))
            best = value.topk(s.num_elites, dim=1)
            elites = candidates.gather(2, best.indices[:, None, :, None].expand(-1, s.horizon, -1, mean.shape[-1]))
            weight = torch.softmax(s.temperature * best.values, dim=1)
            w = weight[:, None, :, None]
            mean = (w * elites).sum(2)
            std = (w * (elites - mean.unsqueeze(2)).square()).sum(2).sqrt().clamp(s.min_std, s.max_std)
            if mask is not None:
                mean, std = mean * mask[:, None], std * mask[:, None]
        action = self._draw_action(elites, weight, std, mask, noise, greedy)
        if not trace:
            return Plan(action, mean)
        return Plan(action, mean, torch.stack([c for c, _ in traced], 1), torch.stack([v for _, v in traced], 1))

    def value(self, z: Tensor, task: Tensor | None, actions: Tensor, terminal_noise: Tensor, heads: Tensor) -> Tensor:
        """Estimated return [N, S] of action sequences: H discounted rewards and the terminal value.

        Args:
            z: [N, 1 or S, Z] latents to start from.
            task: int64 [N, 1] or None.
            actions: [N, H, S, A].
            terminal_noise: [N, S, A] of the action that the terminal value is taken at.
            heads: uniform [N, E]; Q is averaged over the heads of the two largest.

        A value that is not a number counts as 0.
        """
        model = self.model
        z = z.expand(-1, actions.shape[2], -1)
        gamma = self.discounts[0] if task is None else self.discounts[task].unsqueeze(-1)  # [N, 1, 1]
        total = torch.zeros(*z.shape[:2], 1, device=z.device)
        discount = torch.ones_like(gamma)
        for t in range(actions.shape[1]):
            total = total + discount * model.decode(model.reward(z, actions[:, t], task))
            z = model.next(z, actions[:, t], task)
            discount = discount * gamma
        _, _, last_action = model.policy(z, task, terminal_noise)
        assert last_action is not None
        q = model.decode(model.q_values(z, last_action, task))  # [E, N, S, 1]
        if q.shape[0] > 2:
            # All heads are valued and two picked per environment: a plan then ignores its neighbours.
            two = heads.topk(2, dim=1).indices.T[:, :, None, None].expand(-1, -1, *q.shape[2:])
            q = q.gather(0, two)
        return (total + discount * q.mean(0)).squeeze(-1).nan_to_num(0.0)

    def _prior_trajectories(self, z: Tensor, task: Tensor | None, noise: Tensor) -> Tensor:
        """Actions [N, H, P, A] of P rollouts of the policy prior from latents z [N, 1, Z]."""
        horizon, trajectories = noise.shape[1], noise.shape[2]
        z = z.expand(-1, trajectories, -1)
        actions = []
        for t in range(horizon):
            _, _, action = self.model.policy(z, task, noise[:, t])
            assert action is not None
            actions.append(action)
            if t + 1 < horizon:
                z = self.model.next(z, action, task)
        return torch.stack(actions, dim=1)

    @staticmethod
    def _draw_action(
        elites: Tensor, weight: Tensor, std: Tensor, mask: Tensor | None, noise: PlanNoise, greedy: bool
    ) -> Tensor:
        if noise.elite_rank is not None:
            rank = noise.elite_rank
        else:
            below = weight.cumsum(1) <= noise.elite.to(weight.dtype).unsqueeze(1)
            rank = below.sum(1).clamp(max=weight.shape[1] - 1)
        action = elites[torch.arange(elites.shape[0], device=elites.device), 0, rank]
        if not greedy:
            action = action + std[:, 0] * noise.action
        if mask is not None:
            action = action * mask
        return action.clamp(-1, 1)
