"""The parts of a world model as ONNX graphs, written from the weights (opset 18, float32).

Axes: N environments, R rows (trajectories of one environment), H horizon, S samples, E heads, Z latent, O observation,
A action. A multi-task graph takes `task` int64 [N]; what the task embedding adds to a first layer is a table of
one row a task, taken in advance, so that no graph holds the embedding itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tdmpc2.errors import UserError
from tdmpc2.model import ModelDims

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise UserError("export needs the packages onnx and onnxruntime: pip install onnx onnxruntime") from error

OPSET = 18
"""LayerNormalization came with 17, Split into equal parts with 18."""
IR_VERSION = 8
GRAPHS = ("encoder", "policy", "dynamics", "reward", "q", "value")
"""What an exported agent has; value is the estimate of whole trajectories that the planner asks for."""
SIZE_LIMIT = 2**31 - 1
"""Bytes that one ONNX file can hold: a protobuf message is no larger."""

Array = np.ndarray
_MISH_END = 20.0  # beyond it mish(x) is x in float32


@dataclass(frozen=True)
class ExportModel:
    """What the graphs are made from, in numpy.

    Attributes:
        weights: float32, under the names of `WorldModel.state_dict()`; target Q is not used.
        dims: the model's dimensions.
        action_masks: float32 [tasks, A], or None for a single task.
        discounts: float32 [tasks].
        horizon: H of the value graph.
        tasks: their names, in the order of their ids, for the files' metadata.
        version: of this package, likewise.
    """

    weights: Mapping[str, Array]
    dims: ModelDims
    action_masks: Array | None
    discounts: Array
    horizon: int
    tasks: tuple[str, ...]
    version: str

    @property
    def multitask(self) -> bool:
        return self.action_masks is not None

    def embedding(self) -> Array:
        """float64 [tasks, task_dim], rows of norm 1 at most."""
        rows = self.weights["task_embedding"].astype(np.float64)
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows * np.where(norm > 1, 1 / (norm + 1e-7), 1.0)


class _Builder:
    """One graph in the making: nodes, constants (each name once), inputs and outputs."""

    def __init__(self, model: ExportModel) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node of one output and returns the output's name."""
        return self.ops(kind, *inputs, count=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, count: int, **attributes: Any) -> list[str]:
        stem = f"{kind.lower()}_{len(self.nodes)}"
        names = [stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=stem, **attributes))
        return names

    def constant(self, name: str, values: Array | float) -> str:
        if name not in self.constants:
            array = np.ascontiguousarray(values, np.float32).reshape(np.shape(values))
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def indices(self, *values: int) -> str:
        name = "indices_" + "_".join(str(v).replace("-", "m") for v in values)
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(values, np.int64), name)
        return name

    def input(self, name: str, *shape: str | int) -> str:
        kind = TensorProto.INT64 if name == "task" else TensorProto.FLOAT
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def task_input(self) -> None:
        if self.model.multitask:
            self.input("task", "N")

    def output(self, source: str, name: str, *shape: str | int) -> None:
        self.nodes.append(helper.make_node("Identity", [source], [name], name=f"output_{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def of_task(self, name: str, table: Array, rows: bool) -> str:
        """A constant that differs by task, table [tasks, width]: [N, width], with `rows` [N, 1, width]."""
        if not self.model.multitask:
            return self.constant(name, table[0])
        taken = self.op("Gather", self.constant(name, table), "task", axis=0)
        return self.op("Unsqueeze", taken, self.indices(1)) if rows else taken

    def finish(self, name: str) -> bytes:
        size = sum(len(c.raw_data) for c in self.constants.values())
        check_size(name, size)
        graph = helper.make_graph(
            self.nodes, name, self.inputs, self.outputs, initializer=list(self.constants.values())
        )
        opsets = [helper.make_opsetid("", OPSET)]
        made_by = {"producer_name": "tdmpc2", "producer_version": self.model.version}
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, **made_by)
        # As JSON: the position of a name is the id that the input `task` takes.
        helper.set_model_props(proto, {"tasks": json.dumps(self.model.tasks)})
        onnx.checker.check_model(proto, full_check=True)
        return bytes(proto.SerializeToString())

    # -- layers -----------------------------------------------------------------------------------------------

    def mlp(self, part: str, x: str, action: str | None = None, *, head: int | None = None, alone: bool = False) -> str:
        """A part of the model: [N, O] for the encoder, else x [N, R, Z] and action [N, R, A].

        `alone` says that x has one row for all actions' rows: its product is then taken once.
        """
        count = sum(n.startswith(f"{part}.layers.") and n.endswith(".bias") for n in self.model.weights)
        for i in range(count):
            leaf = _leaf(self.model.weights, f"{part}.layers.{i}", head)
            name = f"{part}.{i}" if head is None else f"{part}.{i}.head{head}"
            x = self._first(name, leaf, x, action, alone) if i == 0 else self._linear(name, leaf, x)
            if "norm_weight" not in leaf:
                continue
            scale, shift = (self.constant(f"{name}.{n}", leaf[n]) for n in ("norm_weight", "norm_bias"))
            x = self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)
            if i + 1 < count:
                x = self._mish(x)
            else:
                x = self._simnorm(x, leaf["bias"].shape[0], rank=2 if part == "encoder" else 3)
        return x

    def _linear(self, name: str, leaf: Mapping[str, Array], x: str) -> str:
        product = self.op("MatMul", x, self.constant(f"{name}.weight", leaf["weight"].T))
        return self.op("Add", product, self.constant(f"{name}.bias", leaf["bias"]))

    def _first(self, name: str, leaf: Mapping[str, Array], x: str, action: str | None, alone: bool) -> str:
        d = self.model.dims
        actions = 0 if action is None else d.action_dim
        weight = leaf["weight"].T
        inputs = weight.shape[0] - d.task_dim - actions  # x has so many
        bias = leaf["bias"][None].astype(np.float64)
        if self.model.multitask:
            bias = bias + self.model.embedding() @ weight[inputs : inputs + d.task_dim].astype(np.float64)
        constant = self.of_task(f"{name}.task_bias", bias, rows=not name.startswith("encoder"))
        matrix = self.constant(f"{name}.weight", np.concatenate([weight[:inputs], weight[inputs + d.task_dim :]]))
        if action is None:
            return self.op("Add", self.op("MatMul", x, matrix), constant)
        if not alone:
            return self.op("Add", self.op("MatMul", self.op("Concat", x, action, axis=-1), matrix), constant)
        # Runtimes fold this split of a constant when they load the file.
        for_x, for_action = self.ops("Split", matrix, self.indices(inputs, actions), count=2, axis=0)
        start = self.op("Add", self.op("MatMul", x, for_x), constant)
        return self.op("Add", self.op("MatMul", action, for_action), start)

    def _mish(self, x: str) -> str:
        # x n / (n + 2) with n = e (e + 2), e = exp(x): runtimes compute this several times faster than their Mish.
        two = self.constant("two", 2.0)
        e = self.op("Exp", self.op("Min", x, self.constant("mish_end", _MISH_END)))
        n = self.op("Mul", e, self.op("Add", e, two))
        return self.op("Mul", x, self.op("Div", n, self.op("Add", n, two)))

    def _simnorm(self, x: str, width: int, rank: int) -> str:
        group = self.model.dims.simnorm_dim
        keep = (0,) * (rank - 1)
        groups = self.op("Reshape", x, self.indices(*keep, width // group, group))
        return self.op("Reshape", self.op("Softmax", groups, axis=-1), self.indices(*keep, width))

    def decode(self, logits: str) -> str:
        """Scalars [..., 1] of logits [..., bins]; symexp(x) is 2 sinh(x / 2) exp(|x| / 2)."""
        d = self.model.dims
        bins = self.constant("bins", np.linspace(d.vmin, d.vmax, d.num_bins)[:, None])
        expected = self.op("MatMul", self.op("Softmax", logits, axis=-1), bins)
        half = self.op("Mul", expected, self.constant("half", 0.5))
        grown = self.op("Mul", self.op("Sinh", half), self.op("Exp", self.op("Abs", half)))
        return self.op("Mul", grown, self.constant("two", 2.0))

    def policy(self, z: str, noise: str) -> tuple[str, str, str]:
        """(sampled action, mean after tanh, log std), each [N, R, A]."""
        d = self.model.dims
        mean, raw = self.ops("Split", self.mlp("policy_head", z), count=2, axis=-1, num_outputs=2)
        span = self.constant("log_std_half_span", 0.5 * (d.log_std_max - d.log_std_min))
        middle = self.constant("log_std_middle", 0.5 * (d.log_std_max + d.log_std_min))
        log_std = self.op("Add", self.op("Mul", self.op("Tanh", raw), span), middle)
        if self.model.action_masks is not None:
            mask = self.of_task("action_masks", self.model.action_masks, rows=True)
            mean, log_std, noise = (self.op("Mul", x, mask) for x in (mean, log_std, noise))
        spread = self.op("Mul", noise, self.op("Exp", log_std))
        return self.op("Tanh", self.op("Add", mean, spread)), self.op("Tanh", mean), log_std

    def q(self, z: str, action: str) -> str:
        """Decoded values [N, R, E] of every head."""
        heads = [self.decode(self.mlp("q_heads", z, action, head=e)) for e in range(self.model.dims.num_q)]
        return self.op("Concat", *heads, axis=-1)


def check_size(name: str, size: int) -> None:
    """Raises a UserError for a graph beyond what an ONNX file can hold."""
    if size > SIZE_LIMIT:
        raise UserError(
            f"{name}.onnx would hold {size:,} bytes of weights, an ONNX file at most {SIZE_LIMIT:,} (2 GiB, protobuf's "
            "limit): export a smaller model, a distilled student say."
        )


def _leaf(weights: Mapping[str, Array], prefix: str, head: int | None) -> dict[str, Array]:
    names = ("weight", "bias", "norm_weight", "norm_bias")
    found = {n: weights[f"{prefix}.{n}"] for n in names if f"{prefix}.{n}" in weights}
    return found if head is None else {n: value[head] for n, value in found.items()}


def build_graph(name: str, model: ExportModel) -> bytes:
    """The ONNX file of one of `GRAPHS`; the axes are those of the table in docs/export.md.

    Raises:
        UserError: for weights beyond what an ONNX file can hold.
    """
    b, d = _Builder(model), model.dims
    rows = ("N", "R")
    if name == "encoder":
        obs = b.input("obs", "N", d.obs_dim)
        b.task_input()
        b.output(b.mlp("encoder", obs), "z", "N", d.latent_dim)
        return b.finish(name)
    if name == "value":
        return _value_graph(b)
    z = b.input("z", *rows, d.latent_dim)
    second = b.input("noise" if name == "policy" else "action", *rows, d.action_dim)
    b.task_input()
    match name:
        case "policy":
            for source, output in zip(b.policy(z, second), ("action", "mean", "log_std"), strict=True):
                b.output(source, output, *rows, d.action_dim)
        case "dynamics":
            b.output(b.mlp("dynamics", z, second), "next_z", *rows, d.latent_dim)
        case "reward":
            b.output(b.decode(b.mlp("reward_head", z, second)), "reward", *rows, 1)
        case "q":
            b.output(b.q(z, second), "q", *rows, d.num_q)
        case _:
            raise ValueError(f"no graph is called {name}")
    return b.finish(name)


def _value_graph(b: _Builder) -> bytes:
    """Value [N, S] of action sequences from one latent each: H discounted rewards and two heads' mean Q."""
    model, d = b.model, b.model.dims
    z = b.input("z", "N", 1, d.latent_dim)
    actions = b.input("actions", "N", model.horizon, "S", d.action_dim)
    noise = b.input("terminal_noise", "N", "S", d.action_dim)
    heads = b.input("heads", "N", d.num_q)
    b.task_input()
    terms = []
    for t in range(model.horizon):
        action = b.op("Squeeze", b.op("Gather", actions, b.indices(t), axis=1), b.indices(1))
        terms.append(b.decode(b.mlp("reward_head", z, action, alone=t == 0)))
        z = b.mlp("dynamics", z, action, alone=t == 0)
    last_action, _, _ = b.policy(z, noise)
    q = b.q(z, last_action)
    _, two = b.ops("TopK", heads, b.indices(2), count=2, axis=-1)
    shape = b.op("Concat", b.op("Shape", q, start=0, end=2), b.indices(2), axis=0)
    picked = b.op("GatherElements", q, b.op("Expand", b.op("Unsqueeze", two, b.indices(1)), shape), axis=2)
    terms.append(b.op("ReduceMean", picked, b.indices(-1), keepdims=1))
    gamma = model.discounts.astype(np.float64)[:, None] ** np.arange(model.horizon + 1)
    powers = b.of_task("discounts", gamma, rows=True)  # [N, 1, H + 1], or [H + 1] for a single task
    value = b.op("ReduceSum", b.op("Mul", b.op("Concat", *terms, axis=-1), powers), b.indices(-1), keepdims=0)
    b.output(value, "value", "N", "S")
    return b.finish("value")
