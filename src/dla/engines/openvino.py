"""The engine that runs networks in OpenVINO, one photo per request.

A single photo uses every core; of many photos, as many run concurrently as keep the cores busy.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from dla.engines.base import NetworkEngine, PerProcess
from dla.engines.cpu import bf16_error, has_bf16
from dla.engines.graph import Layer, Network, Op, fold_constants
from dla.errors import UsageError
from dla.images.preprocessing import Preprocessing
from dla.models.registry import LOGITS
from dla.options import Precision, cores
from dla.types import Array

_TELEMETRY = ("openvino_telemetry", "openvino.tools.ovc")
MOST_COMPILED = 16  # sizes and nodes; photos of any size may come
_IMPORT_LOCK = threading.Lock()


@cache
def import_openvino() -> Any:
    """Import the module `openvino` without telemetry and return it.

    Its model converter sends telemetry on import. The converter is not needed here and takes longer to import than
    everything else; `import openvino.tools.ovc` still loads it.
    """
    with _IMPORT_LOCK:
        with without_telemetry():
            import openvino
        # The first tensor initializes its NumPy support; two threads that do so at the same time deadlock.
        openvino.Tensor(np.zeros(1, np.uint8))
    return openvino


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Block the telemetry modules of OpenVINO and NNCF while these are imported."""
    absent = [name for name in _TELEMETRY if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: importing it fails
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


class OpenvinoEngine(NetworkEngine):
    """Run `network` in OpenVINO on the CPU with `threads` compute threads, by default one per core.

    For int8, `quantized` is the `openvino.Model` of the int8 network (`dla.engines.quantized`), which gives only
    probabilities, or logits if it is dense. Features are then computed in fp32 with `exact_features`, and raise an
    error without it.

    Raises:
        UsageError: bf16 on a CPU that has no instruction for it.
    """

    max_concurrent = 2  # the first photos of one call fill the streams while the last ones of another finish

    def __init__(
        self,
        network: Network,
        precision: Precision = "fp32",
        threads: int | None = None,
        quantized: Any = None,
        exact_features: bool = False,
    ) -> None:
        self.network, self.precision, self.threads, self.quantized = network, precision, threads or cores(), quantized
        if precision == "bf16" and not has_bf16():
            raise bf16_error()
        self.name = "OpenVINO on cpu" + ("" if precision == "fp32" else f" in {precision}")
        self.exact_features = exact_features
        self.whole = LOGITS if network.is_dense else None  # what the int8 network computes
        self.models = PerProcess(_Models)

    def with_features(self) -> OpenvinoEngine:  # noqa: D102
        return self if self.quantized is None else OpenvinoEngine(self.network, threads=self.threads)

    def _check_node(self, at: str) -> None:
        super()._check_node(at)
        if self.quantized is not None and not self.exact_features and at != self.whole:
            raise UsageError(
                "features are not computed in int8: an int8 model gives only classes. Try --precision fp32"
            )

    def _run(self, at: str | None, pixels_NHW3: Array) -> Array:
        size, models = pixels_NHW3.shape[1:3], self.models.get()
        with models.lock:
            if (at, size) not in models.compiled:
                model = (
                    self.quantized.clone()
                    if self.quantized and at == self.whole
                    else to_openvino(self.network, size, at)
                )
                models.compiled[at, size] = _Compiled(model, size, self._config())
                if len(models.compiled) > MOST_COMPILED:
                    del models.compiled[next(iter(models.compiled))]
            compiled = models.compiled[at, size]
        return compiled.run(pixels_NHW3)

    def _config(self) -> dict[str, Any]:
        return {
            # for an int8 model, the precision of the layers that are not quantized
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": self.threads,
            "ENABLE_CPU_PINNING": False,  # decoding threads share the cores
        }


class _Models:
    """The compiled models of one process, by feature node and size."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.compiled: dict[tuple[str | None, tuple[int, ...]], _Compiled] = {}


class _Compiled:
    """A network for photos of one size, compiled for latency or throughput.

    All threads work on the only photo of a call, if no other call is running. From the first call with several photos
    on, each stream works on a photo of its own, also for single photos, unless single ones came before it.
    """

    def __init__(self, model: Any, size: tuple[int, ...], config: Mapping[str, Any]) -> None:
        model.reshape([1, *size, 3])
        self.model, self.config = model, config
        self.lock = threading.Lock()
        self.for_one: Any = None
        self.for_many: Any = None
        self.free: list[list[Any]] = []  # requests that no call uses
        self.running = 0  # calls

    def run(self, pixels_NHW3: Array) -> Array:
        with self.lock:
            is_alone = self.for_many is None or (self.for_one is not None and not self.running)
            if len(pixels_NHW3) == 1 and is_alone:
                return self._one(pixels_NHW3)
            requests = self.free.pop() if self.free else self._requests()
            self.running += 1
        try:
            return _many(requests, pixels_NHW3, tuple(self.model.output(0).shape[1:]))
        finally:
            with self.lock:
                self.free.append(requests)
                self.running -= 1

    def _one(self, pixels_1HW3: Array) -> Array:
        if self.for_one is None:
            self.for_one = self._compile("LATENCY").create_infer_request()
        self.for_one.infer({0: pixels_1HW3}, share_inputs=True)
        return np.array(self.for_one.get_output_tensor().data)

    def _requests(self) -> list[Any]:
        if self.for_many is None:
            self.for_many = self._compile("THROUGHPUT")
        streams = self.for_many.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        # twice as many as run, so that no stream waits for the calling thread
        return [self.for_many.create_infer_request() for _ in range(2 * streams)]

    def _compile(self, hint: str) -> Any:
        return core().compile_model(self.model, "CPU", {**self.config, "PERFORMANCE_HINT": hint})


def _many(requests: list[Any], pixels_NHW3: Array, shape: tuple[int, ...]) -> Array:
    """Run each photo in one of the requests, in rotation."""
    output = np.empty((len(pixels_NHW3), *shape), np.float32)
    assigned = [requests[n % len(requests)] for n in range(len(output))]
    for n in range(len(output) + len(requests)):
        done = n - len(requests)
        if done >= 0:
            assigned[done].wait()
            output[done] = assigned[done].get_output_tensor().data[0]
        if n < len(output):
            assigned[n].start_async({0: pixels_NHW3[n : n + 1]}, share_inputs=True)
    return output


_CORE: PerProcess[Any] = PerProcess(lambda: import_openvino().Core())


def core() -> Any:
    """Return the process's `openvino.Core`, which reads and compiles models."""
    return _CORE.get()


def to_openvino(network: Network, size: tuple[int, ...] | None = None, at: str | None = None) -> Any:
    """Build an `openvino.Model` from pixels (N, H, W, 3), uint8, to probabilities (N, K), or to features at a node.

    Args:
        network: what the model computes.
        size: height and width, if they are fixed; N is always dynamic.
        at: the feature node; None for probabilities.

    Raises:
        UnknownNameError: the network has no such node.
    """
    ov = import_openvino()
    opset = ov.opset13
    graph = network.graph if at is None else network.graph.truncate(at)
    pixels = opset.parameter([-1, *(size or (-1, -1)), 3], ov.Type.u8, name="pixels")
    x = opset.convert(opset.transpose(pixels, np.array([0, 3, 1, 2])), ov.Type.f32)
    x = opset.add(opset.multiply(x, network.scale_3.reshape(1, 3, 1, 1)), network.shift_3.reshape(1, 3, 1, 1))
    results = [x]
    for op in graph.ops:
        inputs = (results[i] for i in op.inputs)
        results.append(_OPERATIONS[op.op_type](opset, op.attributes, *inputs, **_weights(op, network)))
    result = opset.softmax(results[graph.output], 1) if at is None else results[graph.output]
    model = ov.Model([result], [pixels], "dla")
    model.input(0).set_names({"pixels"})
    model.output(0).set_names({"probabilities" if at is None else "features"})
    return model


def _weights(op: Op, network: Network) -> dict[str, Any]:
    if op.op_type == "transposed":
        return {"weight": network.state[f"{op.attributes['layer']}.weight"].astype(np.float32)}
    return {"layer": fold_constants(op, network.state)} if op.op_type == "conv" else {}


def _conv(opset: Any, s: Mapping[str, Any], x: Any, layer: Layer) -> Any:
    strides, pads, dilations = ([s[key]] * 2 for key in ("stride", "padding", "dilation"))
    if s["groups"] == 1:
        # as a constant: a plain array would be converted to a list of Python numbers
        y = opset.convolution(x, opset.constant(layer.weight), strides, pads, pads, dilations, name=s["layer"])
    else:
        c_out, *rest = layer.weight.shape
        weight = layer.weight.reshape(s["groups"], c_out // s["groups"], *rest)
        y = opset.group_convolution(x, opset.constant(weight), strides, pads, pads, dilations, name=s["layer"])
    return opset.add(y, opset.constant(layer.bias.reshape(1, -1, 1, 1)))


def _max_pool(opset: Any, s: Mapping[str, Any], x: Any) -> Any:
    strides, dilations, pad_end = ([s[key]] * 2 for key in ("stride", "dilation", "pad_end"))
    return opset.max_pool(x, strides, dilations, [0, 0], pad_end, [2, 2]).output(0)


def _avg_pool_dilated(opset: Any, s: Mapping[str, Any], x: Any) -> Any:
    weight, around = np.full((s["channels"], 1, 1, 3, 3), 1 / 9, np.float32), [s["dilation"]] * 2
    return opset.group_convolution(x, opset.constant(weight), [1, 1], around, around, around)


def _upsample(opset: Any, s: Mapping[str, Any], x: Any, like: Any) -> Any:
    """Interpolate between the centres of pixels, repeating those at the border, and cut to the size of `like`."""
    axes, factor = np.array([2, 3]), np.full(2, s["factor"], np.float32)
    return _cut(opset, opset.interpolate(x, factor, "linear_onnx", "scales", axes=axes), like)


def _transposed(opset: Any, s: Mapping[str, Any], x: Any, like: Any, weight: Array) -> Any:
    strides, pads = [s["factor"]] * 2, [s["factor"] // 2] * 2
    per_channel = opset.constant(weight[:, None])  # (groups, 1, 1, k, k)
    y = opset.group_convolution_backprop_data(x, per_channel, strides, pads_begin=pads, pads_end=pads, dilations=[1, 1])
    return _cut(opset, y, like)


def _cut(opset: Any, larger: Any, like: Any) -> Any:
    """Cut a map to the size of another."""
    axes = np.array([2, 3])
    size = opset.gather(opset.shape_of(like), axes, np.array(0))
    return opset.slice(larger, np.array([0, 0]), size, np.array([1, 1]), axes)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "conv": _conv,
    "upsample": _upsample,
    "transposed": _transposed,
    "relu": lambda opset, s, x: opset.relu(x),
    "add": lambda opset, s, a, b: opset.add(a, b),
    "concat": lambda opset, s, *xs: opset.concat(xs, 1),
    "flatten": lambda opset, s, x: opset.reshape(x, np.array([0, -1]), True),
    "max_pool": _max_pool,
    "avg_pool": lambda opset, s, x: opset.avg_pool(x, [s["stride"]] * 2, [1, 1], [1, 1], [3, 3], False),
    "avg_pool_dilated": _avg_pool_dilated,
    "global_avg_pool": lambda opset, s, x: opset.reduce_mean(x, np.array([2, 3]), True),
    "global_max_pool": lambda opset, s, x: opset.reduce_max(x, np.array([2, 3]), True),
    "slice": lambda opset, s, x: opset.slice(x, *(np.array([n]) for n in (s["start"], s["stop"], 1, 1))),
    "scale": lambda opset, s, x: opset.multiply(x, np.float32(s["factor"])),
}


def add_preprocessing_to(body: Any, preprocessing: Preprocessing, name: str) -> Any:
    """Build an `openvino.Model` that takes photos, uint8 (N, H, W, 3) of any size, from `body`, which takes pixels.

    `body` becomes part of it; the preprocessed pixels are its intermediate result `name`.

    Raises:
        UsageError: the preprocessing cannot be expressed in OpenVINO.
    """
    from dla.engines.onnx_resize import add_preprocessing

    return add_front(body, name, preprocessing.size, lambda b: add_preprocessing(b, "pixels", preprocessing, name))


def add_front(body: Any, name: str, size: tuple[Any, Any], add: Callable[[Any], None]) -> Any:
    """Put ONNX nodes before a model: `add` gives a builder those from "pixels" to `name`, which has this size."""
    from onnx import TensorProto, helper

    from dla.engines.onnx import pixels_input
    from dla.engines.onnx_builder import OnnxBuilder

    builder = OnnxBuilder()
    add(builder)
    seen = helper.make_tensor_value_info(name, TensorProto.UINT8, ["batch", *size, 3])
    front = core().read_model(builder.model([pixels_input()], [seen]).SerializeToString())
    prepared = front.output(0).get_node().input_value(0)
    for consumer in body.input(0).get_target_inputs():
        consumer.replace_source_output(prepared)
    return import_openvino().Model(body.get_results(), front.get_parameters(), "dla")
