"""Reading and writing checkpoints: released .pt files, restricted, and this project's .safetensors."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tdmpc2.archive import refusing
from tdmpc2.checkpointing.metadata import CheckpointMetadata, parse_metadata
from tdmpc2.checkpointing.released import ReleasedWeights, dequantise, from_released
from tdmpc2.checkpointing.torchfile import read_torch_file
from tdmpc2.errors import CheckpointError, UserError, first_line, printable
from tdmpc2.fileio import atomic_write_bytes
from tdmpc2.model import (
    ACTING_PARTS,
    ALL_PARTS,
    PRIOR_PARTS,
    ModelDims,
    Part,
    WorldModel,
    model_dims,
    of_parts,
    published_size,
)
from tdmpc2.quantisation import SCHEMES, Scheme, storage_scheme
from tdmpc2.quantisation.codecs import Shape
from tdmpc2.tasks import TaskSet, task_set
from tdmpc2.versions import package_versions

_METADATA_KEY = "tdmpc2"


WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
"""Of a pretrained agent's folder (`tdmpc2.pretrained`)."""
_MOST_CONFIG = 8 << 20


@dataclass(frozen=True)
class Checkpoint:
    """Weights under this project's names, still as stored, and what is known of them.

    Stored may mean half, mapped on disk, qint8 in released files, or int8 and packed int4 with scales beside them.
    """

    path: Path
    tensors: dict[str, Tensor]
    dims: ModelDims
    stored_as: str
    metadata: CheckpointMetadata | None
    action_masks: Tensor | None

    @property
    def scheme(self) -> Scheme | None:
        """How an own file is stored; None for a released one."""
        return None if self.metadata is None else _scheme_of(self.path, self.metadata)

    @property
    def is_float(self) -> bool:
        """Whether the weights are stored as floats of any width."""
        scheme = self.scheme
        return not any(t.is_quantized for t in self.tensors.values()) if scheme is None else scheme.is_float

    @property
    def plans(self) -> bool:
        """Whether it holds all that planning needs, not a policy prior alone."""
        return self.parts >= set(ACTING_PARTS)

    @property
    def parts(self) -> frozenset[Part]:
        return frozenset(p for p in ALL_PARTS if any(n.startswith(p + ".") for n in self.tensors))

    def describe(self) -> str:
        """One phrase for error messages: size, tasks, widths, storage."""
        d = self.dims
        size = published_size(d)
        tasks = f"{d.num_tasks} tasks" if d.num_tasks else "one task"
        return (
            f"a {f'{size}M' if size else 'custom-size'} model of {tasks} "
            f"(observation {d.obs_dim}, action {d.action_dim}, latent {d.latent_dim}, "
            f"stored as {self.stored_as})"
        )

    def float32_tensors(self) -> dict[str, Tensor]:
        """The model's tensors turned back into float32, those that were read.

        Raises:
            CheckpointError: for a tensor that holds NaN or infinity: no model computes with it.
        """
        scheme = self.scheme
        if scheme is None:
            floats = {n: dequantise(t) for n, t in self.tensors.items()}
        else:
            shapes = {n: s for n, s in _model_shapes(self.path, self.dims).items() if n in self.tensors}
            floats = scheme.decode(self.tensors, shapes)
        for name, tensor in floats.items():
            # The extremes tell it without a copy of the tensor: NaN is both of them.
            if tensor.numel() and not all(bool(extreme.isfinite()) for extreme in tensor.aminmax()):
                raise CheckpointError(
                    f"{self.path}: '{name}' holds NaN or infinity, so no model can be built of it; give an earlier "
                    "checkpoint of the run, or one made again."
                )
        return floats


