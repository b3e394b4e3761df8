"""The one preprocessing as a part of an OpenVINO model: ONNX's graph of it, as OpenVINO reads it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from dla.engines.onnx_maker import Maker
from dla.engines.onnx_prepare import add_preparation
from dla.engines.openvino import core, import_openvino
from dla.errors import UnavailableError
from dla.images.prepare import Preprocessing

__all__ = ["with_preparation"]


def with_preparation(body: Any, preprocessing: Preprocessing, name: str) -> Any:
    """An `openvino.Model` that takes photos, uint8 (N, H, W, 3) of any size, before one that takes prepared pixels.

    The two become one; what `body` is given is called `name` in it.

    Raises:
        UsageError: the preprocessing cannot be done there.
        UnavailableError: the package onnx, in whose terms it is written, is not installed.
    """
    if find_spec("onnx") is None:
        raise UnavailableError(
            "the preprocessing of an OpenVINO file is written with onnx: pip install onnx, or leave it out with "
            "--no-preprocessing"
        )
    from onnx import TensorProto, helper

    made = Maker()
    add_preparation(made, "pixels", preprocessing, name)
    photos = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", "height", "width", 3])
    seen = helper.make_tensor_value_info(name, TensorProto.UINT8, ["batch", *preprocessing.size, 3])
    front = core().read_model(made.model([photos], [seen]).SerializeToString())
    prepared = front.output(0).get_node().input_value(0)
    for taker in body.input(0).get_target_inputs():
        taker.replace_source_output(prepared)
    return import_openvino().Model(body.get_results(), front.get_parameters(), "dla")
