"""The five published model sizes and the full set of dimensions that a world model is built from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise

from tdmpc2.errors import UserError
from tdmpc2.keys import TDMPC2, TDMPC2_SIZES, THIS_PROJECT, check_keys, key
from tdmpc2.ranges import MOST_ROUNDS, MOST_WIDTH, Share, Within


class _Width(Within):
    """Whole or not, a width is told by building the model: what a file holds is compared there."""

    def __call__(self, name: str, value: object) -> None:
        super().__call__(f"model dimension {name}", value)


_OF_TASKS = f"{THIS_PROJECT}: the tasks tell it"
_WIDTH = _Width(1, MOST_WIDTH)
_EXPONENT = Within(-80.0, 80.0)


@dataclass(frozen=True)
class ModelDims:
    """Every number that decides the shape of a world model (TD-MPC2, section 3 and appendix).

    Dimensions without a default are those of a published size, or what the tasks tell.
    """

    obs_dim: int = key(text="O: width of the (padded) observation", unit="numbers", source=_OF_TASKS, check=_WIDTH)
    action_dim: int = key(text="A: width of the (padded) action", unit="numbers", source=_OF_TASKS, check=_WIDTH)
    num_tasks: int = key(
        text="rows of the task embedding; 0 for a single-task model, which has none",
        unit="tasks",
        source=_OF_TASKS,
        check=Within(0, MOST_WIDTH),
    )
    enc_dim: int = key(
        text="hidden width of the encoder; null: as model_size has it",
        unit="numbers",
        source=TDMPC2_SIZES,
        check=_WIDTH,
    )
    mlp_dim: int = key(
        text="hidden width of dynamics, reward, policy prior and Q; null: as model_size has it",
        unit="numbers",
        source=TDMPC2_SIZES,
        check=_WIDTH,
    )
    latent_dim: int = key(
        text="Z: width of the latent; null: as model_size has it", unit="numbers", source=TDMPC2_SIZES, check=_WIDTH
    )
    num_enc_layers: int = key(
        text="linear layers of the encoder, the output layer included; null: as model_size has it",
        unit="layers",
        source=TDMPC2_SIZES,
        check=Within(2, MOST_ROUNDS),
    )
    num_q: int = key(
        text="E: heads of the value ensemble, of which a target takes two; null: as model_size has it",
        unit="heads",
        source=TDMPC2_SIZES,
        check=Within(2, MOST_ROUNDS),
    )
    task_dim: int = key(
        text="width of the task embedding; 0 for a single-task model; null: as model_size has it",
        unit="numbers",
        source=TDMPC2_SIZES,
        check=Within(0, MOST_WIDTH),
    )
    simnorm_dim: int = key(
        8, "size of one SimNorm group; divides latent_dim", unit="numbers", source=TDMPC2, check=_WIDTH
    )
    num_bins: int = key(
        101,
        "bins of the discrete regression of rewards and values",
        unit="bins",
        source=TDMPC2,
        check=Within(2, MOST_WIDTH),
    )
    vmin: float = key(
        -10.0, "first bin, below vmax", unit="symlog of a reward or value", source=TDMPC2, check=_EXPONENT
    )
    vmax: float = key(10.0, "last bin", unit="symlog of a reward or value", source=TDMPC2, check=_EXPONENT)
    dropout: float = key(
        0.01, "dropout rate after the first linear layer of Q", unit="ratio", source=TDMPC2, check=Share(zero=True)
    )
    log_std_min: float = key(
        -10.0,
        "least log standard deviation of the policy, below log_std_max",
        unit="log of action units",
        source=TDMPC2,
        check=_EXPONENT,
    )
    log_std_max: float = key(
        2.0, "largest log standard deviation of the policy", unit="log of action units", source=TDMPC2, check=_EXPONENT
    )

    def __post_init__(self) -> None:
        check_keys(self, but=("num_bins",))  # which the line about the whole grid names
        if self.latent_dim % self.simnorm_dim:
            raise UserError(f"latent_dim {self.latent_dim} is not a multiple of simnorm_dim {self.simnorm_dim}.")
        if bool(self.num_tasks) != bool(self.task_dim):
            raise UserError(
                f"num_tasks {self.num_tasks} and task_dim {self.task_dim} must both be 0 (single task) or both not."
            )
        if self.num_bins < 2 or self.vmin >= self.vmax:
            raise UserError(f"num_bins {self.num_bins} over [{self.vmin}, {self.vmax}] is not a valid grid.")
        if self.log_std_min >= self.log_std_max:
            raise UserError(f"log_std_min must lie below log_std_max={self.log_std_max}, not be {self.log_std_min}.")
        check_keys(self)

    def differences(self, other: ModelDims) -> str:
        """`name here != name there` for every field that differs, empty when none does."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return ", ".join(f"{name} {mine} (not {theirs})" for name, mine, theirs in pairs if mine != theirs)


