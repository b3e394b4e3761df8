"""ONNX, the file format of networks, and ONNX Runtime, which runs it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dla.engines.base import NetworkEngine
from dla.engines.cpu import instructions
from dla.engines.graph import Network, Op, fold_constants
from dla.engines.onnx_builder import OnnxBuilder
from dla.engines.onnx_resize import add_preprocessing
from dla.errors import UsageError
from dla.images.preprocessing import Preprocessing
from dla.options import Precision, cores
from dla.storage import cache
from dla.types import Array

__all__ = ["PREPARED", "OnnxEngine", "to_onnx"]


PREPARED = "prepared"
KIND = "onnx"  # of what is remembered: networks as ONNX Runtime has optimised them


class OnnxEngine(NetworkEngine):
    """`network` in ONNX Runtime on the CPU; `threads` are those that compute, by default one a core.

    Raises:
        UsageError: another precision than fp32.
    """

    def __init__(self, network: Network, precision: Precision = "fp32", threads: int | None = None) -> None:
        if precision != "fp32":
            raise UsageError(f"the engine onnx computes in fp32, not in {precision}. Try --engine openvino")
        self.network, self.threads = network, threads or cores()
        self.sessions: dict[str | None, Any] = {}

    @property
    def name(self) -> str:
        """What runs, and on what."""
        return "ONNX Runtime on cpu"

    def _run(self, at: str | None, pixels_NHW3: Array) -> Array:
        if at not in self.sessions:
            self.sessions[at] = self._open(at)
        (found,) = self.sessions[at].run(None, {"pixels": np.ascontiguousarray(pixels_NHW3)})
        return found  # type: ignore[no-any-return]

    def _open(self, at: str | None) -> Any:
        """A session; optimising takes longer than all the rest, so its outcome is remembered."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        # threads that wait without spinning leave the cores to those that decode photos
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        key = cache.key_of(self.network.key, at or "", onnxruntime.__version__, *instructions())
        optimised = cache.read(KIND, key)
        if optimised is None:
            optimised = _optimised(to_onnx(self.network, at).SerializeToString(), options)
            cache.write(KIND, key, optimised)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(optimised, options, providers=["CPUExecutionProvider"])


def _optimised(model: bytes, options: Any) -> bytes:
    import onnxruntime

    with tempfile.TemporaryDirectory() as aside:
        options.optimized_model_filepath = os.path.join(aside, "model.onnx")
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        optimised = Path(options.optimized_model_filepath).read_bytes()
    options.optimized_model_filepath = ""
    return optimised


def to_onnx(network: Network, at: str | None = None, preprocessing: Preprocessing | None = None) -> Any:
    """An `onnx.ModelProto` from pixels (N, H, W, 3), uint8, to probabilities (N, K), or to the features at a place.

    N, H and W are free. The pixels are those that the network sees; with `preprocessing`, those of photos, and what the
    network sees of them is called PREPARED.

    Raises:
        UnknownNameError: the network has no such place.
        UsageError: the preprocessing cannot be done there.
    """
    from onnx import TensorProto, helper

    graph = network.graph if at is None else network.graph.truncate(at)
    made, seen = OnnxBuilder(), "pixels" if preprocessing is None else PREPARED
    if preprocessing is not None:
        add_preprocessing(made, "pixels", preprocessing, PREPARED)
    x = made.add("Cast", [made.add("Transpose", [seen], perm=[0, 3, 1, 2])], to=TensorProto.FLOAT)
    scale, shift = (made.constant(a.reshape(1, 3, 1, 1)) for a in (network.scale_3, network.shift_3))
    results = [made.add("Add", [made.add("Mul", [x, scale]), shift])]
    for op in graph.ops:
        results.append(_OPERATIONS[op.op_type](made, op, network, [results[i] for i in op.inputs]))
    name = "probabilities" if at is None else "features"
    made.add(
        "Softmax" if at is None else "Identity", [results[graph.output]], name, **({"axis": 1} if at is None else {})
    )
    shape = ["batch", "classes"] if at is None else None
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", "height", "width", 3])
    return made.model([pixels], [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)])


def _conv(made: OnnxBuilder, op: Op, network: Network, inputs: list[str]) -> str:
    layer, s = fold_constants(op, network.state), op.attributes
    weights = [made.constant(layer.weight), made.constant(layer.bias)]
    return made.add("Conv", inputs + weights, s["layer"], strides=[s["stride"]] * 2, pads=[s["padding"]] * 4,
                    dilations=[s["dilation"]] * 2, group=s["groups"])  # fmt: skip


def _max_pool(made: OnnxBuilder, op: Op, network: Network, inputs: list[str]) -> str:
    s = op.attributes
    end, pads = s["pad_end"], [0, 0, s["pad_end"], s["pad_end"]]
    if end > 1:  # more than the runtime takes as a pooling's own
        ends = [made.constant(np.array([0, 0, 0, 0, 0, 0, end, end])), made.constant(np.array(-np.inf, np.float32))]
        inputs, pads = [made.add("Pad", inputs + ends)], [0] * 4
    return made.add("MaxPool", inputs, kernel_shape=[2, 2], strides=[s["stride"]] * 2,
                    dilations=[s["dilation"]] * 2, pads=pads)  # fmt: skip


def _avg_pool(made: OnnxBuilder, op: Op, network: Network, inputs: list[str]) -> str:
    strides = [op.attributes["stride"]] * 2
    return made.add("AveragePool", inputs, kernel_shape=[3, 3], strides=strides, pads=[1] * 4, count_include_pad=1)


def _avg_pool_dilated(made: OnnxBuilder, op: Op, network: Network, inputs: list[str]) -> str:
    channels, dilation = op.attributes["channels"], op.attributes["dilation"]
    weight = made.constant(np.full((channels, 1, 3, 3), 1 / 9, np.float32))
    return made.add("Conv", [*inputs, weight], pads=[dilation] * 4, dilations=[dilation] * 2, group=channels)


def _over_the_map(name: str) -> Callable[..., str]:
    return lambda made, op, network, inputs: made.add(name, [*inputs, made.constant(np.array([2, 3]))], keepdims=1)


def _slice(made: OnnxBuilder, op: Op, network: Network, inputs: list[str]) -> str:
    numbers = (op.attributes["start"], op.attributes["stop"], 1)
    return made.add("Slice", inputs + [made.constant(np.array([n])) for n in numbers])


def _scale(made: OnnxBuilder, op: Op, network: Network, inputs: list[str]) -> str:
    return made.add("Mul", [*inputs, made.constant(np.array(op.attributes["factor"], np.float32))])


_OPERATIONS: dict[str, Callable[[OnnxBuilder, Op, Network, list[str]], str]] = {
    "conv": _conv,
    "relu": lambda made, op, network, inputs: made.add("Relu", inputs),
    "add": lambda made, op, network, inputs: made.add("Add", inputs),
    "concat": lambda made, op, network, inputs: made.add("Concat", inputs, axis=1),
    "flatten": lambda made, op, network, inputs: made.add("Flatten", inputs, axis=1),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "avg_pool_dilated": _avg_pool_dilated,
    "global_avg_pool": _over_the_map("ReduceMean"),
    "global_max_pool": _over_the_map("ReduceMax"),
    "slice": _slice,
    "scale": _scale,
}
