"""The engine that runs networks in ONNX Runtime, and the conversion of networks to ONNX."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dla.engines.base import NetworkEngine, PerProcess
from dla.engines.cpu import instructions
from dla.engines.graph import Network, Op, fold_constants
from dla.engines.onnx_builder import OnnxBuilder
from dla.engines.onnx_resize import add_preprocessing
from dla.errors import UsageError
from dla.images.preprocessing import Preprocessing
from dla.options import Precision, cores
from dla.storage import cache
from dla.types import Array

PREPARED = "prepared"
KIND = "onnx"  # in the cache: networks as optimized by ONNX Runtime


class OnnxEngine(NetworkEngine):
    """Run `network` in ONNX Runtime on the CPU with `threads` compute threads, by default one per core.

    Raises:
        UsageError: another precision than fp32.
    """

    name = "ONNX Runtime on cpu"

    def __init__(self, network: Network, precision: Precision = "fp32", threads: int | None = None) -> None:
        if precision != "fp32":
            raise UsageError(f"the engine onnx computes in fp32, not in {precision}. Try --engine openvino")
        self.network, self.threads = network, threads or cores()
        self.sessions: PerProcess[dict[str | None, Any]] = PerProcess(dict)

    def _run(self, at: str | None, pixels_NHW3: Array) -> Array:
        sessions = self.sessions.get()
        if at not in sessions:
            sessions[at] = self._open(at)
        (output,) = sessions[at].run(None, {"pixels": np.ascontiguousarray(pixels_NHW3)})
        return output  # type: ignore[no-any-return]

    def _open(self, at: str | None) -> Any:
        """Open a session. Optimizing takes longer than everything else, so the optimized model is cached."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        # spinning threads would take the cores from the threads that decode photos
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        key = cache.key_of(self.network.key, at or "", onnxruntime.__version__, *instructions())
        optimized = cache.read(KIND, key)
        if optimized is None:
            optimized = _optimize(to_onnx(self.network, at).SerializeToString(), options)
            cache.write(KIND, key, optimized)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(optimized, options, providers=["CPUExecutionProvider"])


def _optimize(model: bytes, options: Any) -> bytes:
    import onnxruntime

    with tempfile.TemporaryDirectory() as aside:
        options.optimized_model_filepath = os.path.join(aside, "model.onnx")
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        optimized = Path(options.optimized_model_filepath).read_bytes()
    options.optimized_model_filepath = ""
    return optimized


def to_onnx(network: Network, at: str | None = None, preprocessing: Preprocessing | None = None) -> Any:
    """Build an `onnx.ModelProto` from pixels (N, H, W, 3), uint8, to probabilities (N, K), or to features at a node.

    N, H and W are dynamic. The input is pixels ready for the network, or, with `preprocessing`, photos; their
    preprocessed pixels are then the intermediate result PREPARED.

    Raises:
        UnknownNameError: the network has no such node.
        UsageError: the preprocessing cannot be expressed in ONNX.
    """
    from onnx import TensorProto, helper

    builder, seen = OnnxBuilder(), "pixels" if preprocessing is None else PREPARED
    if preprocessing is not None:
        add_preprocessing(builder, "pixels", preprocessing, PREPARED)
    result = add_network(builder, network, seen, at)
    name = "probabilities" if at is None else "features"
    builder.add("Softmax" if at is None else "Identity", [result], name, **({"axis": 1} if at is None else {}))
    shape = ["batch", "classes"] if at is None else None
    return builder.model([pixels_input()], [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)])


