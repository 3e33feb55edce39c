"""The five published model sizes and the full set of dimensions that a world model is built from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise

from tdmpc2.errors import UserError
from tdmpc2.ranges import MOST_ROUNDS, MOST_WIDTH, check_range, check_share

_MOST_EXPONENT = 80.0


@dataclass(frozen=True)
class ModelDims:
    """Every number that decides the shape of a world model (TD-MPC2, section 3 and appendix).

    Attributes:
        obs_dim: O, width of the (padded) observation.
        action_dim: A, width of the (padded) action.
        num_tasks: rows of the task embedding; 0 for a single-task model, which has none.
        enc_dim: hidden width of the encoder.
        mlp_dim: hidden width of dynamics, reward, policy prior and Q.
        latent_dim: Z, width of the latent.
        num_enc_layers: linear layers of the encoder, the output layer included (at least 2).
        num_q: E, heads of the value ensemble.
        task_dim: width of the task embedding; 0 for a single-task model.
        simnorm_dim: size of one SimNorm group; divides latent_dim.
        num_bins: bins of the discrete regression of rewards and values.
        vmin, vmax: first and last bin, in symlog space; their exponentials are finite in float32: -80 to 80.
        dropout: dropout rate after the first linear layer of Q.
        log_std_min, log_std_max: bounds of the policy's log standard deviation, likewise.

    Widths and bins go up to 2**17, layers and heads up to 1000.
    """

    obs_dim: int
    action_dim: int
    num_tasks: int
    enc_dim: int
    mlp_dim: int
    latent_dim: int
    num_enc_layers: int
    num_q: int
    task_dim: int
    simnorm_dim: int = 8
    num_bins: int = 101
    vmin: float = -10.0
    vmax: float = 10.0
    dropout: float = 0.01
    log_std_min: float = -10.0
    log_std_max: float = 2.0

    def __post_init__(self) -> None:
        # Whole or not, widths are told by building the model: what a file holds is compared there.
        for name in ("obs_dim", "action_dim", "enc_dim", "mlp_dim", "latent_dim", "simnorm_dim"):
            check_range(f"model dimension {name}", getattr(self, name), 1, MOST_WIDTH)
        check_range("num_q", self.num_q, 2, MOST_ROUNDS)  # targets use two random heads
        check_range("num_enc_layers", self.num_enc_layers, 2, MOST_ROUNDS)
        check_range("num_tasks", self.num_tasks, 0, MOST_WIDTH)
        check_range("task_dim", self.task_dim, 0, MOST_WIDTH)
        if self.latent_dim % self.simnorm_dim:
            raise UserError(f"latent_dim {self.latent_dim} is not a multiple of simnorm_dim {self.simnorm_dim}.")
        check_share("dropout", self.dropout, zero=True)
        if bool(self.num_tasks) != bool(self.task_dim):
            raise UserError(
                f"num_tasks {self.num_tasks} and task_dim {self.task_dim} must both be 0 (single task) or both not."
            )
        for name in ("vmin", "vmax", "log_std_min", "log_std_max"):
            check_range(name, getattr(self, name), -_MOST_EXPONENT, _MOST_EXPONENT)
        if self.num_bins < 2 or self.vmin >= self.vmax:
            raise UserError(f"num_bins {self.num_bins} over [{self.vmin}, {self.vmax}] is not a valid grid.")
        check_range("num_bins", self.num_bins, 2, MOST_WIDTH)
        if self.log_std_min >= self.log_std_max:
            raise UserError(f"log_std_min must lie below log_std_max={self.log_std_max}, not be {self.log_std_min}.")

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
