"""The one preprocessing: which part of a photo a network sees, at what size, and how its numbers are scaled.

H and W are pixels of the result; pixels are uint8 (H, W, 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from dla.errors import DamagedError, UsageError
from dla.types import IMAGENET_MEAN, IMAGENET_STD, Array

__all__ = ["Preprocessing", "crop_resize"]


Box = tuple[float, float, float, float]
CropMode = Literal["center", "squash", "border"]
Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"]
Exif = Literal["apply", "ignore"]

_MOST, _LEAST_PCT = 1e6, 1e-3  # far beyond what any network has; what they bound stays finite in float32
# A sample of these two jumps when it moves by a rounding error, and Pillow holds a box in single precision.
_REACH = 3  # of the widest filter (lanczos), in pixels of the smaller image
_LONG = 32_768  # sides of photos are shorter
_MOST_WHOLE = 100_000_000  # pixels
_NEEDS_WHOLE_PIXELS = ("nearest", "box")


def crop_resize(image: Image.Image, box: Box, size: tuple[int, int], interpolation: Interpolation) -> Array:
    """The part of an RGB image inside `box`, resized with antialiasing to `size` (height, width): uint8 (H, W, 3).

    `box` is (left, top, right, bottom) in pixels of the image, fractions allowed; the filter also looks at the pixels
    just outside it.
    """
    filter_ = Image.Resampling[interpolation.upper()]
    return np.array(image.resize((size[1], size[0]), filter_, box))


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a photo to a network's input; saved with the model.

    The photo is resized so that `size` (height, width) is `crop_pct` of it, and the middle is cut out:

        center   the short side fits: what sticks out is lost
        border   the long side fits: what is missing is filled with `mean`
        squash   both sides fit: the aspect ratio changes

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
        if not _are_numbers([self.crop_pct], 1, int, float) or self.crop_pct < _LEAST_PCT:
            raise UsageError(
                f"crop_pct is the share of a resized photo that is kept, {_LEAST_PCT:g} or more, not {self.crop_pct!r}"
            )
        if not _are_numbers(self.mean, 3, int, float):
            raise UsageError(f"mean is three numbers of at most {_MOST:,.0f}, one a colour, not {self.mean!r}")
        if not _are_numbers(self.std, 3, int, float) or min(self.std) < 1 / _MOST:
            raise UsageError(f"std is three numbers from {1 / _MOST:g} to {_MOST:,.0f}, one a colour, not {self.std!r}")
        for name in ("size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, words in (("crop_mode", CropMode), ("interpolation", Interpolation), ("exif", Exif)):
            if getattr(self, name) not in get_args(words):
                raise UsageError(f"{name} is one of {', '.join(get_args(words))}, not {getattr(self, name)!r}")

    def pixels(self, image: Image.Image) -> Array:
        """What the network sees of an RGB image: uint8 (H, W, 3).

        Only the part that the crop keeps is resized.
        """
        resized = self._resized_size(image.height, image.width)
        (top, rows, above), (left, columns, before) = map(_middle, resized, self.size)
        inner = _part_of_resized(image, resized, (top, left), (rows, columns), self.interpolation)
        if inner.shape[:2] == self.size:
            return inner
        pixels = np.full((*self.size, 3), self.fill, np.uint8)
        pixels[above : above + rows, before : before + columns] = inner
        return pixels

    @property
    def target(self) -> tuple[int, int]:
        """Height and width that the photo is resized for: `size` is `crop_pct` of them."""
        height, width = (max(1, math.floor(side / self.crop_pct)) for side in self.size)
        return height, width

    @property
    def may_be_short(self) -> bool:
        """Whether there are photos that do not fill `size`."""
        return self.crop_mode == "border" or self.target[0] < self.size[0] or self.target[1] < self.size[1]

    @property
    def fill(self) -> tuple[int, int, int]:
        """What is laid where a photo does not fill `size`."""
        red, green, blue = (round(255 * min(max(m, 0), 1)) if self.crop_mode == "border" else 0 for m in self.mean)
        return red, green, blue

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the whole photo after resizing; each rounding is timm's, but never to nothing."""
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
        """a and b, float32 (3,), so that a network's input is pixels * a + b for pixels from 0 to 255."""
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def to_config(self) -> dict[str, Any]:
        """These settings under timm's names, for `pretrained_cfg`. `exif` is not one of them."""
        return {
            "input_size": (3, *self.size),
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
            "interpolation": self.interpolation,
            "mean": self.mean,
            "std": self.std,
        }

    @classmethod
    def from_config(cls, pretrained_cfg: Mapping[str, Any], exif: Exif = "apply") -> Preprocessing:
        """The settings in a `pretrained_cfg`; what is missing or null is what timm would take.

        Raises:
            DamagedError: a field has a value that it cannot have.
        """
        values = {
            "input_size": (3, 224, 224), "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic",
            "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
        }  # fmt: skip
        values |= {key: pretrained_cfg[key] for key in values if pretrained_cfg.get(key)}
        size: Any = values.pop("input_size")
        if not isinstance(size, tuple | list) or len(size) != 3 or size[0] != 3:
            raise DamagedError(f"pretrained_cfg: input_size is 3, height, width, not {size!r}")
        settings: dict[str, Any] = {"size": size[1:], "exif": exif, **values}
        try:
            return cls(**settings)
        except UsageError as error:
            raise DamagedError(f"pretrained_cfg: {error}") from error