def read_checkpoint(path: str | Path, parts: Iterable[Part] | None = None) -> Checkpoint:
    """Opens a checkpoint of any supported format; weights stay mapped on disk until they are used.

    Args:
        path: a released `.pt` file, this project's `.safetensors`, or a folder that holds a `model.safetensors`.
        parts: read only these parts (the task embedding always); default all that the file has.

    Raises:
        CheckpointError: for a missing, truncated, damaged or foreign file.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / WEIGHTS_NAME).is_file():
            raise CheckpointError(f"{path}: is a folder without {WEIGHTS_NAME}; give the checkpoint file itself.")
        path = path / WEIGHTS_NAME
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file.")
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    if head[:2] == b"PK" or path.suffix == ".pt":
        return _read_released(path, parts)
    return _read_own(path, parts)


def _read_released(path: Path, parts: Iterable[Part] | None) -> Checkpoint:
    content = read_torch_file(path, mapped=True)
    released = from_released(path, content)
    dims = _infer_dims(path, released)
    masks = released.facts.get("_action_masks")
    checkpoint = Checkpoint(
        path, released.tensors, dims, released.stored_as, None, None if masks is None else masks.float()
    )
    _check_shapes(checkpoint)
    return checkpoint if parts is None else _only(checkpoint, parts)


def _read_own(path: Path, parts: Iterable[Part] | None) -> Checkpoint:
    wanted = set(ALL_PARTS if parts is None else parts)

    def damaged(reason: str) -> str:
        return f"truncated or not a safetensors checkpoint ({printable(reason)})."

    with refusing(path, CheckpointError, damaged), safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        metadata, checksums = parse_metadata(path, header.get(_METADATA_KEY) or _metadata_beside(path))
        names = set(file.keys())
        if names != set(checksums):
            odd = ", ".join(sorted(names ^ set(checksums))[:5])
            raise CheckpointError(f"{path}: damaged: its tensors and its list of them differ ({printable(odd)}).")
        shapes = {n: tuple(file.get_slice(n).get_shape()) for n in names}
        tensors = {n: file.get_tensor(n) for n in names if n == "task_embedding" or n.split(".")[0] in wanted}
    scheme = _scheme_of(path, metadata)
    for name, tensor in tensors.items():
        if _crc32(tensor) != checksums[name]:
            raise CheckpointError(f"{path}: '{printable(name)}' does not match its checksum; the file is damaged.")
    kinds = "+".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}))
    stored_as = kinds if scheme.is_float else f"{scheme.name}, {kinds}"
    checkpoint = Checkpoint(path, tensors, metadata.dims, stored_as, metadata, None)
    _check_shapes(checkpoint, shapes)
    _check_dtypes(checkpoint, scheme)
    _require(checkpoint, () if parts is None else parts)
    return checkpoint


def _metadata_beside(path: Path) -> str | None:
    """What `config.json` says, for weights in a pretrained agent's folder that another program wrote anew."""
    config = path.with_name(CONFIG_NAME)
    if path.name != WEIGHTS_NAME or not config.is_file():
        return None
    with config.open(encoding="utf-8", errors="replace") as file:
        return file.read(_MOST_CONFIG)


def metadata_text(path: Path) -> str:
    """The metadata of an own file as it stands in it: JSON with the tensors' checksums."""
    with safetensors.safe_open(path, framework="pt") as file:
        return str((file.metadata() or {})[_METADATA_KEY])


def _require(checkpoint: Checkpoint, parts: Iterable[Part]) -> None:
    missing = set(parts) - checkpoint.parts
    if missing:
        raise CheckpointError(f"{checkpoint.path}: has no weights for {', '.join(sorted(missing))}.")


def _only(checkpoint: Checkpoint, parts: Iterable[Part]) -> Checkpoint:
    wanted = set(parts)
    _require(checkpoint, wanted)
    return replace(checkpoint, tensors=of_parts(checkpoint.tensors, wanted))


