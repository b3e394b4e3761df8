"""Random crops and flips: which part of each photo a training step sees."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

__all__ = ["mirrored", "random_crop", "step_generator"]

Box = tuple[float, float, float, float]


def step_generator(seed: int, epoch: int, step: int) -> np.random.Generator:
    """The randomness of one step. It depends on nothing else, so that a run can go on from any step."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, step))))


def random_crop(
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: np.random.Generator,
) -> Box:
    """A box (left, top, right, bottom) in pixels of a photo of `size` (width, height).

    Its share of the area is uniform in `scale`, its aspect ratio log-uniform in `ratio` (Szegedy et al. 2015);
    after ten tries that do not fit, the largest central square.
    """
    width, height = size
    for _ in range(10):
        area = width * height * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = generator.uniform(0, width - w), generator.uniform(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def mirrored(image: Image.Image, margin: float) -> Image.Image:
    """The photo with its mirror image around it, `margin` of its width and height on each side."""
    if margin == 0:
        return image
    x, y = round(image.width * margin), round(image.height * margin)
    return Image.fromarray(np.pad(np.asarray(image), ((y, y), (x, x), (0, 0)), "symmetric"))
