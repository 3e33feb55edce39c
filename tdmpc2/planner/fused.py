"""A world model laid out for planning: a frozen copy that values many trajectories from few latents.

Every network begins with a product of latent, task embedding and action, and a product of pieces is a sum of products:

    W [z; e; a] + b  =  Wz z + We e + Wa a + b

The terms change at different rates in a plan, whose rounds all follow S trajectories from one latent for H steps:

- We e + b changes with the environment's task alone. It is taken once a plan for each network (`Start.step`, `policy`,
  `value`), and added to the rows of all trajectories.
- Wz z is the same for all trajectories at their first step. It is taken once a plan as well (`Start.first_step`,
  `first_policy`); what is left there for each trajectory is Wa a, of 6 numbers instead of 134 with the 1M model, and
  for the policy, which sees no action, nothing.
- Wz z + Wa a of later steps and of the terminal value changes with the trajectory: one product, of [z; a].

What is taken once, a sum of some of the terms, is called a partial product. `reference.py` is the same without any of
this, and a test holds the two equal.

Weights have the arithmetic's type, packed once where the CPU's library can. Latents are in `kernels.simnorm_order`, and
weights with them. Normalisation, decoding and whatever is added up over a plan are in float32.

Axes: N environments, S trajectories, E heads, Z latent, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from tdmpc2.model import WorldModel
from tdmpc2.model.layers import Mlp
from tdmpc2.planner.kernels import Dense, Kernels, norm_form, simnorm_order

_BINS_MULTIPLE = 16


@dataclass(frozen=True)
class Start:
    """What N environments' trajectories have in common; a partial product is [N, 1, hidden] for each network of a
    part, in the type of the products.

    Attributes:
        step, policy, value: We e + b of the first layers.
        first_step, first_policy: Wz z + We e + b for the first latent.
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


@dataclass(frozen=True)
class _Weights:
    """One layer of a network, or of several stacked along a first axis; `scale` is an int8 weight's."""

    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None

    @classmethod
    def of(cls, group: Sequence[tuple[Mlp, int | None]], index: int) -> _Weights:
        """Layer `index` of networks, each with the head of it to take (None where it is no stack)."""

        def found(name: str) -> Tensor | None:
            each = []
            for mlp, head in group:
                tensor = getattr(mlp.layers[index], name, None)
                if tensor is None:
                    return None
                each.append(tensor.detach() if head is None else tensor.detach()[head])
            return each[0] if len(each) == 1 else torch.stack(each)

        weight, bias = found("weight"), found("bias")
        assert weight is not None and bias is not None
        return cls(weight, bias, found("weight_scale"), found("norm_weight"), found("norm_bias"))

    def with_inputs(self, order: Tensor) -> _Weights:
        """The layer for an input whose first numbers come in another order."""
        rest = torch.arange(len(order), self.weight.shape[-1], device=order.device)
        return replace(self, weight=self.weight.index_select(-1, torch.cat([order, rest])))

    def with_outputs(self, order: Tensor) -> _Weights:
        """The layer with its outputs in another order."""
        weight = self.weight.index_select(-2, order)
        others = (self.bias, self.scale, self.norm_weight, self.norm_bias)
        bias, scale, norm_weight, norm_bias = (None if x is None else x.index_select(-1, order) for x in others)
        assert bias is not None
        return _Weights(weight, bias, scale, norm_weight, norm_bias)

    def widened(self, multiple: int) -> _Weights:
        """The layer with logits of minus infinity added up to a multiple of so many outputs, which products prefer."""
        assert self.norm_weight is None
        extra = -self.bias.shape[-1] % multiple
        return replace(
            self,
            weight=F.pad(self.weight, (0, 0, 0, extra)),
            bias=F.pad(self.bias, (0, extra), value=-torch.inf),
            scale=None if self.scale is None else F.pad(self.scale, (0, extra), value=1.0),
        )

    def dense(self, dtype: torch.dtype) -> Dense:
        return Dense(self.weight, self.bias, dtype, self.scale)

    def of_pieces(self, widths: Sequence[int], wanted: Sequence[int], dtype: torch.dtype) -> Dense | None:
        """The layer, without its bias, on some of the pieces of its input; None where these have no width."""
        blocks = self.weight.split(list(widths), dim=-1)
        chosen = [blocks[index] for index in wanted if widths[index]]
        if not chosen:
            return None
        return Dense(torch.cat(chosen, -1), None, dtype, self.scale, [block.shape[-1] for block in chosen])

    def norm(self) -> tuple[Tensor, Tensor]:
        assert self.norm_weight is not None and self.norm_bias is not None
        return self.norm_weight.float(), self.norm_bias.float()


