"""A network as a list of plain operations, which every engine but PyTorch is built from. Loads no torch.

Every operation takes and returns (N, C, H, W). Operations are numbered by their position from 1; the input is 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dla.models.registry import LOGITS, check_feature_node
from dla.storage.cache import key_of
from dla.storage.files import JsonObject, Kind, parse_object
from dla.types import Array
from dla.version import __version__


@dataclass(frozen=True, slots=True)
class Op:
    """One operation on earlier results.

    op_type and its attributes:
        "conv"      layer (its name in the state dict), norm (the name of the batch-norm after it, or None), eps,
                    stride, padding, dilation, groups
        "relu", "add", "concat", "flatten"
        "max_pool"  2x2: stride, dilation, pad_end (rows of -inf below and columns right of the map)
        "avg_pool"  3x3: stride; "avg_pool_dilated": dilation, channels; the zero padding counts
        "global_avg_pool", "global_max_pool"    (N, C, H, W) -> (N, C, 1, 1)
        "slice"     along the channels: start, stop
        "scale"     factor
        "upsample"  bilinear, by the whole number `factor`, cut to the size of the second input
        "transposed"    the same by a depthwise transposed convolution of kernel 2 factor: layer, factor
    inputs: numbers of operations.
    """

    op_type: str
    inputs: tuple[int, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution with its batch-norm folded in, float32: weight (C_out, C_in / groups, kH, kW), bias (C_out,)."""

    weight: Array
    bias: Array


@dataclass(frozen=True, slots=True)
class OpGraph:
    """The operations of one network. `output` is the number of the last one; `nodes` maps feature nodes to numbers."""

    ops: tuple[Op, ...]
    output: int
    nodes: Mapping[str, int]

    def truncate(self, at: str) -> OpGraph:
        """Return the part that leads to one feature node (`dla.models.nodes.truncate` documents the names).

        Raises:
            UnknownNameError: the network has no such node.
        """
        check_feature_node(at, self.nodes)
        needed = {self.nodes[at]}
        for number in range(len(self.ops), 0, -1):
            if number in needed:
                needed.update(self.ops[number - 1].inputs)
        order = sorted(needed - {0})
        renumbered = {0: 0} | {old: new for new, old in enumerate(order, 1)}
        kept = [self.ops[old - 1] for old in order]
        ops = tuple(replace(op, inputs=tuple(renumbered[i] for i in op.inputs)) for op in kept)
        return OpGraph(ops, renumbered[self.nodes[at]], {at: renumbered[self.nodes[at]]})

    def to_json(self) -> str:
        """Serialize to JSON; equal graphs give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> OpGraph:
        """Parse what `to_json` wrote.

        Raises:
            DamagedError: it is not that.
        """
        root = JsonObject(parse_object(text.encode(errors="replace"), "a graph"), "a graph")
        ops = tuple(_op(number, saved) for number, saved in enumerate(root.objects("ops"), 1))
        nodes = root.object("nodes")
        numbers = {name: _number(nodes, name, len(ops)) for name in nodes.fields}
        return cls(ops, _number(root, "output", len(ops)), numbers)


_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "conv": ("layer", "norm", "eps", "stride", "padding", "dilation", "groups"),
    "relu": (), "add": (), "concat": (), "flatten": (), "global_avg_pool": (), "global_max_pool": (),
    "max_pool": ("stride", "dilation", "pad_end"), "avg_pool": ("stride",),
    "avg_pool_dilated": ("dilation", "channels"), "slice": ("start", "stop"), "scale": ("factor",),
    "upsample": ("factor",), "transposed": ("layer", "factor"),
}  # fmt: skip


def _op(number: int, saved: JsonObject) -> Op:
    op_type = saved.get("op_type", str, ", ".join(_ATTRIBUTES), lambda name: name in _ATTRIBUTES)
    inputs = saved.get("inputs", list, "earlier results", lambda inputs: all(type(i) is int for i in inputs))
    if not all(0 <= i < number for i in inputs):
        raise saved.error(f"{saved.inside}inputs are not results of earlier operations")
    attributes = saved.object("attributes")
    for name in _ATTRIBUTES[op_type]:
        if name == "norm":
            attributes.get(name, str, "a text", default=None)
        else:
            kind: Kind = str if name == "layer" else (int, float)
            attributes.get(name, kind, "a text" if kind is str else "a number")
    return Op(op_type, tuple(inputs), attributes.fields)


def _number(saved: JsonObject, name: str, count: int) -> int:
    number: int = saved.get(name, int, f"0 to {count}", lambda number: 0 <= number <= count)
    return number


@dataclass(frozen=True, slots=True)
class Network:
    """The input of an engine: the operations, the state dict with their weights, and the normalization of pixels.

    The network's input is pixels * scale + shift, for pixels from 0 to 255. `digest` is the SHA-256 of the weight file.
    """

    graph: OpGraph
    state: Mapping[str, Array]
    scale_3: Array
    shift_3: Array
    digest: str

    @property
    def is_dense(self) -> bool:
        """Return whether it gives logits for each pixel, at the feature node LOGITS."""
        return LOGITS in self.graph.nodes

    @property
    def content(self) -> str:
        """Return a hash of weights, operations and normalization."""
        numbers = [value.hex() for value in (*self.scale_3.tolist(), *self.shift_3.tolist())]
        return key_of(self.digest, self.graph.to_json(), *numbers)

    @property
    def key(self) -> str:
        """Return `content` hashed with dla's version, the cache key of what engines derive from the network."""
        return key_of(__version__, self.content)

    def at_temperature(self, temperature: float) -> Network:
        """Return the network with its logits divided by `temperature`, as `dla.metrics.calibration.apply_temperature`.

        Exported files contain the division.
        """
        if temperature == 1:
            return self
        ops = (*self.graph.ops, Op("scale", (self.graph.output,), {"factor": 1 / temperature}))
        return replace(self, graph=replace(self.graph, ops=ops, output=len(ops)))


def fold_constants(op: Op, state: Mapping[str, Array]) -> Layer:
    """Return the layer of a "conv", its batch-norm folded in, from the network's state dict."""
    name, norm = op.attributes["layer"], op.attributes["norm"]
    weight = state[f"{name}.weight"].astype(np.float32)
    bias = state.get(f"{name}.bias", np.zeros(len(weight))).astype(np.float64)
    if norm is not None:
        gamma, beta, mean, variance = (
            state[f"{norm}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gamma / np.sqrt(variance + op.attributes["eps"])
        weight *= factor.astype(np.float32)[:, None, None, None]
        bias = (bias - mean) * factor + beta
    return Layer(weight, bias.astype(np.float32))
