"""The TD-MPC2 world model: encoder, dynamics, reward, policy prior and value ensemble (TD-MPC2, section 3).

Axes: B batch or N environments (any number of leading axes is allowed), E heads, Z latent, O observation,
A action.
`task` holds int64 task ids and broadcasts against the leading axes; single-task models take None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tdmpc2.errors import UserError
from tdmpc2.model.discrete import two_hot_inverse
from tdmpc2.model.layers import Mlp
from tdmpc2.model.sizes import ModelDims

Part = Literal["encoder", "dynamics", "reward_head", "policy_head", "q_heads", "target_q_heads"]
ALL_PARTS: tuple[Part, ...] = get_args(Part)
ACTING_PARTS: tuple[Part, ...] = ALL_PARTS[:-1]
"""What planning needs: everything but target Q."""
PRIOR_PARTS: tuple[Part, ...] = ("encoder", "policy_head")
"""What acting by the policy prior alone needs."""

Held = TypeVar("Held")

_HALF_LOG_2PI = 0.9189385332046727


class PolicySample(NamedTuple):
    """A reparameterised sample of the policy prior: mean, log_std, action [..., A]; the others [..., 1].

    mean is squashed by tanh. log_prob is that of the squashed action; the logged entropy is its negative.
    scaled_entropy is what the policy loss uses: minus the Gaussian part of the log probability, times the task's
    own number of action dimensions.
    """

    mean: Tensor
    log_std: Tensor
    action: Tensor
    log_prob: Tensor
    scaled_entropy: Tensor


class WorldModel(nn.Module):
    """The learned parts of an agent, all of them or those that `parts` names.

    Args:
        dims: the shape of every part.
        action_masks: float [tasks, A], 1 where a task has that action; None for a single-task model.
        parts: which parts to build; using another one is an error. The task embedding always comes along.

    Weights are left unset: call `init_weights` or load them.
    """

    action_masks: Tensor | None
    task_embedding: nn.Parameter | None
    # Only those that `parts` names exist.
    encoder: Mlp
    dynamics: Mlp
    reward_head: Mlp
    policy_head: Mlp
    q_heads: Mlp
    target_q_heads: Mlp

    def __init__(
        self,
        dims: ModelDims,
        action_masks: np.ndarray | Tensor | None = None,
        parts: Iterable[Part] = ALL_PARTS,
    ) -> None:
        super().__init__()
        self.dims = dims
        self.parts = frozenset(parts)
        if dims.num_tasks:
            expected = (dims.num_tasks, dims.action_dim)
            if action_masks is None or tuple(action_masks.shape) != expected:
                found = None if action_masks is None else tuple(action_masks.shape)
                raise UserError(f"a multi-task model needs action masks of shape {expected}, not {found}.")
            self.task_embedding = nn.Parameter(torch.empty(dims.num_tasks, dims.task_dim))
            # The device is explicit so that a model built under torch.device("meta") still has its masks.
            masks = torch.as_tensor(action_masks, dtype=torch.float32, device="cpu").clone()
            self.register_buffer("action_masks", masks, persistent=False)
        else:
            self.register_parameter("task_embedding", None)
            self.register_buffer("action_masks", None, persistent=False)
        for part in ALL_PARTS:
            if part in self.parts:
                self.add_module(part, _build(part, dims))
        if "target_q_heads" in self.parts:
            self.part("target_q_heads").requires_grad_(False)

    def part(self, name: Part) -> Mlp:
        """One of the networks; a UserError where the model was built without it."""
        if name not in self.parts:
            if name == "target_q_heads":
                hint = "it was saved without them; use target=False or load a file that has them"
            elif self.parts == set(PRIOR_PARTS):
                hint = "it is a policy prior alone, which cannot plan; set mpc=false, or give the file of a whole model"
            else:
                hint = "it was loaded for another purpose"
            raise UserError(f"this model has no weights for '{name}': {hint}.")
        module = getattr(self, name)
        assert isinstance(module, Mlp)
        return module

    @property
    def has_target_q(self) -> bool:
        return "target_q_heads" in self.parts

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """New weights in place (TD-MPC2, appendix): target Q starts equal to Q."""
        with torch.no_grad():
            if self.task_embedding is not None:
                nn.init.uniform_(self.task_embedding, -0.02, 0.02, generator=generator)
            for part in ALL_PARTS:
                if part in self.parts:
                    zero_output = part in ("reward_head", "q_heads", "target_q_heads")
                    self.part(part).init_weights(generator, zero_output=zero_output)
            if {"q_heads", "target_q_heads"} <= self.parts:
                self.part("target_q_heads").load_state_dict(self.part("q_heads").state_dict())

    def use_int8_products(self) -> None:
        """Makes the weight matrices int8 with integer products, for inference; weights are then to be loaded.

        Not the encoder's: it runs once a decision, and observations, whose scales differ widely, lose most in int8.
        """
        for part in self.parts - {"encoder"}:
            self.part(part).use_int8_products()

    # -- task conditioning ----------------------------------------------------------------------------------

    @torch.no_grad()
    def limit_task_embedding(self, task: Tensor) -> None:
        """Rescales the stored embedding rows of `task` to norm 1 where they exceed it, outside the gradient.

        The released models' embedding does so in every forward pass. Here forward passes leave weights alone
        (see `embed_task`), and a training step calls this once, before its gradient is taken.
        """
        if self.task_embedding is None:
            return
        used = torch.zeros(self.dims.num_tasks, 1, dtype=torch.bool, device=self.task_embedding.device)
        used[task.flatten()] = True
        scale = _norm_limit(self.task_embedding)
        self.task_embedding.mul_(torch.where(used, scale, torch.ones_like(scale)))

    def embed_task(self, task: Tensor | None) -> Tensor | None:
        """Embedding rows [..., task_dim] for ids [...], of norm 1 at most; None for a single-task model."""
        if self.task_embedding is None:
            return None
        if task is None:
            raise UserError(f"this model knows {self.dims.num_tasks} tasks: give the task ids.")
        rows = self.task_embedding[task]
        return rows * _norm_limit(rows.detach())

    def _mask(self, task: Tensor | None) -> Tensor | None:
        return None if self.action_masks is None or task is None else self.action_masks[task]

    def pieces(
        self, x: Tensor, task: Tensor | None, action: Tensor | None = None, *, frozen: bool = False
    ) -> list[Tensor]:
        """What a part's first layer sees, in the order of the released weights: x, embedding, action."""
        embedding = self.embed_task(task)
        if embedding is not None:
            embedding = (embedding.detach() if frozen else embedding).to(x.dtype)
            # Heads go in front of all axes, so all pieces need the same number of them.
            embedding = embedding[(None,) * (x.dim() - embedding.dim())]
        pieces = (x, embedding, None if action is None else action.to(x.dtype))
        return [piece for piece in pieces if piece is not None]

    # -- forward passes -------------------------------------------------------------------------------------

    def encode(self, obs: Tensor, task: Tensor | None) -> Tensor:
        """Latents [..., Z] of observations [..., O]."""
        return self.part("encoder")(*self.pieces(obs, task))

    def next(self, z: Tensor, action: Tensor, task: Tensor | None) -> Tensor:
        """Next latents [..., Z] after actions [..., A] in latents [..., Z]."""
        return self.part("dynamics")(*self.pieces(z, task, action))

    def reward(self, z: Tensor, action: Tensor, task: Tensor | None) -> Tensor:
        """Reward logits [..., bins] of actions [..., A] in latents [..., Z]."""
        return self.part("reward_head")(*self.pieces(z, task, action))

    def q_values(
        self,
        z: Tensor,
        action: Tensor,
        task: Tensor | None,
        target: bool = False,
        *,
        heads: Tensor | None = None,
        dropout: Tensor | None = None,
        frozen: bool = False,
    ) -> Tensor:
        """Value logits [E, ..., bins] of every head.

        Args:
            z: [..., Z].
            action: [..., A].
            task: int64 ids or None.
            target: ask the target ensemble.
            heads: int64 [K], ask these heads alone: [K, ..., bins].
            dropout: factors [E or K, ..., hidden] on the first layer (see `losses.dropout_factors`).
            frozen: hold weights and task embedding constant: gradients reach latents and actions alone.

        Raises:
            UserError: if target Q is asked of a model that was loaded without its weights.
        """
        part = self.part("target_q_heads" if target else "q_heads")
        return part(*self.pieces(z, task, action, frozen=frozen), heads=heads, dropout=dropout, frozen=frozen)

    def policy(
        self, z: Tensor, task: Tensor | None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The policy prior at latents [..., Z]: (mean after tanh, log std, sampled action), each [..., A].

        `noise` is standard normal [..., A]; without it no action is sampled. Actions that a task does not have
        are 0.
        """
        mean, log_std, masked_noise = self._policy_gaussian(z, task, noise)
        action = None if masked_noise is None else torch.tanh(mean + masked_noise * log_std.exp())
        return torch.tanh(mean), log_std, action

    def sample_policy(self, z: Tensor, task: Tensor | None, noise: Tensor) -> PolicySample:
        """As `policy`, with the densities that the policy loss needs; the task embedding gets no gradient.

        The Gaussian part sums over all A dimensions, unused ones included, as current TD-MPC2 does; the paper's
        older program counted the constant once. With an entropy coefficient of 1e-4 the two do the same.
        """
        mean, log_std, masked_noise = self._policy_gaussian(z, task, noise, frozen=True)
        assert masked_noise is not None
        action = torch.tanh(mean + masked_noise * log_std.exp())
        gaussian = (-0.5 * masked_noise.square() - log_std - _HALF_LOG_2PI).sum(-1, keepdim=True)
        squash = torch.log(torch.relu(1 - action.square()) + 1e-6).sum(-1, keepdim=True)
        mask = self._mask(task)
        dims: Tensor | float = float(self.dims.action_dim) if mask is None else mask.sum(-1, keepdim=True)
        return PolicySample(torch.tanh(mean), log_std, action, gaussian - squash, -gaussian * dims)

    def _policy_gaussian(
        self, z: Tensor, task: Tensor | None, noise: Tensor | None, *, frozen: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        mean, raw = self.part("policy_head")(*self.pieces(z, task, frozen=frozen)).chunk(2, dim=-1)
        low, high = self.dims.log_std_min, self.dims.log_std_max
        log_std = low + 0.5 * (high - low) * (torch.tanh(raw) + 1)
        mask = self._mask(task)
        noise = None if noise is None else noise.to(mean.dtype)
        if mask is None:
            return mean, log_std, noise
        return mean * mask, log_std * mask, None if noise is None else noise * mask

    def decode(self, logits: Tensor) -> Tensor:
        """Scalars [..., 1] that reward or value logits [..., bins] stand for, always in float32."""
        return two_hot_inverse(logits.float(), self.dims.vmin, self.dims.vmax)


def of_parts(tensors: Mapping[str, Held], parts: Iterable[Part]) -> dict[str, Held]:
    """What belongs to some parts, and to the task embedding, of anything by the names of a model's tensors."""
    return {name: held for name, held in tensors.items() if name.split(".")[0] in {"task_embedding", *parts}}


def _norm_limit(rows: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.where(norm > 1, 1 / (norm + 1e-7), torch.ones_like(norm))


def _build(part: Part, d: ModelDims) -> Mlp:
    hidden = (d.mlp_dim, d.mlp_dim)
    state, state_action = d.latent_dim + d.task_dim, d.latent_dim + d.task_dim + d.action_dim
    match part:
        case "encoder":
            enc_hidden = (d.enc_dim,) * (d.num_enc_layers - 1)
            inputs = d.obs_dim + d.task_dim
            return Mlp(inputs, enc_hidden, d.latent_dim, "simnorm", simnorm_dim=d.simnorm_dim)
        case "dynamics":
            return Mlp(state_action, hidden, d.latent_dim, "simnorm", simnorm_dim=d.simnorm_dim)
        case "reward_head":
            return Mlp(state_action, hidden, d.num_bins, "none")
        case "policy_head":
            return Mlp(state, hidden, 2 * d.action_dim, "none")
        case "q_heads":
            return Mlp(state_action, hidden, d.num_bins, "none", heads=d.num_q)
        case "target_q_heads":
            return Mlp(state_action, hidden, d.num_bins, "none", heads=d.num_q)
