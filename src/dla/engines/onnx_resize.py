"""The one preprocessing as a part of an ONNX graph: photos of any size in, the pixels of `Preprocessing` out.

N photos of H rows and W columns. Pillow resizes one axis, rounds to whole levels, then resizes the other. Either is a
product with a matrix of the filter's weights, which the graph makes from the photo's size; so there is no need for a
runtime to have Pillow's filters, and what the crop leaves out is never made.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dla.engines.onnx_builder import OnnxBuilder, Value
from dla.errors import UsageError
from dla.images.preprocessing import Preprocessing

__all__ = ["add_preprocessing"]


Pair = tuple[Value, Value]


def add_preprocessing(made: OnnxBuilder, pixels: str, preprocessing: Preprocessing, name: str) -> None:
    """Have a graph turn `pixels`, uint8 (N, H, W, 3), into those that a network sees, uint8 (N, height, width, 3).

    They are called `name`, and are within one level of `Preprocessing.pixels`.

    Raises:
        UsageError: the interpolation is one whose pixels jump when a sample moves by a rounding error.
    """
    if preprocessing.interpolation not in _FILTERS:
        raise UsageError(
            f"the interpolation {preprocessing.interpolation} cannot be done inside a file to the very pixel. Allowed: "
            f"{', '.join(_FILTERS)}. Try --no-preprocessing"
        )
    photos = Value(made, pixels)
    count, *size = (photos.apply("Shape").apply("Gather", axis) for axis in range(3))
    resized = _resized_size(preprocessing, (size[0], size[1]))
    filter_ = _FILTERS[preprocessing.interpolation]
    rows, columns = map(_Axis, size, resized, preprocessing.size)
    down, across = rows.weights(filter_), columns.weights(filter_).apply("Transpose", perm=[1, 0])
    # as `dla.images.preprocessing._vertical_first` has it
    lost = size[0] - resized[0]
    vertical_first = (lost > 0) & (lost > (size[1] - resized[1]) * 2)
    # All photos go one way, and none the other: products with nothing cost nothing.
    split = (count * vertical_first.to(np.int64)).apply("Reshape", np.array([1]))
    one = photos.apply("Slice", np.array([0]), split, np.array([0]))
    other = photos.apply("Slice", split, count.apply("Reshape", np.array([1])), np.array([0]))
    one_NCHW = _whole(_nearly_whole(down @ _floats(one)) @ across)
    other_NCHW = _whole(down @ _nearly_whole(_floats(other) @ across))
    found = one_NCHW.apply("Concat", other_NCHW, axis=0)
    if preprocessing.may_be_short:
        fill = np.array(preprocessing.fill, np.float32).reshape(3, 1, 1)
        there = rows.there().apply("Reshape", np.array([-1, 1])) & columns.there()
        found = there.choose(found, fill)
    made.add("Transpose", [found.to(np.uint8).name], name, perm=[0, 2, 3, 1])


class _Axis:
    """One axis of a photo: its `side`, the side that it is resized to, and how many pixels of that are seen."""

    def __init__(self, side: Value, resized: Value, seen: int) -> None:
        self.made, self.side, self.resized = side.made, side.to(np.float32), resized.to(np.float32)
        spare = (self.resized - float(seen)) * 0.5
        first = (spare < 0.0).choose(spare.apply("Ceil"), spare.apply("Round"))
        # of the seen pixels, in pixels of the resized photo from its middle: so that single precision is enough
        middles = Value.of(self.made, np.arange(seen, dtype=np.float32) + np.float32(0.5))
        self.middles = middles + (first - self.resized * 0.5)

    def there(self) -> Value:
        """Which of the seen pixels the resized photo has."""
        half = self.resized * 0.5
        return (self.middles > half * -1.0) & (self.middles < half)

    def weights(self, filter_: Callable[[Value], Value]) -> Value:
        """(seen, side): what each pixel of the photo adds to each that is seen; each row's sum is 1."""
        edge = self.resized * 0.5 - 0.5
        inside = self.middles.apply("Min", edge).apply("Max", edge * -1.0)
        step = self.side / self.resized
        pixels = Value.of(self.made, 0.0).apply("Range", self.side, 1.0) + (self.side * -0.5 + 0.5)
        apart = pixels - (inside * step).apply("Reshape", np.array([-1, 1]))
        weights = filter_((apart / step.apply("Max", 1.0)).apply("Abs"))
        return weights / weights.apply("ReduceSum", np.array([1]), keepdims=1)


def _resized_size(preprocessing: Preprocessing, size: Pair) -> Pair:
    """As `Preprocessing` has it.

    For a target that is not square, and "border": there two divisions of floats can miss an exact half; this does not,
    and one side of 6 sizes in 100,000 comes out 1 shorter or longer.
    """
    (height, width), (to_height, to_width) = size, preprocessing.target
    if preprocessing.crop_mode == "squash":
        return Value.of(height.made, to_height), Value.of(height.made, to_width)
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
    """a / b, halves to even, at least 1."""
    return (a.to(np.float32) / b.to(np.float32)).apply("Round").apply("Max", 1.0).to(np.int64)


def _floats(pixels_NHW3: Value) -> Value:
    return pixels_NHW3.apply("Transpose", perm=[0, 3, 1, 2]).to(np.float32)


def _whole(levels: Value) -> Value:
    return (levels + 0.5).apply("Floor").apply("Clip", 0.0, 255.0)


def _nearly_whole(levels: Value) -> Value:
    """Whole levels, but those halfway between two as they are.

    Which of the two Pillow takes depends on its own rounding errors; so the next axis begins with half a level of
    difference at most, and the result is within one.
    """
    whole = (levels + 0.5).apply("Floor")
    halfway = (levels - whole).apply("Abs") > 0.499
    return halfway.choose(levels, whole).apply("Clip", 0.0, 255.0)


def _bilinear(x: Value) -> Value:
    return (x * -1.0 + 1.0).apply("Max", 0.0)


def _bicubic(x: Value) -> Value:
    """Keys' cubic with a = -0.5."""
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


# Of the distance in pixels, or in those of the result where these are larger.
_FILTERS: dict[str, Callable[[Value], Value]] = {
    "bilinear": _bilinear,
    "bicubic": _bicubic,
    "hamming": _hamming,
    "lanczos": _lanczos,
}
