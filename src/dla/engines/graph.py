"""A network as a list of plain steps: what every engine but PyTorch is built from, and what needs no torch to be read.

x is (N, C, H, W) between the steps. A step's number is its place in the list, the input's is 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dla.models.registry import check_feature_node
from dla.storage.cache import key_of
from dla.types import Array
from dla.version import __version__

__all__ = ["Layer", "Network", "Op", "OpGraph", "fold_constants"]


@dataclass(frozen=True, slots=True)
class Op:
    """One operation on earlier results.

    op: "conv"      layer (a name in the state dict), norm (that of the batch-norm after it, or None), eps, stride,
                    padding, dilation, groups
        "relu", "add", "concat", "flatten"
        "max_pool"  of 2x2: stride, dilation, after (rows below and columns right of the map, which never win)
        "mean_3x3"  stride; "mean_3x3_dilated": dilation, channels; zeros around the map count
        "mean", "max"   over the map, (N, C, H, W) -> (N, C, 1, 1)
        "slice"     of the channels: start, stop
        "scale"     factor
    inputs: numbers of steps.
    """

    op: str
    inputs: tuple[int, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution with the batch-norm after it folded in, float32: (C_out, C_in / groups, kH, kW) and (C_out,)."""

    weight: Array
    bias: Array


@dataclass(frozen=True, slots=True)
class OpGraph:
    """The steps of one network. `output` is the number of the step that it gives, `places` those that have names."""

    steps: tuple[Op, ...]
    output: int
    places: Mapping[str, int]

    def cut(self, at: str) -> OpGraph:
        """The part that leads to one place; `dla.models.nodes.truncate` says what they are called.

        Raises:
            UnknownNameError: the network has no such place.
        """
        check_feature_node(at, self.places)
        needed = {self.places[at]}
        for number in range(len(self.steps), 0, -1):
            if number in needed:
                needed.update(self.steps[number - 1].inputs)
        order = sorted(needed - {0})
        renumbered = {0: 0} | {old: new for new, old in enumerate(order, 1)}
        kept = [self.steps[old - 1] for old in order]
        steps = tuple(replace(step, inputs=tuple(renumbered[i] for i in step.inputs)) for step in kept)
        return OpGraph(steps, renumbered[self.places[at]], {at: renumbered[self.places[at]]})

    def to_json(self) -> str:
        """Equal graphs give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> OpGraph:
        """What `to_json` wrote."""
        root = json.loads(text)
        steps = tuple(Op(s["op"], tuple(s["inputs"]), s["settings"]) for s in root["steps"])
        return cls(steps, root["output"], root["places"])


@dataclass(frozen=True, slots=True)
class Network:
    """What engines are made from: the steps, the state dict with their weights, and what turns pixels into their input.

    The input is pixels * scale + shift, for pixels from 0 to 255. `digest` is the SHA-256 of the file that the state
    dict is from.
    """

    graph: OpGraph
    state: Mapping[str, Array]
    scale_3: Array
    shift_3: Array
    digest: str

    @property
    def content(self) -> str:
        """One word for all of it."""
        numbers = [value.hex() for value in (*self.scale_3.tolist(), *self.shift_3.tolist())]
        return key_of(self.digest, self.graph.to_json(), *numbers)

    @property
    def key(self) -> str:
        """The same for what this version of ours makes of it."""
        return key_of(__version__, self.content)

    def at_temperature(self, temperature: float) -> Network:
        """The network whose scores are divided by `temperature` before they become probabilities."""
        if temperature == 1:
            return self
        step = Op("scale", (self.graph.output,), {"factor": 1 / temperature})
        steps = (*self.graph.steps, step)
        return replace(self, graph=replace(self.graph, steps=steps, output=len(steps)))


def fold_constants(step: Op, state: Mapping[str, Array]) -> Layer:
    """The layer of a "conv" step, from the network's own state dict."""
    name, norm = step.settings["layer"], step.settings["norm"]
    weight = state[f"{name}.weight"].astype(np.float32)
    bias = state.get(f"{name}.bias", np.zeros(len(weight))).astype(np.float64)
    if norm is not None:
        gamma, beta, mean, variance = (
            state[f"{norm}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gamma / np.sqrt(variance + step.settings["eps"])
        weight *= factor.astype(np.float32)[:, None, None, None]
        bias = (bias - mean) * factor + beta
    return Layer(weight, bias.astype(np.float32))
