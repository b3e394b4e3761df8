"""`Preprocessing` as part of an ONNX graph, from photos of any size to the network's pixels.

Pillow resizes one axis, rounds to integer levels, then resizes the other. Each step is a product with a matrix of
filter weights, which the graph computes from the photo's size. So the runtime needs none of Pillow's filters, and
pixels outside the crop are never computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dla.engines.onnx_builder import OnnxBuilder, Value
from dla.errors import UsageError
from dla.images.preprocessing import Preprocessing
from dla.options import Interpolation

Pair = tuple[Value, Value]


def add_preprocessing(builder: OnnxBuilder, pixels: str, preprocessing: Preprocessing, name: str) -> None:
    """Add nodes to a graph that turn `pixels`, uint8 (N, H, W, 3), into `name`, uint8 (N, height, width, 3).

    The result is within one level of `Preprocessing.pixels`.

    Raises:
        UsageError: the interpolation is discontinuous, so that rounding errors would change pixels ("nearest", "box").
    """
    photos, filter_ = Value(builder, pixels), _filter(preprocessing.interpolation)
    size = _size(photos)
    rows, columns = map(_Axis, size, _resized_size(preprocessing, size), preprocessing.size)
    result = _resampled(photos, rows, columns, filter_)
    if preprocessing.may_be_short:
        fill = np.array(preprocessing.fill, np.float32).reshape(3, 1, 1)
        covered = rows.covered().apply("Reshape", np.array([-1, 1])) & columns.covered()
        result = covered.choose(result, fill)
    builder.add("Transpose", [result.to(np.uint8).name], name, perm=[0, 2, 3, 1])


def add_scaling(builder: OnnxBuilder, pixels: str, short_side: int, interpolation: Interpolation, name: str) -> None:
    """Add nodes to a graph that scale photos `pixels`, uint8 (N, H, W, 3), to `name`, whose short side is as given.

    The result is within one level of `dla.inference.dense_maps.input_pixels`. Raises as `add_preprocessing`.
    """
    photos, filter_ = Value(builder, pixels), _filter(interpolation)
    size = _size(photos)
    short = size[0].apply("Min", size[1])
    rows, columns = (_Axis(side, _rounded(side * short_side, short)) for side in size)
    result = _resampled(photos, rows, columns, filter_)
    builder.add("Transpose", [result.to(np.uint8).name], name, perm=[0, 2, 3, 1])


def _size(photos: Value) -> Pair:
    height, width = (photos.apply("Shape").apply("Gather", axis) for axis in (1, 2))
    return height, width


def _filter(interpolation: str) -> Callable[[Value], Value]:
    if interpolation not in _FILTERS:
        raise UsageError(
            f"the interpolation {interpolation} cannot be reproduced exactly inside a file. Allowed: "
            f"{', '.join(_FILTERS)}. Try --no-preprocessing"
        )
    return _FILTERS[interpolation]


def _resampled(photos: Value, rows: _Axis, columns: _Axis, filter_: Callable[[Value], Value]) -> Value:
    """Return the photos resized, (N, 3, height, width), float32 in whole levels."""
    down, across = rows.weights(filter_), columns.weights(filter_).apply("Transpose", perm=[1, 0])
    # the same rule as in `dla.images.preprocessing._vertical_first`
    lost = rows.side - rows.resized
    vertical_first = (lost > 0.0) & (lost > (columns.side - columns.resized) * 2.0)
    levels = _floats(photos)
    # Both orders are computed: OpenVINO's results are wrong where a network follows an "If", and an empty part of the
    # batch stops older releases of ONNX Runtime.
    return vertical_first.choose(
        _whole(_nearly_whole(down @ levels) @ across), _whole(down @ _nearly_whole(levels @ across))
    )


class _Axis:
    """One axis of a photo: its length `side`, the length `resized` to, and the pixels in the crop; None: all."""

    def __init__(self, side: Value, resized: Value, crop: int | None = None) -> None:
        self.builder, self.side, self.resized = side.builder, side.to(np.float32), resized.to(np.float32)
        if crop is None:
            self.centres = Value.of(self.builder, 0.0).apply("Range", self.resized, 1.0) - self.resized * 0.5 + 0.5
            return
        spare = (self.resized - float(crop)) * 0.5
        first = (spare < 0.0).choose(spare.apply("Ceil"), spare.apply("Round"))
        # of the crop's pixels, measured from the middle of the resized photo, so that float32 is precise enough
        centres = Value.of(self.builder, np.arange(crop, dtype=np.float32) + np.float32(0.5))
        self.centres = centres + (first - self.resized * 0.5)

    def covered(self) -> Value:
        """Return which pixels of the crop lie inside the resized photo."""
        half = self.resized * 0.5
        return (self.centres > half * -1.0) & (self.centres < half)

    def weights(self, filter_: Callable[[Value], Value]) -> Value:
        """Return (crop, side), the weight of each pixel of the photo for each pixel of the crop; rows sum to 1."""
        edge = self.resized * 0.5 - 0.5
        inside = self.centres.apply("Min", edge).apply("Max", edge * -1.0)
        step = self.side / self.resized
        pixels = Value.of(self.builder, 0.0).apply("Range", self.side, 1.0) + (self.side * -0.5 + 0.5)
        distance = pixels - (inside * step).apply("Reshape", np.array([-1, 1]))
        weights = filter_((distance / step.apply("Max", 1.0)).apply("Abs"))
        return weights / weights.apply("ReduceSum", np.array([1]), keepdims=1)


def _resized_size(preprocessing: Preprocessing, size: Pair) -> Pair:
    """Return the size that `Preprocessing` resizes to.

    For targets that are not square, and for "border", the two float divisions of `Preprocessing` can miss an exact
    half, which this does not: for 6 in 100,000 sizes one side differs by 1.
    """
    (height, width), (to_height, to_width) = size, preprocessing.target
    if preprocessing.crop_mode == "squash":
        return Value.of(height.builder, to_height), Value.of(height.builder, to_width)
    if preprocessing.crop_mode == "center" and to_height == to_width:
        short = height.apply("Min", width)
        return height * to_height / short, width * to_width / short
    steeper = height * to_width > width * to_height
    by_height = steeper if preprocessing.crop_mode == "border" else steeper.apply("Not")
    return (
        by_height.choose(to_height, _rounded(height * to_width, width)),
        by_height.choose(_rounded(width * to_height, height), to_width),
    )


def _rounded(a: Value, b: Value) -> Value:
    """Return a / b, rounded half to even, at least 1."""
    return (a.to(np.float32) / b.to(np.float32)).apply("Round").apply("Max", 1.0).to(np.int64)


def _floats(pixels_NHW3: Value) -> Value:
    return pixels_NHW3.apply("Transpose", perm=[0, 3, 1, 2]).to(np.float32)


def _whole(levels: Value) -> Value:
    return (levels + 0.5).apply("Floor").apply("Clip", 0.0, 255.0)


def _nearly_whole(levels: Value) -> Value:
    """Round to integer levels, except for values halfway between two.

    Which of the two Pillow takes depends on its rounding errors. Keeping the half limits the difference before the next
    axis to half a level, and that of the result to one.
    """
    whole = (levels + 0.5).apply("Floor")
    halfway = (levels - whole).apply("Abs") > 0.499
    return halfway.choose(levels, whole).apply("Clip", 0.0, 255.0)


def _bilinear(x: Value) -> Value:
    return (x * -1.0 + 1.0).apply("Max", 0.0)


def _bicubic(x: Value) -> Value:
    """Return Keys' cubic kernel with a = -0.5."""
    near = (x * 1.5 - 2.5) * x * x + 1.0
    far = ((x * -0.5 + 2.5) * x - 4.0) * x + 2.0
    return (x < 1.0).choose(near, (x < 2.0).choose(far, 0.0))


def _sinc(x: Value) -> Value:
    angle = x.apply("Max", 1e-6) * math.pi
    return angle.apply("Sin") / angle


def _hamming(x: Value) -> Value:
    return (x < 1.0).choose(_sinc(x) * ((x * math.pi).apply("Cos") * 0.46 + 0.54), 0.0)


def _lanczos(x: Value) -> Value:
    return (x < 3.0).choose(_sinc(x) * _sinc(x * (1 / 3)), 0.0)


# Functions of the distance, in pixels of the photo or of the result, whichever are larger.
_FILTERS: dict[str, Callable[[Value], Value]] = {
    "bilinear": _bilinear,
    "bicubic": _bicubic,
    "hamming": _hamming,
    "lanczos": _lanczos,
}