def _infer_dims(path: Path, released: ReleasedWeights) -> ModelDims:
    t = released.tensors

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in t or t[name].dim() != rank:
            found = f"shape {tuple(t[name].shape)}" if name in t else "no such tensor"
            raise CheckpointError(f"{path}: damaged or incomplete: '{name}': {found}, expected {rank} axes.")
        return tuple(t[name].shape)

    enc_layers = sum(1 for n in t if n.startswith("encoder.layers.") and n.endswith(".weight") and "norm" not in n)
    num_tasks, task_dim = shape("task_embedding", 2) if "task_embedding" in t else (0, 0)
    enc_dim, enc_in = shape("encoder.layers.0.weight", 2)
    latent_dim, _ = shape(f"encoder.layers.{max(enc_layers - 1, 0)}.weight", 2)
    mlp_dim, dyn_in = shape("dynamics.layers.0.weight", 2)
    num_bins, _ = shape("reward_head.layers.2.weight", 2)
    num_q, _, _ = shape("q_heads.layers.0.weight", 3)
    try:
        low = float(released.facts.get("log_std_min", torch.tensor(-10.0)))
        span = float(released.facts.get("log_std_dif", torch.tensor(12.0)))
        return ModelDims(
            obs_dim=enc_in - task_dim,
            action_dim=dyn_in - latent_dim - task_dim,
            num_tasks=num_tasks,
            enc_dim=enc_dim,
            mlp_dim=mlp_dim,
            latent_dim=latent_dim,
            num_enc_layers=enc_layers,
            num_q=num_q,
            task_dim=task_dim,
            num_bins=num_bins,
            log_std_min=low,
            log_std_max=low + span,
        )
    except (UserError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: its tensors do not fit together ({error}).") from error


def _check_shapes(checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]] | None = None) -> None:
    """Every tensor that a model of these dimensions has, in its shape, and no other.

    Target Q may be absent; so may all but a policy prior's parts, in a file of this project.
    """
    found = shapes or {n: tuple(t.shape) for n, t in checkpoint.tensors.items()}
    _check_plausible(checkpoint.path, checkpoint.dims, found)
    scheme, expected = checkpoint.scheme, _model_shapes(checkpoint.path, checkpoint.dims)
    if scheme is not None:
        expected = {name: stored.shape for name, stored in scheme.layout(expected).items()}
    held = {name.split(".")[0] for name in found} - {"task_embedding"}
    if scheme is not None and held == set(PRIOR_PARTS):
        expected = of_parts(expected, PRIOR_PARTS)
    elif "target_q_heads" not in held:
        expected = of_parts(expected, ACTING_PARTS)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"{checkpoint.path}: damaged or incomplete: '{printable(name)}' is "
                f"{found.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}."
            )


def _check_plausible(path: Path, dims: ModelDims, found: dict[str, tuple[int, ...]]) -> None:
    """Refuses dimensions far beyond the tensors that are there: building such a model would fill the memory."""
    held = sum(math.prod(shape) for shape in found.values())
    for name, value in vars(dims).items():
        if isinstance(value, float):
            if not math.isfinite(value):
                raise CheckpointError(f"{path}: no model has its dimensions ({name} is {value}).")
        elif value > (len(found) if name == "num_enc_layers" else held):
            raise CheckpointError(f"{path}: no model has its dimensions ({name} {value} for {held} weights).")
    if dims.num_tasks * dims.action_dim > max(held, 1):
        raise CheckpointError(
            f"{path}: no model has its dimensions ({dims.num_tasks} tasks of {dims.action_dim} actions)."
        )


def _check_dtypes(checkpoint: Checkpoint, scheme: Scheme) -> None:
    layout = scheme.layout(_model_shapes(checkpoint.path, checkpoint.dims))
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype not in layout[name].dtypes:
            expected = " or ".join(sorted(str(dtype).removeprefix("torch.") for dtype in layout[name].dtypes))
            raise CheckpointError(
                f"{checkpoint.path}: '{name}' is stored as {tensor.dtype}, expected {expected} (scheme {scheme.name})."
            )
        if name.endswith("weight_scale") and not bool(((tensor > 0) & tensor.isfinite()).all()):
            raise CheckpointError(f"{checkpoint.path}: '{name}' holds a scale that is not a positive number.")