class _Hidden:
    """Networks of the same widths on the same input, up to their last hidden layer.

    Args:
        mlps: the networks, each with the head of it to take (None where it is no stack).
        widths: of the inputs in the first layer's weight: latent, embedding, action.
        order: of the latent's numbers.
        together: multiply all networks in one batched product.
        dtype: of the products.
        kernels: the elementwise functions.
    """

    def __init__(
        self,
        mlps: Sequence[tuple[Mlp, int | None]],
        widths: tuple[int, int, int],
        order: Tensor,
        together: bool,
        dtype: torch.dtype,
        kernels: Kernels,
    ) -> None:
        self.dtype = dtype
        self._kernels = kernels
        groups = [mlps] if together else [[one] for one in mlps]
        firsts = [_Weights.of(group, 0).with_inputs(order) for group in groups]
        self._bias = [weights.bias.float().unsqueeze(-2).unsqueeze(-2) for weights in firsts]
        self._of_latent = [weights.of_pieces(widths, [0], torch.float32) for weights in firsts]
        self._of_embedding = [weights.of_pieces(widths, [1], torch.float32) for weights in firsts]
        self._of_action = [weights.of_pieces(widths, [2], dtype) for weights in firsts]
        self._of_both = [weights.of_pieces(widths, [0, 2], dtype) for weights in firsts]
        self._first_norm = [norm_form(*weights.norm()) for weights in firsts]
        self._others = [
            [
                (weights.dense(dtype), *norm_form(*weights.norm()))
                for weights in (_Weights.of(group, index) for index in range(1, len(mlps[0][0].layers) - 1))
            ]
            for group in groups
        ]

    def of_task(self, embedding: Tensor | None, count: int) -> list[Tensor]:
        """We e + b of embeddings e [N, task_dim], b without: [N, 1, hidden], or [G, N, 1, hidden] of G together.

        In float32, as what `with_latent` gives.
        """
        partials = []
        for bias, dense in zip(self._bias, self._of_embedding, strict=True):
            partial = bias.expand(*bias.shape[:-3], count, 1, -1)
            partials.append(partial if dense is None or embedding is None else partial + dense(embedding).unsqueeze(-2))
        return partials

    def with_latent(self, partials: list[Tensor], z: Tensor) -> list[Tensor]:
        """Wz z of latents z [N, Z] added to what `of_task` gives."""
        added = []
        for partial, dense in zip(partials, self._of_latent, strict=True):
            assert dense is not None
            added.append(partial + dense(z.float()).unsqueeze(-2))
        return added

    def __call__(self, x: Tensor | None, partials: list[Tensor], *, action_only: bool = False) -> list[Tensor]:
        """Last hidden activations, [N * S, hidden] or [G, N * S, hidden] for each group.

        Args:
            x: [N * S, Z + A], or [N * S, A] with `action_only`; None where the partial products are all there is.
            partials: of the first layer, as `of_task` or `with_latent` gives them.
            action_only: x holds actions alone: Wz z is in the partial products.
        """
        out = []
        for index, partial in enumerate(partials):
            if x is None:
                y = partial.flatten(-3, -2).clone()  # norm_mish may overwrite it
            else:
                dense = (self._of_action if action_only else self._of_both)[index]
                assert dense is not None
                y = dense.added_to(partial, x)
            y = self._kernels.norm_mish(y, *self._first_norm[index])
            for dense, weight, bias in self._others[index]:
                y = self._kernels.norm_mish(dense(y), weight, bias)
            out.append(y)
        return out


class FusedModel:
    """The parts of a world model that planning asks for every trajectory.

    Args:
        model: the model; its weights are copied (or viewed where nothing need be copied) as they are now.
        discounts: gamma of each task, float [tasks].
        dtype: of the products and of hidden activations: float32, bfloat16 or float16.
        kernels: the elementwise functions, eager or compiled.
        together: multiply reward and dynamics, and all heads of Q, in batched products, which spares a GPU launches;
            a CPU does better one by one. Default by device.
    """

    def __init__(
        self, model: WorldModel, discounts: Tensor, dtype: torch.dtype, kernels: Kernels, together: bool | None = None
    ) -> None:
        self._model = model
        self._discounts = discounts
        self._kernels = kernels
        self.dtype = dtype
        d = model.dims
        together = discounts.device.type != "cpu" if together is None else together
        widths = (d.latent_dim, d.task_dim, d.action_dim)
        self.order = simnorm_order(d.latent_dim, d.simnorm_dim).to(discounts.device)
        heads: list[tuple[Mlp, int | None]] = [(model.part("q_heads"), head) for head in range(d.num_q)]
        with torch.no_grad():
            reward, dynamics, policy = ((model.part(p), None) for p in ("reward_head", "dynamics", "policy_head"))
            self._step = _Hidden([reward, dynamics], widths, self.order, together, dtype, kernels)
            self._policy = _Hidden([policy], (d.latent_dim, d.task_dim, 0), self.order, together, dtype, kernels)
            self._value = _Hidden(heads, widths, self.order, together, dtype, kernels)
            self._reward_out = _Weights.of([reward], -1).widened(_BINS_MULTIPLE).dense(dtype)
            self._policy_out = _Weights.of([policy], -1).dense(dtype)
            groups = [heads] if together else [[head] for head in heads]
            self._value_out = [_Weights.of(group, -1).widened(_BINS_MULTIPLE).dense(dtype) for group in groups]
            latent = _Weights.of([dynamics], -1).with_outputs(self.order)
            self._latent_out, self._latent_norm = latent.dense(dtype), latent.norm()
            bins = torch.linspace(d.vmin, d.vmax, d.num_bins, device=discounts.device)
            self.bins = F.pad(bins, (0, -d.num_bins % _BINS_MULTIPLE))

    def start(self, z: Tensor, task: Tensor | None) -> Start:
        """Everything that trajectories from latents z [N, 1, Z] have in common; task int64 [N] or None.

        z is in the model's order; latents that `step` gives are in this layout's.
        """
        z = z[..., self.order]
        embedding = self._model.embed_task(task)
        if embedding is not None:
            embedding = embedding.float()
        masks = self._model.action_masks
        step, policy, value = (part.of_task(embedding, len(z)) for part in (self._step, self._policy, self._value))

        def typed(partials: list[Tensor]) -> list[Tensor]:
            return [partial.to(self.dtype) for partial in partials]

        return Start(
            step=typed(step),
            policy=typed(policy),
            value=typed(value),
            first_step=typed(self._step.with_latent(step, z[:, 0])),
            first_policy=typed(self._policy.with_latent(policy, z[:, 0])),
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
