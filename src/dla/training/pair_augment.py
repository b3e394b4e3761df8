"""Random crops of a photo together with its mask.

Both are moved jointly: rotated, magnified, cropped and flipped. The photo is resized with antialiasing and reflected
beyond its border; the mask takes the nearest pixel, and is ignored beyond it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dla.data.pair_split import IGNORED
from dla.training.recipe_input import AugmentConfig
from dla.types import Array

TRIES = 10  # to find a crop with a rare class


@dataclass(frozen=True)
class Place:
    """A crop of a photo: its centre (x, y) and its size in pixels of the photo, its angle in radians, and its flip."""

    centre: tuple[float, float]
    size: tuple[float, float]
    angle: float
    flip: bool


def random_pair(
    photo: Image.Image,
    mask_HW: Array,
    size: tuple[int, int],
    augment: AugmentConfig,
    generator: np.random.Generator,
    rare: frozenset[int] = frozenset(),
) -> tuple[Array, Array]:
    """Return a random crop of a photo, uint8 (H, W, 3), and of its mask (H, W) uint8, of `size` (height, width).

    With the probability `augment.favour` it holds a pixel of a `rare` class, if a few tries find one.
    """
    if augment.rotate == "quarter":
        turns = int(generator.integers(4))
        photo, mask_HW = photo.rotate(90 * turns, expand=True), np.rot90(mask_HW, turns)
    tries = TRIES if rare and generator.random() < augment.favour else 1
    for _ in range(tries):
        place = _random_place(photo.size, size, augment, generator)
        crop_HW = crop_mask(mask_HW, place, size)
        if tries == 1 or not rare.isdisjoint(np.unique(crop_HW).tolist()):
            break
    return crop_photo(photo, place, size), crop_HW


def _random_place(
    photo: tuple[int, int], size: tuple[int, int], augment: AugmentConfig, generator: np.random.Generator
) -> Place:
    zoom = math.exp(generator.uniform(math.log(augment.zoom[0]), math.log(augment.zoom[1])))
    covered = size[1] / zoom, size[0] / zoom
    spare = [max(0.0, n - c) for n, c in zip(photo, covered, strict=True)]
    x, y = (n / 2 + generator.uniform(-s / 2, s / 2) for n, s in zip(photo, spare, strict=True))
    most = 0.0 if augment.rotate == "quarter" else augment.rotate
    angle = math.radians(generator.uniform(-most, most)) if most else 0.0
    return Place((x, y), covered, angle, bool(generator.random() < augment.flip))


def crop_photo(photo: Image.Image, place: Place, size: tuple[int, int]) -> Array:
    """Return the crop of a photo, uint8 (H, W, 3), reflected beyond its border."""
    (x, y), (width, height) = place.centre, place.size
    cos, sin = math.cos(place.angle), math.sin(place.angle)
    # what the rotated crop touches, with a pixel around it for the filter
    reach = [
        (abs(width * cos) + abs(height * sin)) / 2 + 2,
        (abs(width * sin) + abs(height * cos)) / 2 + 2,
    ]
    photo, (left, top) = _reflected(photo, (x - reach[0], y - reach[1], x + reach[0], y + reach[1]))
    x, y = x - left, y - top
    if place.angle:
        whole = math.ceil(width) + 4, math.ceil(height) + 4
        u, v = whole[0] / 2, whole[1] / 2
        matrix = (cos, sin, x - cos * u - sin * v, -sin, cos, y + sin * u - cos * v)
        photo = photo.transform(whole, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        x, y = u, v
    box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    pixels_HW3 = np.asarray(photo.resize(size[::-1], Image.Resampling.BILINEAR, _inside(box, photo.size)))
    return pixels_HW3[:, ::-1] if place.flip else pixels_HW3


def crop_mask(mask_HW: Array, place: Place, size: tuple[int, int]) -> Array:
    """Return the crop of a mask (H, W): the pixel at the centre of each of the crop's, IGNORED beyond the border."""
    (x, y), (width, height), (rows, columns) = place.centre, place.size, size
    u_W = ((np.arange(columns) + 0.5) / columns - 0.5) * width
    v_H1 = ((np.arange(rows) + 0.5) / rows - 0.5)[:, None] * height
    cos, sin = math.cos(place.angle), math.sin(place.angle)
    x_HW = np.floor(x + cos * u_W + sin * v_H1).astype(np.int64)
    y_HW = np.floor(y - sin * u_W + cos * v_H1).astype(np.int64)
    height_, width_ = mask_HW.shape
    inside_HW = (x_HW >= 0) & (x_HW < width_) & (y_HW >= 0) & (y_HW < height_)
    crop_HW = mask_HW[y_HW.clip(0, height_ - 1), x_HW.clip(0, width_ - 1)]
    crop_HW = np.where(inside_HW, crop_HW, np.uint8(IGNORED))
    return crop_HW[:, ::-1] if place.flip else crop_HW


def _reflected(photo: Image.Image, box: tuple[float, float, float, float]) -> tuple[Image.Image, tuple[int, int]]:
    """Return the photo, padded by its reflection where the box leaves it, and the place of the result's corner."""
    left, top = max(0, math.ceil(-box[0])), max(0, math.ceil(-box[1]))
    right, bottom = max(0, math.ceil(box[2] - photo.width)), max(0, math.ceil(box[3] - photo.height))
    if not (left or top or right or bottom):
        return photo, (0, 0)
    padded = np.pad(np.asarray(photo), ((top, bottom), (left, right), (0, 0)), "symmetric")
    return Image.fromarray(padded), (-left, -top)


def _inside(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the box without what rounding puts beyond the photo, which Pillow refuses."""
    return max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(size[0])), min(box[3], float(size[1]))
