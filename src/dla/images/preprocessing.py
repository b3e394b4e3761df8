"""Preprocess photos for a network: crop, resize, and the scale of the pixel values.

H and W are the height and width of the result in pixels; pixels are uint8 (H, W, 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from PIL import Image

from dla.errors import DamagedError, UsageError
from dla.options import CropMode, Exif, Interpolation
from dla.types import IMAGENET_MEAN, IMAGENET_STD, Array

Box = tuple[float, float, float, float]

_MAX_VALUE, _MIN_CROP_PCT = 1e6, 1e-3  # far beyond what any network uses, and finite in float32
_FILTER_SUPPORT = 3  # of the widest filter (lanczos), in pixels of the smaller image
_LONG_SIDE = 32_768  # pixels; the sides of photos are shorter
_MAX_WHOLE = 100_000_000  # pixels
# A sample of these two jumps when it moves by a rounding error, and Pillow holds a box in single precision.
_NEEDS_WHOLE_PIXELS = ("nearest", "box")


def crop_resize(image: Image.Image, box: Box, size: tuple[int, int], interpolation: Interpolation) -> Array:
    """Crop an RGB image to `box` and resize it with antialiasing to `size` (height, width): uint8 (H, W, 3).

    `box` is (left, top, right, bottom) in pixels of the image, fractions allowed; the filter also uses the pixels just
    outside of it.
    """
    filter_ = Image.Resampling[interpolation.upper()]
    return np.array(image.resize((size[1], size[0]), filter_, box))


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The preprocessing of a network; it is saved with the model.

    The photo is resized so that `size` (height, width) is `crop_pct` of it, and the centre is cropped. `crop_mode` is

        center   the short side fits, and the long side is cropped
        border   the long side fits, and the short side is padded with `mean`
        squash   both sides fit, and the aspect ratio changes

    `mean` and `std` are of pixels from 0 to 1. `exif` is how photos must be read for this network.

    Raises:
        UsageError: a value is out of its range.
    """

    size: tuple[int, int] = (224, 224)
    crop_pct: float = 0.875
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    exif: Exif = "apply"

    def __post_init__(self) -> None:
        if not _are_numbers(self.size, 2, int) or min(self.size) < 1:
            raise UsageError(f"size is (height, width) in whole pixels, at least 1, not {self.size!r}")
        if not _are_numbers([self.crop_pct], 1, int, float) or self.crop_pct < _MIN_CROP_PCT:
            raise UsageError(
                f"crop_pct is the share of the resized photo to use, {_MIN_CROP_PCT:g} or more, not {self.crop_pct!r}"
            )
        if not _are_numbers(self.mean, 3, int, float):
            raise UsageError(f"mean is three numbers of at most {_MAX_VALUE:,.0f}, one per colour, not {self.mean!r}")
        if not _are_numbers(self.std, 3, int, float) or min(self.std) < 1 / _MAX_VALUE:
            raise UsageError(
                f"std is three numbers from {1 / _MAX_VALUE:g} to {_MAX_VALUE:,.0f}, one per colour, not {self.std!r}"
            )
        for name in ("size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, words in (("crop_mode", CropMode), ("interpolation", Interpolation), ("exif", Exif)):
            if getattr(self, name) not in get_args(words):
                raise UsageError(f"{name} is one of {', '.join(get_args(words))}, not {getattr(self, name)!r}")

    def pixels(self, image: Image.Image) -> Array:
        """Return the crop of an RGB image that the network sees: uint8 (H, W, 3).

        Only this part of the image is resized.
        """
        resized = self._resized_size(image.height, image.width)
        (top, rows, above), (left, columns, before) = map(_middle, resized, self.size)
        inner = _part_of_resized(image, resized, (top, left), (rows, columns), self.interpolation)
        if inner.shape[:2] == self.size:
            return inner
        pixels = np.full((*self.size, 3), self.fill, np.uint8)
        pixels[above : above + rows, before : before + columns] = inner
        return pixels

    def seen_box(self, photo: tuple[int, int]) -> Box:
        """Return the box of a photo of (width, height) that the network sees: (left, top, right, bottom) in its pixels.

        Where the network sees padding, the box reaches beyond the photo.
        """
        width, height = photo
        resized = self._resized_size(height, width)
        (top, _, above), (left, _, before) = map(_middle, resized, self.size)
        y, x = height / resized[0], width / resized[1]
        first, row = left - before, top - above
        return first * x, row * y, (first + self.size[1]) * x, (row + self.size[0]) * y

    @property
    def target(self) -> tuple[int, int]:
        """Return the height and width that the photo is resized to fit: `size` is `crop_pct` of them."""
        height, width = (max(1, math.floor(side / self.crop_pct)) for side in self.size)
        return height, width

    @property
    def may_be_short(self) -> bool:
        """Return whether a photo can be smaller than `size` after resizing."""
        return self.crop_mode == "border" or self.target[0] < self.size[0] or self.target[1] < self.size[1]

    @property
    def fill(self) -> tuple[int, int, int]:
        """Return the RGB colour of the padding where a photo does not fill `size`."""
        red, green, blue = (round(255 * min(max(m, 0), 1)) if self.crop_mode == "border" else 0 for m in self.mean)
        return red, green, blue

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the whole photo after resizing, at least 1; each is rounded as in timm."""
        to_height, to_width = self.target
        if self.crop_mode == "squash":
            return to_height, to_width
        if self.crop_mode == "center" and to_height == to_width:
            short, long = sorted((height, width))
            other = int(to_height * long / short)
            return (to_height, other) if height <= width else (other, to_height)
        ratios = height / to_height, width / to_width
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def scale_shift(self) -> tuple[Array, Array]:
        """Return a and b, float32 (3,), so that the network's input is pixels * a + b for pixels from 0 to 255."""
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def to_config(self) -> dict[str, Any]:
        """Return these settings under timm's names, for `pretrained_cfg`. `exif` is not one of them."""
        names = ("crop_pct", "crop_mode", "interpolation", "mean", "std")
        return {"input_size": (3, *self.size), **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_config(cls, pretrained_cfg: Mapping[str, Any], exif: Exif = "apply") -> Preprocessing:
        """Return the settings in a `pretrained_cfg`, with timm's default for what is missing or null.

        Raises:
            DamagedError: a field has a value that is not allowed.
        """
        values = cls(interpolation="bicubic").to_config()
        values |= {key: pretrained_cfg[key] for key in values if pretrained_cfg.get(key)}
        size: Any = values.pop("input_size")
        if not isinstance(size, tuple | list) or len(size) != 3 or size[0] != 3:
            raise DamagedError(f"pretrained_cfg: input_size is 3, height, width, not {size!r}")
        values |= {"size": size[1:], "exif": exif}
        try:
            return cls(**values)
        except UsageError as error:
            raise DamagedError(f"pretrained_cfg: {error}") from error


def _are_numbers(value: Any, count: int, *kinds: Any) -> bool:
    valid = isinstance(value, tuple | list) and len(value) == count
    return valid and all(isinstance(v, kinds) and not isinstance(v, bool) and abs(v) <= _MAX_VALUE for v in value)


def _middle(have: int, want: int) -> tuple[int, int, int]:
    """Return the first, the number of pixels and the padding before them, for the middle `want` of `have` pixels."""
    if have >= want:
        return round((have - want) / 2), want, 0
    return 0, have, (want - have) // 2


def _part_of_resized(
    image: Image.Image, resized: tuple[int, int], start: tuple[int, int], size: tuple[int, int], name: Interpolation
) -> Array:
    """Return the `size` (height, width) pixels from `start` (top, left) on of the image resized to `resized`."""
    (top, left), (rows, columns) = start, size
    height, width = image.height, image.width
    if name in _NEEDS_WHOLE_PIXELS and resized[0] * resized[1] <= _MAX_WHOLE:
        whole = crop_resize(image, (0, 0, width, height), resized, name)
        return whole[top : top + rows, left : left + columns]
    y0, y1 = (min(height, y * height / resized[0]) for y in (top, top + rows))
    x0, x1 = (min(width, x * width / resized[1]) for x in (left, left + columns))
    if height > _LONG_SIDE or width > _LONG_SIDE:
        image, (x0, y0, x1, y1) = _crop_near(image, (x0, y0, x1, y1), (width / resized[1], height / resized[0]))
        height, width = image.height, image.width
    vertical_first = _vertical_first((height, width), resized)
    if vertical_first == _vertical_first((height, width), size):
        return crop_resize(image, (x0, y0, x1, y1), size, name)
    filter_ = Image.Resampling[name.upper()]
    if vertical_first:
        return crop_resize(image.resize((width, rows), filter_, (0, y0, width, y1)), (x0, 0, x1, rows), size, name)
    return crop_resize(image.resize((columns, height), filter_, (x0, 0, x1, height)), (0, y0, columns, y1), size, name)


def _crop_near(image: Image.Image, box: Box, scale: tuple[float, float]) -> tuple[Image.Image, Box]:
    """Crop a long image to a box and the filter's support around it; return the crop, and the box in it.

    Without this, the first of Pillow's two passes would resize the image's whole length.
    """
    support = [_FILTER_SUPPORT * max(1, s) + 1 for s in scale]
    left, top = (max(0, math.floor(at - r)) for at, r in zip(box[:2], support, strict=True))
    right, bottom = (min(end, math.ceil(at + r)) for end, at, r in zip(image.size, box[2:], support, strict=True))
    return image.crop((left, top, right, bottom)), (box[0] - left, box[1] - top, box[2] - left, box[3] - top)


def _vertical_first(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Return whether Pillow 13 makes the vertical pass before the horizontal one (sizes are height, width).

    It rounds and clips between the passes, so the other order gives different values at sharp edges.
    """
    return old[0] > new[0] and old[0] - new[0] > 2 * (old[1] - new[1])
