"""A world model laid out for planning: a frozen copy that values many trajectories from few latents.

What does not differ between trajectories is multiplied once: the task embedding's share of every first layer, and at a
plan's first step the latent's. Latent and action enter in one product. Weights have the arithmetic's type, packed once
where the CPU's library can. Normalisation, decoding and whatever is added up over a plan are in float32.

Axes: N environments, S trajectories, E heads, Z latent, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdmpc2.model import WorldModel
from tdmpc2.model.layers import Layer, Mlp
from tdmpc2.planner import kernels
from tdmpc2.planner.kernels import Dense, Kernels


@dataclass(frozen=True)
class Start:
    """What N environments' trajectories have in common; a share is [N, 1, hidden] for each network of a part.

    Attributes:
        step, policy, value: the embedding's share, and the bias, of the first layers.
        first_step, first_policy: the same with the first latent's share.
        gamma: discount [N, 1].
        mask: [N, 1, A] of the task's actions, or None.
    """

    step: list[Tensor]
    policy: list[Tensor]
    value: list[Tensor]
    first_step: list[Tensor]
    first_policy: list[Tensor]
    gamma: Tensor
    mask: Tensor | None


class _Hidden:
    """Networks of the same widths on the same input, up to their last hidden layer.

    Args:
        mlps: the networks, each with the head of it to take (None where it is no stack).
        widths: of the inputs in the first layer's weight: latent, embedding, action.
        together: multiply all networks in one batched product.
        dtype: of the products.
        own: the elementwise functions.
    """

    def __init__(
        self,
        mlps: Sequence[tuple[Mlp, int | None]],
        widths: tuple[int, int, int],
        together: bool,
        dtype: torch.dtype,
        own: Kernels,
    ) -> None:
        self._kernels = own
        self._width = mlps[0][0].layers[0].out_dim
        groups = [mlps] if together and len(mlps) > 1 else [[one] for one in mlps]
        self._layers: list[list[tuple[Dense, Tensor, Tensor]]] = []
        self._shares: list[tuple[Tensor, Tensor, Tensor]] = []
        self._from_action: list[Dense] = []
        for group in groups:
            layers: list[tuple[Dense, Tensor, Tensor]] = []
            for index in range(len(mlps[0][0].layers) - 1):
                weight, bias, norm_weight, norm_bias = joined(group, index)
                assert norm_weight is not None and norm_bias is not None
                if index == 0:
                    latent, embedding, action = weight.split(widths, dim=-1)
                    self._shares.append((latent.float(), embedding.float(), bias.float()))
                    dense = Dense(torch.cat([latent, action], -1), None, dtype)
                    self._from_action.append(Dense(action, None, dtype) if action.shape[-1] else dense)
                else:
                    dense = Dense(weight, bias, dtype)
                layers.append((dense, *kernels.norm_form(norm_weight, norm_bias)))
            self._layers.append(layers)

    def embedding_shares(self, embedding: Tensor | None, count: int) -> list[Tensor]:
        """Of embeddings [N, 1, task_dim]: [N or 1, 1, hidden], or [G, N or 1, 1, hidden] of G together, in float32."""
        return [
            bias.unsqueeze(-2).unsqueeze(-2).expand(*bias.shape[:-1], count, 1, -1)
            if embedding is None
            else _product(embedding, by_embedding) + bias.unsqueeze(-2).unsqueeze(-2)
            for _, by_embedding, bias in self._shares
        ]

    def with_latent(self, shares: list[Tensor], z: Tensor) -> list[Tensor]:
        """The shares with those of latents [N, 1, Z] added."""
        return [
            share + _product(z.float(), by_latent)
            for share, (by_latent, _, _) in zip(shares, self._shares, strict=True)
        ]

    def __call__(self, x: Tensor | None, shares: list[Tensor], *, action_only: bool = False) -> list[Tensor]:
        """Last hidden activations, [N * S, hidden] or [G, N * S, hidden] for each group.

        Args:
            x: [N * S, Z + A], or [N * S, A] with `action_only`; None where the shares are all there is.
            shares: of the first layer, as `embedding_shares` or `with_latent` gives them.
            action_only: x holds actions alone: the latent is in the shares.
        """
        out = []
        for share, from_action, layers in zip(shares, self._from_action, self._layers, strict=True):
            (dense, weight, bias), *others = layers
            if x is None:
                y = share.flatten(-3, -2).to(dense.dtype)
            else:
                y = (from_action if action_only else dense).with_share(x, share)
            y = self._kernels.norm_mish(y, weight, bias)
            for dense, weight, bias in others:
                y = self._kernels.norm_mish(dense(y), weight, bias)
            out.append(y)
        return out


class FusedModel:
    """The parts of a world model that planning asks for every trajectory.

    Args:
        model: the model; its weights are copied (or viewed where nothing need be copied) as they are now.
        discounts: gamma of each task, float [tasks].
        dtype: of the products and of hidden activations: float32, bfloat16 or float16.
        own: the elementwise functions, eager or compiled.
        together: multiply reward and dynamics, and all heads of Q, in batched products, which spares a GPU launches;
            a CPU does better one by one. Default by device.
    """

    def __init__(
        self, model: WorldModel, discounts: Tensor, dtype: torch.dtype, own: Kernels, together: bool | None = None
    ) -> None:
        self._model = model
        self._discounts = discounts
        self._kernels = own
        self.dtype = dtype
        d = model.dims
        together = discounts.device.type != "cpu" if together is None else together
        widths = (d.latent_dim, d.task_dim, d.action_dim)
        heads: list[tuple[Mlp, int | None]] = [(model.q_heads, head) for head in range(d.num_q)]
        with torch.no_grad():
            reward, dynamics, policy = ((part, None) for part in (model.reward_head, model.dynamics, model.policy_head))
            self._step = _Hidden([reward, dynamics], widths, together, dtype, own)
            self._policy = _Hidden([policy], (d.latent_dim, d.task_dim, 0), together, dtype, own)
            self._value = _Hidden(heads, widths, together, dtype, own)
            self._reward_out = Dense(*joined([reward], -1)[:2], dtype)
            self._policy_out = Dense(*joined([policy], -1)[:2], dtype)
            groups = [heads] if together else [[head] for head in heads]
            self._value_out = [Dense(*joined(group, -1)[:2], dtype) for group in groups]
            weight, bias, norm_weight, norm_bias = joined([dynamics], -1)
            assert norm_weight is not None and norm_bias is not None
            self._latent_out = Dense(weight, bias, dtype)
            self._latent_norm = norm_weight.float(), norm_bias.float()
            self.bins = torch.linspace(d.vmin, d.vmax, d.num_bins, device=discounts.device)

    def start(self, z: Tensor, task: Tensor | None) -> Start:
        """Everything that trajectories from latents z [N, 1, Z] have in common; task int64 [N] or None."""
        embedding = self._model.embed_task(task)
        if embedding is not None:
            embedding = embedding.float().unsqueeze(1)
        masks = self._model.action_masks
        step, policy, value = (
            part.embedding_shares(embedding, len(z)) for part in (self._step, self._policy, self._value)
        )
        return Start(
            step=step,
            policy=policy,
            value=value,
            first_step=self._step.with_latent(step, z),
            first_policy=self._policy.with_latent(policy, z),
            gamma=self._discounts[:1].expand(len(z)).unsqueeze(1)
            if task is None
            else self._discounts[task].unsqueeze(1),
            mask=None if masks is None or task is None else masks[task].unsqueeze(1),
        )

    def step(self, start: Start, z: Tensor | None, action: Tensor) -> tuple[Tensor, Tensor]:
        """(rewards [N, S] in float32, next latents [N, S, Z]) of actions [N, S, A] in latents; None: the first ones."""
        count, samples = action.shape[:2]
        x = action.to(self.dtype) if z is None else torch.cat([z, action.to(self.dtype)], -1)
        hidden = self._step(x.flatten(0, 1), start.first_step if z is None else start.step, action_only=z is None)
        of_reward, of_latent = hidden if len(hidden) == 2 else hidden[0].unbind(0)
        reward = self._kernels.expectation(self._reward_out(of_reward), self.bins)
        after = self._kernels.norm_simnorm(
            self._latent_out(of_latent), *self._latent_norm, self._model.dims.simnorm_dim
        )
        return reward.view(count, samples), after.view(count, samples, -1)

    def policy(self, start: Start, z: Tensor | None, noise: Tensor) -> Tensor:
        """Actions [N, S, A] in float32, sampled with normal noise [N, S, A], in latents [N, S, Z] (None: the first)."""
        count = noise.shape[0]
        if z is None:
            hidden = self._policy(None, start.first_policy)
        else:
            hidden = self._policy(z.flatten(0, 1), start.policy)
        out = self._policy_out(hidden[0]).view(count, -1, 2 * noise.shape[-1])
        d = self._model.dims
        return self._kernels.squashed(out, noise, start.mask, d.log_std_min, d.log_std_max)

    def values(self, start: Start, z: Tensor, action: Tensor) -> Tensor:
        """Q [E, N, S] in float32, of actions [N, S, A] in latents [N, S, Z]."""
        x = torch.cat([z, action.to(self.dtype)], -1).flatten(0, 1)
        hidden = self._value(x, start.value)
        q = [self._kernels.expectation(out(h), self.bins) for out, h in zip(self._value_out, hidden, strict=True)]
        return torch.cat([one.view(-1, *action.shape[:2]) for one in q])


def joined(group: Sequence[tuple[Mlp, int | None]], index: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Weight, bias and norm of one layer: a single network's own, or several stacked along a new first axis."""

    def of(name: str) -> Tensor | None:
        found = []
        for mlp, head in group:
            layer = mlp.layers[index]
            assert isinstance(layer, Layer)
            parameter = getattr(layer, name)
            if parameter is None:
                return None
            found.append(parameter.detach() if head is None else parameter.detach()[head])
        return found[0] if len(found) == 1 else torch.stack(found)

    weight, bias = of("weight"), of("bias")
    assert weight is not None and bias is not None
    return weight, bias, of("norm_weight"), of("norm_bias")


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x [N, 1, in] by weight [out, in] -> [N, 1, out], or [G, out, in] -> [G, N, 1, out]."""
    return x @ weight.transpose(-1, -2) if weight.dim() == 2 else x @ weight.transpose(-1, -2).unsqueeze(1)