def pixels_input() -> Any:
    """Return the `ValueInfoProto` of the input "pixels", uint8 (N, H, W, 3)."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", "height", "width", 3])


def add_network(builder: OnnxBuilder, network: Network, pixels: str, at: str | None) -> str:
    """Add the operations from `pixels`, uint8 (N, H, W, 3), to the logits or a feature node; return their result."""
    from onnx import TensorProto

    graph = network.graph if at is None else network.graph.truncate(at)
    x = builder.add("Cast", [builder.add("Transpose", [pixels], perm=[0, 3, 1, 2])], to=TensorProto.FLOAT)
    scale, shift = (builder.constant(a.reshape(1, 3, 1, 1)) for a in (network.scale_3, network.shift_3))
    results = [builder.add("Add", [builder.add("Mul", [x, scale]), shift])]
    for op in graph.ops:
        results.append(_OPERATIONS[op.op_type](builder, op, network, [results[i] for i in op.inputs]))
    return results[graph.output]


def _conv(builder: OnnxBuilder, op: Op, network: Network, inputs: list[str]) -> str:
    layer, s = fold_constants(op, network.state), op.attributes
    weights = [builder.constant(layer.weight), builder.constant(layer.bias)]
    return builder.add("Conv", inputs + weights, s["layer"], strides=[s["stride"]] * 2, pads=[s["padding"]] * 4,
                    dilations=[s["dilation"]] * 2, group=s["groups"])  # fmt: skip


def _max_pool(builder: OnnxBuilder, op: Op, network: Network, inputs: list[str]) -> str:
    s = op.attributes
    end, pads = s["pad_end"], [0, 0, s["pad_end"], s["pad_end"]]
    if end > 1:  # ONNX Runtime's MaxPool does not accept such padding
        ends = np.array([0, 0, 0, 0, 0, 0, end, end]), np.array(-np.inf, np.float32)
        inputs, pads = [builder.add("Pad", [*inputs, *map(builder.constant, ends)])], [0] * 4
    return builder.add("MaxPool", inputs, kernel_shape=[2, 2], strides=[s["stride"]] * 2,
                    dilations=[s["dilation"]] * 2, pads=pads)  # fmt: skip


def _avg_pool(builder: OnnxBuilder, op: Op, network: Network, inputs: list[str]) -> str:
    strides = [op.attributes["stride"]] * 2
    return builder.add("AveragePool", inputs, kernel_shape=[3, 3], strides=strides, pads=[1] * 4, count_include_pad=1)


def _avg_pool_dilated(builder: OnnxBuilder, op: Op, network: Network, inputs: list[str]) -> str:
    channels, dilation = op.attributes["channels"], op.attributes["dilation"]
    weight = builder.constant(np.full((channels, 1, 3, 3), 1 / 9, np.float32))
    return builder.add("Conv", [*inputs, weight], pads=[dilation] * 4, dilations=[dilation] * 2, group=channels)


def _global_pool(name: str) -> Callable[..., str]:
    return lambda builder, op, network, inputs: builder.add(
        name, [*inputs, builder.constant(np.array([2, 3]))], keepdims=1
    )


def _slice(builder: OnnxBuilder, op: Op, network: Network, inputs: list[str]) -> str:
    numbers = (op.attributes["start"], op.attributes["stop"], 1)
    return builder.add("Slice", inputs + [builder.constant(np.array([n])) for n in numbers])


def _scale(builder: OnnxBuilder, op: Op, network: Network, inputs: list[str]) -> str:
    return builder.add("Mul", [*inputs, builder.constant(np.array(op.attributes["factor"], np.float32))])


def _upsample(builder: OnnxBuilder, op: Op, network: Network, inputs: list[str]) -> str:
    x, like = inputs
    factor = op.attributes["factor"]
    scales = builder.constant(np.array([1, 1, factor, factor], np.float32))
    larger = builder.add("Resize", [x, "", scales], mode="linear", coordinate_transformation_mode="half_pixel")
    return _cut(builder, larger, like)


def _transposed(builder: OnnxBuilder, op: Op, network: Network, inputs: list[str]) -> str:
    x, like = inputs
    weight, factor = network.state[f"{op.attributes['layer']}.weight"].astype(np.float32), op.attributes["factor"]
    larger = builder.add("ConvTranspose", [x, builder.constant(weight)], strides=[factor] * 2, pads=[factor // 2] * 4,
                         group=len(weight))  # fmt: skip
    return _cut(builder, larger, like)


def _cut(builder: OnnxBuilder, larger: str, like: str) -> str:
    """Add the cut of a map to the size of another."""
    size = builder.add("Shape", [like], start=2)
    numbers = [builder.constant(np.array([0, 0])), size, builder.constant(np.array([2, 3]))]
    return builder.add("Slice", [larger, *numbers])


_OPERATIONS: dict[str, Callable[[OnnxBuilder, Op, Network, list[str]], str]] = {
    "upsample": _upsample,
    "transposed": _transposed,
    "conv": _conv,
    "relu": lambda builder, op, network, inputs: builder.add("Relu", inputs),
    "add": lambda builder, op, network, inputs: builder.add("Add", inputs),
    "concat": lambda builder, op, network, inputs: builder.add("Concat", inputs, axis=1),
    "flatten": lambda builder, op, network, inputs: builder.add("Flatten", inputs, axis=1),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "avg_pool_dilated": _avg_pool_dilated,
    "global_avg_pool": _global_pool("ReduceMean"),
    "global_max_pool": _global_pool("ReduceMax"),
    "slice": _slice,
    "scale": _scale,
}
