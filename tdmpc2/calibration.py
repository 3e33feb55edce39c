"""What a student's layers are given when it is used, for rounding that looks at it (`quantisation.calibrated`).

The encoder sees stored observations. All other parts see latents rolled out along stored slices, under three kinds of
actions: the stored ones, those of the student's policy prior, and these with noise, since the planner asks everywhere.
Both models are rolled out under the same actions, the float one's, so that a part is made to answer the quantised
model's latents as the float one answers its own.

Axes: H horizon, B slices, K kinds of actions, O observation, A action, Z latent.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from tdmpc2.data.sampler import SliceSampler
from tdmpc2.data.store import EpisodeStore
from tdmpc2.errors import UserError
from tdmpc2.model import ACTING_PARTS, Part, WorldModel
from tdmpc2.model.layers import Layer
from tdmpc2.quantisation import Quantised, Scheme, quantise_by
from tdmpc2.quantisation.calibrated import Moments, calibrated
from tdmpc2.quantisation.codecs import is_grid
from tdmpc2.tasks import TaskSet

HORIZON = 3
"""H, as far as the papers' planner looks."""
_BLOCK = 512
"""Slices taken at a time."""
_NOISE = 0.5
"""Std of the noise on the third kind of actions."""


@dataclass(frozen=True)
class Asked:
    """What the models are asked: obs [H+1, B, O], task [B] or None, and actions [H+1, K B, A], kind after kind."""

    obs: Tensor
    task: Tensor | None
    action: Tensor

    @property
    def kinds(self) -> int:
        return self.action.shape[1] // self.obs.shape[1]


@torch.no_grad()
def calibrate(model: WorldModel, tasks: TaskSet, scheme: Scheme, data_dir: Path, states: int, seed: int) -> Quantised:
    """A student's tensors by a scheme, rounded for the states of a store.

    Args:
        model: of floats, on any device; left as it is.
        tasks: the student's.
        scheme: one with whole numbers and scales.
        data_dir: a store of episodes of all these tasks.
        states: how many slices are drawn from it.
        seed: of the slices and the actions.

    Raises:
        UserError: for a scheme whose rounding nothing is left to choose of.
        DataError: for a store that is empty or lacks a task.
    """
    if not scheme.has_grid:
        raise UserError(
            f"scheme={scheme.name} rounds in one way only: calibrate=… is for int8, int8-dynamic, mixed and int4; "
            "leave it out, or choose one of these."
        )
    blocks = list(_asked(model, tasks, data_dir, states, seed))
    seen = copy.deepcopy(model)
    for name, tensor in seen.state_dict().items():
        if not is_grid(scheme.codec(name)):  # others are rounded in their turn
            tensor.copy_(scheme.rounded(name, tensor))
    chosen: dict[str, dict[str, Tensor]] = {}
    for part in ACTING_PARTS:  # each after those whose outputs it is given; target Q, which nobody deploys, as ever
        for index, layer in enumerate(_layers(seen, part)):
            name = f"{part}.layers.{index}.weight"
            codec = scheme.codec(name)
            if is_grid(codec):
                chosen[name] = calibrated(codec, name, layer.weight, _moments(model, seen, part, index, blocks))
                layer.weight.copy_(codec.decode(chosen[name], tuple(layer.weight.shape)))
    return quantise_by(model.state_dict(), scheme, chosen)


def _asked(model: WorldModel, tasks: TaskSet, data_dir: Path, states: int, seed: int) -> Iterator[Asked]:
    """Slices of the store, block by block, with the actions that the models are asked about."""
    store = EpisodeStore.open(data_dir)
    if not len(store):
        raise UserError(f"{data_dir}: holds no episodes to calibrate on; collect or import some first.")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    sampler = SliceSampler(store, tasks, states, HORIZON + 1, seed)
    whole = sampler.batch(0)
    for start in range(0, states, _BLOCK):
        part = slice(start, start + _BLOCK)
        obs, stored = (x[: HORIZON + 1, part].to(device) for x in (whole.obs, whole.action))
        task = whole.task[part].to(device) if model.dims.num_tasks else None
        noise = torch.randn(2, *stored.shape, generator=generator).to(device)
        yield Asked(obs, task, torch.cat([stored, *_own_actions(model, obs[0], task, noise)], dim=1))


def _own_actions(model: WorldModel, obs: Tensor, task: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions [H+1, B, A] of the prior along rollouts of its own, without and with noise; noise [2, H+1, B, A]."""
    kinds: list[Tensor] = []
    for scale in (0.0, _NOISE):
        z, actions = model.encode(obs, task), []
        for drawn, added in zip(*noise, strict=True):
            action = model.policy(z, task, drawn)[2]
            assert action is not None
            mask = 1.0 if model.action_masks is None or task is None else model.action_masks[task]
            actions.append((action + scale * added * mask).clamp(-1, 1))
            z = model.next(z, actions[-1], task)
        kinds.append(torch.stack(actions))
    return kinds[0], kinds[1]


def _layers(model: WorldModel, part: Part) -> Sequence[Layer]:
    layers = list(model.part(part).layers)
    assert all(isinstance(layer, Layer) for layer in layers)
    return cast(list[Layer], layers)


def _moments(model: WorldModel, seen: WorldModel, part: Part, index: int, blocks: Sequence[Asked]) -> Moments:
    """Of the inputs of a part's layer in the float model and in `seen`, whose earlier layers are quantised.

    Before a LayerNorm a row counts by one over the variance of the layer's outputs: an error matters relative to it.
    """
    layer = _layers(model, part)[index]
    heads, width = layer.weight.shape[0] if layer.weight.dim() == 3 else 1, layer.weight.shape[-1]
    moments = Moments.of(width, heads, layer.weight.device)
    for asked in blocks:
        exact, rounded = (m.part(part).given(index, *_given(part, m, asked)) for m in (model, seen))
        exact, rounded = (x.reshape(heads, -1, width) for x in (exact, rounded))
        moments.add(exact, rounded, None if layer.activation == "none" else _relative_weight(layer, exact))
    return moments


def _relative_weight(layer: Layer, x: Tensor) -> Tensor:
    """[E, R] from a layer's inputs [E, R, in]."""
    weight = layer.weight.reshape(-1, *layer.weight.shape[-2:])
    y = torch.baddbmm(layer.bias.reshape(len(weight), 1, -1), x, weight.mT)
    return 1 / (y.var(dim=-1, correction=0) + 1e-5)  # as LayerNorm


def _given(part: Part, model: WorldModel, asked: Asked) -> list[Tensor]:
    """The pieces of a part's input when a model is asked, each [..., width]."""
    if part == "encoder":
        return model.pieces(asked.obs, asked.task)
    z, task = _latents(model, asked)
    return model.pieces(z, task, None if part == "policy_head" else asked.action)


def _latents(model: WorldModel, asked: Asked) -> tuple[Tensor, Tensor | None]:
    """Rolled-out latents [H+1, K B, Z] and the tasks [K B]."""
    task = None if asked.task is None else asked.task.repeat(asked.kinds)
    z = [model.encode(asked.obs[0], asked.task).repeat(asked.kinds, 1)]
    for action in asked.action[:-1]:
        z.append(model.next(z[-1], action, task))
    return torch.stack(z), task