def _scheme_of(path: Path, metadata: CheckpointMetadata) -> Scheme:
    scheme = storage_scheme(metadata.scheme, metadata.scheme_version)
    if scheme is None:
        raise CheckpointError(
            f"{path}: stored by scheme '{printable(metadata.scheme)}' version {metadata.scheme_version}, "
            f"which this version of the program cannot read; it knows float32, {', '.join(SCHEMES)}, each in version 1."
        )
    return scheme


def _model_shapes(path: Path, dims: ModelDims) -> dict[str, Shape]:
    """Every tensor of a model of these dimensions, target Q included."""
    try:
        with torch.device("meta"):
            model = WorldModel(dims, np.ones((dims.num_tasks, dims.action_dim), np.float32) if dims.num_tasks else None)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = printable(first_line(error))  # torch lists what it would take
        raise CheckpointError(f"{path}: no model has its dimensions ({reason}).") from error
    return {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}


def require_whole(checkpoint: Checkpoint, purpose: str) -> None:
    """Refuses a policy prior alone where a whole model is needed.

    Raises:
        CheckpointError: "... needs a whole model", naming the file.
    """
    if not checkpoint.plans:
        raise CheckpointError(
            f"{checkpoint.path}: holds a policy prior alone; {purpose} needs a whole model: give the file it was cut "
            "from."
        )


def require_float(checkpoint: Checkpoint, purpose: str) -> None:
    """Refuses a file of integers where its float model is needed.

    Args:
        checkpoint: what was read.
        purpose: begins the sentence "... needs float weights".

    Raises:
        CheckpointError: naming the file, how it is stored and what to give instead.
    """
    if not checkpoint.is_float:
        raise CheckpointError(
            f"{checkpoint.path}: is quantised (stored as {checkpoint.stored_as}); "
            f"{purpose} needs float weights: give the student it was made from."
        )


def checkpoint_task_set(checkpoint: Checkpoint, task: str | TaskSet | None = None) -> TaskSet:
    """The task set of a checkpoint: its own, or the one given or named, which must agree with the weights.

    Raises:
        CheckpointError: naming the file, what it holds and what was expected, when they do not agree.
    """
    meta = checkpoint.metadata
    if task is None:
        if meta is None:
            raise CheckpointError(
                f"{checkpoint.path}: {checkpoint.describe()}; a released file does not name its tasks: "
                "give task=mt30 (or the name of the one task it was trained on)."
            )
        return _own_task_set(checkpoint.path, meta)
    if isinstance(task, TaskSet):
        expected = task
    elif meta is not None and task == meta.task_set:
        # The name of the checkpoint's own set, say of a custom one, means the checkpoint's tasks.
        expected = _own_task_set(checkpoint.path, meta)
    else:
        expected = task_set(task)
    if meta is not None and meta.tasks != expected.tasks:
        raise CheckpointError(
            f"{checkpoint.path}: trained on task set '{meta.task_set}' ({printable(', '.join(meta.tasks), 1000)}), "
            f"expected '{expected.name}' "
            f"({', '.join(expected.tasks[:5])}{', …' if len(expected) > 5 else ''})."
        )
    d = checkpoint.dims
    held = (d.num_tasks, d.obs_dim, d.action_dim)
    wanted = (len(expected) if expected.multitask else 0, expected.obs_dim, expected.action_dim)
    if held != wanted:
        raise CheckpointError(
            f"{checkpoint.path}: holds {checkpoint.describe()}, expected a model of '{expected.name}': "
            f"{wanted[0] or 'one'} task{'s' if wanted[0] else ''}, "
            f"observation {wanted[1]}, action {wanted[2]}."
        )
    masks = torch.from_numpy(expected.action_masks())
    if checkpoint.action_masks is not None and not torch.equal(checkpoint.action_masks, masks):
        raise CheckpointError(f"{checkpoint.path}: its action masks are not those of '{expected.name}'.")
    return expected


