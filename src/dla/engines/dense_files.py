"""Dense networks as whole files: from photos of any size to the class or boundary of each of their pixels.

Photos are scaled to the network's short side, and its logits back to the photo's size, as `dla.inference.dense_maps`
does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dla.engines.graph import Network
from dla.engines.onnx import PREPARED, add_network, pixels_input
from dla.engines.onnx_builder import OnnxBuilder
from dla.engines.onnx_resize import add_scaling
from dla.engines.openvino import add_front, import_openvino, to_openvino
from dla.models.registry import LOGITS
from dla.options import Interpolation

BYTE_CLASSES = 256  # whose ids are uint8; those of more classes are int64


@dataclass(frozen=True, slots=True)
class DenseFile:
    """What a file of a dense network computes besides the network.

    task: "segment" answers `labels`, the class of each pixel, (N, H, W), uint8, or int64 for more than 256 classes;
        "edges" answers `probability`, float32 (N, H, W).
    short_side: of the scaled photo, in pixels; None leaves photos at their size.
    """

    task: str
    classes: int
    short_side: int | None
    interpolation: Interpolation

    @property
    def answer(self) -> str:
        """Return the name of the output."""
        return "labels" if self.task == "segment" else "probability"


def dense_to_onnx(network: Network, file: DenseFile) -> Any:
    """Build an `onnx.ModelProto`; the scaled photos are its result PREPARED, the logits at the photo's size LOGITS.

    Raises:
        UsageError: the interpolation cannot be expressed in ONNX.
    """
    from onnx import TensorProto, helper

    builder, seen = OnnxBuilder(), "pixels"
    if file.short_side is not None:
        seen = PREPARED
        add_scaling(builder, "pixels", file.short_side, file.interpolation, PREPARED)
    logits = add_network(builder, network, seen, LOGITS)
    if file.short_side is None:
        builder.add("Identity", [logits], LOGITS)
    else:
        size = builder.add("Concat", [builder.add("Shape", [logits], end=2),
                                      builder.add("Shape", ["pixels"], start=1, end=3)], axis=0)  # fmt: skip
        builder.add(
            "Resize", [logits, "", "", size], LOGITS, mode="linear", coordinate_transformation_mode="half_pixel"
        )
    if file.task == "segment":
        kind = TensorProto.UINT8 if file.classes <= BYTE_CLASSES else TensorProto.INT64
        builder.add("Cast", [builder.add("ArgMax", [LOGITS], axis=1, keepdims=0)], file.answer, to=kind)
    else:
        kind = TensorProto.FLOAT
        first = builder.constant(np.array([1]))
        builder.add("Squeeze", [builder.add("Sigmoid", [LOGITS]), first], file.answer)
    answer = helper.make_tensor_value_info(file.answer, kind, ["batch", "height", "width"])
    return builder.model([pixels_input()], [answer])


def dense_to_openvino(network: Network, file: DenseFile, body: Any = None) -> Any:
    """Build an `openvino.Model`, with the intermediate results of `dense_to_onnx`.

    `body` is an `openvino.Model` from pixels to logits, such as an int8 one, instead of the network's.

    Raises:
        UsageError: the interpolation cannot be expressed in OpenVINO.
    """
    ov, short = import_openvino(), file.short_side
    opset = ov.opset13
    body = body or to_openvino(network, None, LOGITS)
    if short is not None:
        size = ("scaled_height", "scaled_width")
        body = add_front(body, PREPARED, size, lambda b: add_scaling(b, "pixels", short, file.interpolation, PREPARED))
    pixels, logits = body.get_parameters()[0], body.get_results()[0].input_value(0)
    if short is not None:
        size_2 = opset.gather(opset.shape_of(pixels), np.array([1, 2]), np.array(0))
        logits = opset.interpolate(logits, size_2, "linear_onnx", "sizes", axes=np.array([2, 3])).output(0)
    logits.get_tensor().set_names({LOGITS})
    if file.task == "segment":
        best = opset.topk(logits, np.array(1), 1, "max", "none", index_element_type="i32").output(1)
        kind = ov.Type.u8 if file.classes <= BYTE_CLASSES else ov.Type.i64
        answer = opset.convert(opset.squeeze(best, np.array([1])), kind)
    else:
        answer = opset.squeeze(opset.sigmoid(logits), np.array([1]))
    model = ov.Model([answer], [pixels], "dla")
    model.input(0).set_names({"pixels"})
    model.output(0).set_names({file.answer})
    return model