@dataclass(frozen=True)
class ModelSize:
    """One row of the published size table; see `ModelDims` for the meaning of each field."""

    enc_dim: int
    mlp_dim: int
    latent_dim: int
    num_enc_layers: int
    num_q: int
    task_dim: int


MODEL_SIZES: dict[int, ModelSize] = {
    1: ModelSize(enc_dim=256, mlp_dim=384, latent_dim=128, num_enc_layers=2, num_q=2, task_dim=96),
    5: ModelSize(enc_dim=256, mlp_dim=512, latent_dim=512, num_enc_layers=2, num_q=5, task_dim=64),
    19: ModelSize(enc_dim=1024, mlp_dim=1024, latent_dim=768, num_enc_layers=3, num_q=5, task_dim=64),
    48: ModelSize(enc_dim=1792, mlp_dim=1792, latent_dim=768, num_enc_layers=4, num_q=5, task_dim=64),
    317: ModelSize(enc_dim=4096, mlp_dim=4096, latent_dim=1376, num_enc_layers=5, num_q=8, task_dim=96),
}
"""Keyed by millions of parameters, the published name. task_dim is MT30's; a single-task model has 0."""

# The released 19M MT30 model has a narrower latent than the table.
_RELEASED_VARIANTS: dict[int, tuple[ModelSize, ...]] = {
    19: (ModelSize(enc_dim=1024, mlp_dim=1024, latent_dim=512, num_enc_layers=3, num_q=5, task_dim=64),),
}
_MT80_TASK_DIM = 96


def model_dims(model_size: int, obs_dim: int, action_dim: int, num_tasks: int) -> ModelDims:
    """Dimensions of a published size for given widths; `num_tasks` of 1 or less means a single-task model.

    Raises:
        UserError: for a size that is not published.
    """
    if model_size not in MODEL_SIZES:
        known = ", ".join(str(s) for s in MODEL_SIZES)
        raise UserError(f"model_size={model_size} is not a published size; choose one of {known}.")
    size = MODEL_SIZES[model_size]
    multitask = num_tasks > 1
    return ModelDims(
        obs_dim=obs_dim,
        action_dim=action_dim,
        num_tasks=num_tasks if multitask else 0,
        enc_dim=size.enc_dim,
        mlp_dim=size.mlp_dim,
        latent_dim=size.latent_dim,
        num_enc_layers=size.num_enc_layers,
        num_q=size.num_q,
        task_dim=size.task_dim if multitask else 0,
    )


def num_parameters(dims: ModelDims, *, target: bool = True) -> int:
    """Numbers of a whole world model, counted without building it; `target`: those of target Q too."""
    d = dims
    state, state_action = d.latent_dim + d.task_dim, d.latent_dim + d.task_dim + d.action_dim

    def stack(widths: list[int], normed_output: bool) -> int:
        layers = list(pairwise(widths))
        normed = widths[1:] if normed_output else widths[1:-1]
        return sum(inputs * outputs + outputs for inputs, outputs in layers) + 2 * sum(normed)

    hidden = [d.mlp_dim, d.mlp_dim]
    q = d.num_q * stack([state_action, *hidden, d.num_bins], False)
    return (
        d.num_tasks * d.task_dim
        + stack([d.obs_dim + d.task_dim, *[d.enc_dim] * (d.num_enc_layers - 1), d.latent_dim], True)
        + stack([state_action, *hidden, d.latent_dim], True)
        + stack([state_action, *hidden, d.num_bins], False)
        + stack([state, *hidden, 2 * d.action_dim], False)
        + q * (2 if target else 1)
    )


def model_bytes(dims: ModelDims, *, training: bool = False) -> int:
    """Memory of a float32 model with target Q; in training also of its gradients and Adam's two moments."""
    trained = num_parameters(dims, target=False)
    return 4 * (num_parameters(dims) + (3 * trained if training else 0))


def update_bytes(dims: ModelDims, batch_size: int, horizon: int) -> int:
    """Memory that one update's activations take at the least: what the value ensemble keeps for its gradient.

    Both hidden layers of E heads, H steps and B slices keep their linear output and their activation.
    """
    return 4 * 2 * 2 * dims.num_q * horizon * batch_size * dims.mlp_dim


def published_size(dims: ModelDims) -> int | None:
    """The published size (1, 5, 19, 48, 317) that these dimensions belong to, or None."""
    for name, table_row in MODEL_SIZES.items():
        for size in (table_row, *_RELEASED_VARIANTS.get(name, ())):
            body = (dims.enc_dim, dims.mlp_dim, dims.latent_dim, dims.num_enc_layers, dims.num_q)
            if body == (size.enc_dim, size.mlp_dim, size.latent_dim, size.num_enc_layers, size.num_q) and (
                dims.task_dim in (0, size.task_dim, _MT80_TASK_DIM)
            ):
                return name
    return None