def _own_task_set(path: Path, meta: CheckpointMetadata) -> TaskSet:
    try:
        return task_set(meta.task_set, meta.tasks)
    except UserError as error:
        raise CheckpointError(f"{path}: names tasks that this version does not have: {printable(error)}") from error


def checkpoint_metadata(checkpoint: Checkpoint, tasks: TaskSet) -> CheckpointMetadata:
    """What the file says of itself, or what can be said of a released one; versions are this installation's."""
    if checkpoint.metadata is not None:
        return replace(checkpoint.metadata, versions=package_versions())
    return CheckpointMetadata(tasks.name, tasks.tasks, checkpoint.dims, published_size(checkpoint.dims), step=0)


def check_size(checkpoint: Checkpoint, model_size: int) -> None:
    """Raises a CheckpointError unless the file holds a model of this published size."""
    if published_size(checkpoint.dims) != model_size:
        d = checkpoint.dims
        wanted = model_dims(model_size, d.obs_dim, d.action_dim, d.num_tasks)
        raise CheckpointError(
            f"{checkpoint.path}: holds {checkpoint.describe()}, expected model_size={model_size}: "
            f"{d.differences(wanted)}."
        )


def build_model(
    checkpoint: Checkpoint,
    tasks: TaskSet,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> WorldModel:
    """A model with the checkpoint's weights, in eval mode; only the parts that were read are built.

    Stored integers become floats here, once, unless their scheme computes with them (`int8-dynamic`): then the weight
    matrices but the encoder's stay int8, and `dtype` is that of everything else.
    """
    with torch.device("meta"):
        model = WorldModel(checkpoint.dims, tasks.action_masks() if tasks.multitask else None, checkpoint.parts)
    scheme = checkpoint.scheme
    if scheme is None or not scheme.integer_products:
        weights = {n: _to(t, device, dtype) for n, t in checkpoint.float32_tensors().items()}
    else:
        model.use_int8_products()
        held = {n: p.dtype for n, p in model.state_dict().items() if not p.is_floating_point() or n.endswith("_scale")}
        stored = {n: _to(checkpoint.tensors[n], device, kept) for n, kept in held.items()}
        floats = {n: _to(t, device, dtype) for n, t in checkpoint.float32_tensors().items() if n not in held}
        weights = stored | floats
    model.load_state_dict(weights, strict=True, assign=True)
    if model.has_target_q:
        model.target_q_heads.requires_grad_(False)
    return model.to(device).eval()


def _to(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    # Copied: what was read may lie in the file itself.
    return tensor.to(device=device, dtype=dtype, copy=True)


def load_model(
    path: str | Path,
    task: str | TaskSet | None = None,
    device: torch.device | str = "cpu",
    parts: Iterable[Part] | None = None,
) -> tuple[WorldModel, TaskSet, Checkpoint]:
    """Reads, checks and builds in one call: (model in eval mode, its task set, the checkpoint)."""
    checkpoint = read_checkpoint(path, parts)
    tasks = checkpoint_task_set(checkpoint, task)
    return build_model(checkpoint, tasks, device), tasks, checkpoint


def save_checkpoint(path: str | Path, tensors: dict[str, Tensor], metadata: CheckpointMetadata) -> int:
    """Writes a .safetensors checkpoint, whole or not at all; returns its size in bytes.

    Args:
        path: target file; an existing one is replaced only by a whole new one.
        tensors: a `WorldModel.state_dict()`, in the dtype to store.
        metadata: what the file says about itself.
    """
    stored = {n: t.detach().to("cpu").contiguous() for n, t in tensors.items()}
    checksums = {n: _crc32(t) for n, t in stored.items()}
    data = safetensors.torch.save(stored, {_METADATA_KEY: metadata.to_json(checksums)})
    atomic_write_bytes(Path(path), data)
    return len(data)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors that are no model as .safetensors, whole or not at all."""
    atomic_write_bytes(path, safetensors.torch.save({n: t.detach().cpu().contiguous() for n, t in tensors.items()}))


def _crc32(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
