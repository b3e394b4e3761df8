"""Random crops and flips for training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from dla.images.preprocessing import crop_resize
from dla.options import Interpolation
from dla.types import Array

CropBox = tuple[float, float, float, float]


def order_generator(seed: int, epoch: int) -> np.random.Generator:
    """Return the random generator of an epoch's order."""
    return _generator(seed, epoch)


def crop_generator(seed: int, epoch: int, step: int, place: int) -> np.random.Generator:
    """Return the random generator of the photo at index `place` of one step's batch.

    It depends on nothing else, so that a run can resume at any step, with any number of workers and processes.
    """
    return _generator(seed, epoch, step, place)


def repeated_order(generator: np.random.Generator, count: int, repeat: int) -> Array:
    """Return the rows 0 to count - 1 in random order, `repeat` times one after the other."""
    return np.concatenate([generator.permutation(count) for _ in range(repeat)])


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def random_crop(
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: np.random.Generator,
    ratio_rule: Literal["log", "swap"] = "log",
) -> CropBox:
    """Return a random box (left, top, right, bottom) in pixels of a photo of `size` (width, height).

    Its share of the area is uniform in `scale`. Its aspect ratio is log-uniform in `ratio` (Szegedy et al. 2015); with
    the rule "swap" it is uniform, and width and height are swapped with probability 1/2. If ten boxes do not fit, the
    largest central square is returned.
    """
    width, height = size
    for _ in range(10):
        area = width * height * generator.uniform(*scale)
        if ratio_rule == "log":
            aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        else:
            aspect = generator.uniform(*ratio) ** generator.choice((-1.0, 1.0))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = generator.uniform(0, width - w), generator.uniform(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_resized_crop(
    image: Image.Image,
    size: tuple[int, int],
    interpolations: Sequence[Interpolation],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
    generator: np.random.Generator,
    ratio_rule: Literal["log", "swap"] = "log",
) -> Array:
    """Return a random crop of an RGB image, resized to `size` (height, width), flipped with probability `flip`.

    The result is uint8 (H, W, 3). One of the interpolations is chosen at random. `scale`, `ratio` and `ratio_rule` are
    those of `random_crop`.
    """
    box = random_crop(image.size, scale, ratio, generator, ratio_rule)
    interpolation = interpolations[int(generator.integers(len(interpolations)))]
    pixels = crop_resize(image, box, size, interpolation)
    return pixels[:, ::-1] if generator.random() < flip else pixels


def reflect_pad(image: Image.Image, margin: float) -> Image.Image:
    """Pad an image with its reflection, by `margin` times its width or height on each side."""
    if margin == 0:
        return image
    x, y = round(image.width * margin), round(image.height * margin)
    return Image.fromarray(np.pad(np.asarray(image), ((y, y), (x, x), (0, 0)), "symmetric"))
