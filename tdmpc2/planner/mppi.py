"""Model predictive path integral control in latent space, for a batch of environments (TD-MPC2, section 3.3).

The algorithm of `reference.py`, which is the one to read first, on the networks of `fused.py`: the prior's trajectories
are followed once, not once a round, and a whole plan can be captured as a CUDA graph.

Axes: N environments, S samples, P prior trajectories, H horizon, I iterations, E heads, Z latent, A action.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tdmpc2.execution import CapturedFunction, Execution
from tdmpc2.model import WorldModel
from tdmpc2.planner.execution import PLANS, kernels_for
from tdmpc2.planner.fused import FusedModel, Start
from tdmpc2.planner.plan import Plan, PlanNoise
from tdmpc2.planner.settings import PlannerSettings


@dataclass(frozen=True)
class _Rollout:
    """What S action sequences come to: discounted rewards [N, S], last latents [N, S, Z], the next discount [N, 1]."""

    rewards: Tensor
    z: Tensor
    discount: Tensor

    def after(self, first: _Rollout | None) -> _Rollout:
        """With the sequences of `first` in front."""
        if first is None:
            return self
        return _Rollout(torch.cat([first.rewards, self.rewards], 1), torch.cat([first.z, self.z], 1), self.discount)


class Planner:
    """Plans with a world model; holds settings and task facts, no state between decisions.

    Args:
        model: the world model to plan in, in eval mode. When its weights change, the next plan follows them.
        settings: the planner's numbers.
        discounts: gamma of each task, float [tasks].
        execution: arithmetic and way of running.

    Actions are finite whatever the weights and observations, as long as those are: where the model's numbers
    overflow, what is not a number counts as 0.

    Raises:
        UserError: when the machine's memory cannot hold a plan.
    """

    # A captured plan holds memory; environments that end one by one must not fill the device with graphs.
    _MOST_GRAPHS = 8

    def __init__(
        self,
        model: WorldModel,
        settings: PlannerSettings,
        discounts: Tensor,
        execution: Execution | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.discounts = discounts
        self.check_memory()
        self.execution = (execution or Execution()).supported_on(discounts.device, PLANS)
        self._weights: list[tuple[int, int]] = []
        self._fused: FusedModel | None = None
        self._graphs: dict[tuple[int, bool], CapturedFunction] = {}

    def check_memory(self, num_envs: int = 1) -> None:
        """Raises a `UserError` when this machine's memory cannot hold plans for so many; says nothing of a GPU's."""
        if self.discounts.device.type == "cpu":
            dims = self.model.dims
            self.settings.check_memory(dims.action_dim, dims.num_q * dims.mlp_dim, num_envs)

    def fused(self) -> FusedModel:
        """The model laid out for planning, made anew if a weight was changed or replaced since."""
        held = itertools.chain(self.model.parameters(), self.model.buffers())
        weights = [(tensor.data_ptr(), tensor._version) for tensor in held]
        if self._fused is None or weights != self._weights:
            self._weights = weights
            self._graphs.clear()
            kernels = kernels_for(self.execution, self.discounts.device)
            self._fused = FusedModel(self.model, self.discounts, self.execution.dtype, kernels)
        return self._fused

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
            for row, of_row in enumerate(generator):
                normal[row].normal_(generator=of_row)
                uniform[row].uniform_(generator=of_row)
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
        model = self.fused()
        if not self.execution.cudagraphs or trace or noise.elite_rank is not None:
            return self._plan(model, obs, task, warm_start, noise, greedy, trace)
        inputs = {f.name: getattr(noise, f.name) for f in fields(PlanNoise) if f.name != "elite_rank"}
        inputs |= {"obs": obs, "warm_start": warm_start} | ({} if task is None else {"task": task})

        def whole(obs: Tensor, warm_start: Tensor, task: Tensor | None = None, **of_noise: Tensor) -> dict[str, Tensor]:
            plan = self._plan(model, obs, task, warm_start, PlanNoise(**of_noise), greedy, False)
            return {"action": plan.action, "mean": plan.mean}

        form = (obs.shape[0], greedy)
        if form not in self._graphs:
            if len(self._graphs) == self._MOST_GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[form] = CapturedFunction(whole, obs.device, repeatable=True, copy_outputs=True)
        return Plan(**self._graphs[form](inputs))

    def _plan(
        self,
        model: FusedModel,
        obs: Tensor,
        task: Tensor | None,
        warm_start: Tensor,
        noise: PlanNoise,
        greedy: bool,
        trace: bool,
    ) -> Plan:
        s = self.settings
        count, actions = obs.shape[0], self.model.dims.action_dim
        start = model.start(self.model.encode(obs, task).unsqueeze(1), task)
        mask = start.mask
        candidates = torch.empty(count, s.horizon, s.num_samples, actions, device=obs.device)
        prior = None
        if s.num_pi_trajs:
            # The prior's trajectories stay candidates: what they come to is the same in every round.
            drawn, prior = self._rollout(model, start, lambda t, z: model.policy(start, z, noise.prior[:, t]))
            candidates[:, :, : s.num_pi_trajs] = drawn.nan_to_num(0.0)  # of a model whose numbers overflow
        mean = warm_start.float()
        std = torch.full_like(mean, s.max_std)
        if mask is not None:
            mean, std = mean * mask, std * mask
        traced: list[tuple[Tensor, Tensor]] = []
        for i in range(s.iterations):
            drawn = torch.addcmul(mean.unsqueeze(2), std.unsqueeze(2), noise.samples[:, i])
            if mask is not None:
                drawn = drawn * mask[:, None]
            candidates[:, :, s.num_pi_trajs :] = drawn.clamp(-1, 1)
            value = self._value(
                model, start, self._follow(model, start, candidates, prior), noise.terminal[:, i], noise.heads[:, i]
            )
            if trace:
                traced.append((candidates.clone(), value))
            best = value.topk(s.num_elites, dim=1)
            elites = candidates.gather(2, best.indices[:, None, :, None].expand(-1, s.horizon, -1, mean.shape[-1]))
            # Of the distance to the best, so that no temperature turns the largest values into infinities.
            weight = torch.softmax(s.temperature * (best.values - best.values[:, :1]), dim=1)
            w = weight[:, None, :, None]
            mean = (w * elites).sum(2)
            std = (w * (elites - mean.unsqueeze(2)).square()).sum(2).sqrt().clamp(s.min_std, s.max_std)
            if mask is not None:
                mean, std = mean * mask, std * mask
        action = self._draw_action(elites, weight, std, mask, noise, greedy)
        if not trace:
            return Plan(action, mean)
        return Plan(action, mean, torch.stack([c for c, _ in traced], 1), torch.stack([v for _, v in traced], 1))

    @torch.no_grad()
    def prior_action(self, obs: Tensor, task: Tensor | None, noise: Tensor) -> Tensor:
        """Actions [N, A] of the policy prior alone, without planning; zero noise [N, A] takes its mean.

        One pass of two small networks, in the weights' own type: laying them out for planning first would take longer.
        """
        _, _, action = self.model.policy(self.model.encode(obs, task), task, noise)
        assert action is not None
        return action.float().nan_to_num(0.0)

    @torch.no_grad()
    def value(self, z: Tensor, task: Tensor | None, actions: Tensor, terminal_noise: Tensor, heads: Tensor) -> Tensor:
        """Estimated return [N, S] of action sequences: H discounted rewards and the terminal value.

        Args:
            z: [N, 1, Z] latents to start from.
            task: int64 [N, 1] or None.
            actions: [N, H, S, A].
            terminal_noise: [N, S, A] of the action that the terminal value is taken at.
            heads: uniform [N, E]; Q is averaged over the heads of the two largest.

        A value that is not a number counts as 0, an infinite one as the largest finite number.
        """
        model = self.fused()
        start = model.start(z, None if task is None else task.squeeze(1))
        return self._value(model, start, self._follow(model, start, actions), terminal_noise, heads)

    def _follow(self, model: FusedModel, start: Start, actions: Tensor, first: _Rollout | None = None) -> _Rollout:
        """What action sequences [N, H, S, A] come to, of which `first` holds those in front already."""
        known = 0 if first is None else first.rewards.shape[1]
        if first is not None and known == actions.shape[2]:
            return first
        typed = actions[:, :, known:].to(model.dtype)
        return self._rollout(model, start, lambda t, _: typed[:, t])[1].after(first)

    def _rollout(
        self, model: FusedModel, start: Start, choose: Callable[[int, Tensor | None], Tensor]
    ) -> tuple[Tensor, _Rollout]:
        """Actions [N, H, S, A] as chosen for (step, latents [N, S, Z] or None for the first), and what they come to."""
        z: Tensor | None = None
        rewards, discount = torch.zeros_like(start.gamma), torch.ones_like(start.gamma)
        actions = []
        for t in range(self.settings.horizon):
            actions.append(choose(t, z))
            reward, z = model.step(start, z, actions[t])
            rewards = torch.addcmul(rewards, discount, reward)
            discount = discount * start.gamma
        assert z is not None
        return torch.stack(actions, dim=1), _Rollout(rewards, z, discount)

    @staticmethod
    def _value(model: FusedModel, start: Start, rollout: _Rollout, terminal_noise: Tensor, heads: Tensor) -> Tensor:
        """Discounted rewards and terminal value together, [N, S]."""
        q = model.values(start, rollout.z, model.policy(start, rollout.z, terminal_noise))  # [E, N, S]
        if q.shape[0] > 2:
            # All heads are valued and two picked per environment: a plan then ignores its neighbours.
            two = heads.topk(2, dim=1).indices.T.unsqueeze(-1).expand(-1, -1, q.shape[2])
            q = q.gather(0, two)
        return torch.addcmul(rollout.rewards, rollout.discount, q.sum(0) / len(q)).nan_to_num(0.0)

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
            action = action * mask.squeeze(1)
        return action.clamp(-1, 1)
