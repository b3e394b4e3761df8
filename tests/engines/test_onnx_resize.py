"""The preprocessing inside a graph, beside Pillow's."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from dla.engines.onnx_builder import OnnxBuilder
from dla.engines.onnx_resize import add_preprocessing
from dla.engines.openvino import import_openvino
from dla.errors import UsageError
from dla.images.preprocessing import Preprocessing
from dla.types import Array
from support.photos import CHELSEA

PHOTOS = Path(str(files("dla"))) / "shipped" / "photos"

KINDS = (
    Preprocessing(),
    Preprocessing((33, 64), 0.9, "center", "bicubic"),
    Preprocessing((32, 32), 1.3, "center", "lanczos"),
    Preprocessing((64, 33), 1.0, "border", "hamming"),
    Preprocessing((33, 33), 0.7, "border", "bicubic"),
    Preprocessing((20, 31), 1.2, "squash", "bilinear"),
)
sides = st.one_of(st.integers(1, 70), st.integers(70, 400))


def graph_of(preprocessing: Preprocessing) -> Any:
    made = OnnxBuilder()
    add_preprocessing(made, "pixels", preprocessing, "prepared")
    photos = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", "h", "w", 3])
    seen = helper.make_tensor_value_info("prepared", TensorProto.UINT8, ["n", *preprocessing.size, 3])
    return made.model([photos], [seen])


@cache
def session(preprocessing: Preprocessing) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph_of(preprocessing).SerializeToString(), options)


@cache
def compiled(preprocessing: Preprocessing) -> Any:
    core = import_openvino().Core()
    model = core.read_model(graph_of(preprocessing).SerializeToString())
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})


@cache
def photo() -> Image.Image:
    return Image.open(CHELSEA).convert("RGB")


def part(height: int, width: int) -> Image.Image:
    """Sharp pixels, other ones for each size."""
    left, top = (width * 7) % 200, (height * 5) % 150
    return photo().resize((width, height), Image.Resampling.NEAREST, (left, top, left + 250, top + 150))


def apart(pixels: Array, expected: Array) -> int:
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    return int(np.abs(pixels.astype(int) - expected).max())


@pytest.mark.parametrize("preprocessing", KINDS, ids=lambda p: f"{p.crop_mode}-{p.interpolation}-{p.crop_pct}")
@settings(max_examples=20)
@given(height=sides, width=sides)
@example(height=1, width=1)
@example(height=1, width=400)
@example(height=1500, width=3)
@example(height=33, width=64)
def test_onnx_makes_pillows_pixels(preprocessing: Preprocessing, height: int, width: int) -> None:
    image = part(height, width)
    (found,) = session(preprocessing).run(None, {"pixels": np.asarray(image)[None]})
    assert apart(found[0], preprocessing.pixels(image)) <= 1


@pytest.mark.parametrize("preprocessing", KINDS, ids=lambda p: f"{p.crop_mode}-{p.interpolation}-{p.crop_pct}")
@pytest.mark.parametrize("size", [(301, 200), (31, 95), (1, 1), (400, 1), (77, 12)], ids=str)
def test_openvino_makes_pillows_pixels(preprocessing: Preprocessing, size: tuple[int, int]) -> None:
    image = part(*size)
    found = compiled(preprocessing)(np.asarray(image)[None])[0]
    assert apart(found[0], preprocessing.pixels(image)) <= 1


@pytest.mark.parametrize("path", sorted(PHOTOS.iterdir()), ids=lambda path: path.stem)
def test_photos_with_many_pixels_halfway_between_two_levels(path: Path) -> None:
    """Their sides, 480 and 320, become multiples of 16ths of 256."""
    image = Image.open(path).convert("RGB")
    expected = KINDS[0].pixels(image)
    assert apart(session(KINDS[0]).run(None, {"pixels": np.asarray(image)[None]})[0][0], expected) <= 1
    assert apart(compiled(KINDS[0])(np.asarray(image)[None])[0][0], expected) <= 1


def test_nearly_all_pixels_are_the_same() -> None:
    """A shift by a part of a pixel would hide in one level where a photo is smooth, but not in so many places."""
    for preprocessing in KINDS:
        image = part(211, 307)
        (found,) = session(preprocessing).run(None, {"pixels": np.asarray(image)[None]})
        assert (found[0] == preprocessing.pixels(image)).mean() > 0.99


@pytest.mark.parametrize("size", [(90, 40), (40, 90)], ids=str)  # Pillow resizes the one's columns first
def test_several_photos_at_once(size: tuple[int, int]) -> None:
    preprocessing = replace(KINDS[0], size=(24, 24))
    images = [part(*size).transpose(turn) for turn in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180)]
    expected = np.stack([preprocessing.pixels(image) for image in images])
    batch = np.stack([np.asarray(image) for image in images])
    assert apart(session(preprocessing).run(None, {"pixels": batch})[0], expected) <= 1
    assert apart(compiled(preprocessing)(batch)[0], expected) <= 1


def test_the_graph_is_good_onnx() -> None:
    for preprocessing in KINDS:
        onnx.checker.check_model(graph_of(preprocessing), full_check=True)


@pytest.mark.parametrize("interpolation", ["nearest", "box"])
def test_what_jumps_is_refused(interpolation: Any) -> None:
    with pytest.raises(
        UsageError, match=f"interpolation {interpolation} cannot .* Allowed: bilinear, bicubic, hamming"
    ):
        add_preprocessing(OnnxBuilder(), "pixels", Preprocessing(interpolation=interpolation), "prepared")