def _are_numbers(value: Any, count: int, *kinds: Any) -> bool:
    right = isinstance(value, tuple | list) and len(value) == count
    return right and all(isinstance(v, kinds) and not isinstance(v, bool) and abs(v) <= _MOST for v in value)


def _middle(have: int, want: int) -> tuple[int, int, int]:
    """The middle `want` of `have` pixels: the first one kept, how many there are, how many are empty before them."""
    if have >= want:
        return round((have - want) / 2), want, 0
    return 0, have, (want - have) // 2


def _part_of_resized(
    image: Image.Image, resized: tuple[int, int], start: tuple[int, int], size: tuple[int, int], name: Interpolation
) -> Array:
    """The `size` (height, width) pixels from `start` (top, left) on of the image resized to `resized`."""
    (top, left), (rows, columns) = start, size
    height, width = image.height, image.width
    if name in _NEEDS_WHOLE_PIXELS and resized[0] * resized[1] <= _MOST_WHOLE:
        whole = crop_resize(image, (0, 0, width, height), resized, name)
        return whole[top : top + rows, left : left + columns]
    y0, y1 = (min(height, y * height / resized[0]) for y in (top, top + rows))
    x0, x1 = (min(width, x * width / resized[1]) for x in (left, left + columns))
    if height > _LONG or width > _LONG:
        image, (x0, y0, x1, y1) = _near(image, (x0, y0, x1, y1), (width / resized[1], height / resized[0]))
        height, width = image.height, image.width
    vertical_first = _vertical_first((height, width), resized)
    if vertical_first == _vertical_first((height, width), size):
        return crop_resize(image, (x0, y0, x1, y1), size, name)
    filter_ = Image.Resampling[name.upper()]
    if vertical_first:
        return crop_resize(image.resize((width, rows), filter_, (0, y0, width, y1)), (x0, 0, x1, rows), size, name)
    return crop_resize(image.resize((columns, height), filter_, (x0, 0, x1, height)), (0, y0, columns, y1), size, name)


def _near(image: Image.Image, box: Box, scale: tuple[float, float]) -> tuple[Image.Image, Box]:
    """The part of a long image that a box and the filter's reach around it need, and the box in it.

    Without it the first of the two passes would resize all of the image's length.
    """
    reach = [_REACH * max(1, s) + 1 for s in scale]
    left, top = (max(0, math.floor(at - r)) for at, r in zip(box[:2], reach, strict=True))
    right, bottom = (min(end, math.ceil(at + r)) for end, at, r in zip(image.size, box[2:], reach, strict=True))
    return image.crop((left, top, right, bottom)), (box[0] - left, box[1] - top, box[2] - left, box[3] - top)


def _vertical_first(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether Pillow 13 resizes the columns before the rows (sizes are height, width).

    It rounds and clips in between, so that sharp edges come out differently in the other order.
    """
    return old[0] > new[0] and old[0] - new[0] > 2 * (old[1] - new[1])
