"""From photos to batches: decoded once, cropped and resized ahead of the network.

Batches are uint8 (N, H, W, 3); `to_input` makes x_N3HW of them, which is channels_last by construction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dla.data.augment import mirrored, random_crop, step_generator
from dla.data.load import run_ahead
from dla.data.open import Split
from dla.images.prepare import Preprocessing, crop_resize
from dla.images.read import read_photo
from dla.recipes.schema import Recipe

__all__ = ["Batch", "decode_all", "to_input", "train_batches", "val_batches"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Batch:
    """`rows_N` are the photos' places in the split."""

    pixels_NHW3: Array
    targets_N: Array
    rows_N: Array


def decode_all(split: Split, workers: int) -> list[Image.Image]:
    """Every photo of the split, decoded and kept in memory."""
    return list(run_ahead(lambda photo: read_photo(photo).image, split.photos, workers, 256))


def train_batches(
    images: list[Image.Image], targets_N: Array, recipe: Recipe, epoch: int, first_step: int, workers: int
) -> Iterator[Batch]:
    """The epoch's batches from `first_step` on, in an order that only the seed and the epoch decide.

    The last, incomplete batch is left out.
    """
    order = step_generator(recipe.seed, epoch, -1 & 0xFFFFFFFF).permutation(len(images))
    steps = range(first_step, len(images) // recipe.batch_size)
    make = partial(_train_batch, images, targets_N, order, recipe, epoch)
    return run_ahead(make, steps, workers, 2 * max(workers, 1))


def _train_batch(
    images: list[Image.Image], targets_N: Array, order: Array, recipe: Recipe, epoch: int, step: int
) -> Batch:
    generator = step_generator(recipe.seed, epoch, step)
    rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
    side, augment = recipe.size_at(epoch, step), recipe.augment
    of_canvas = (1 + 2 * augment.margin) ** -2
    scale = augment.scale[0] * of_canvas, augment.scale[1] * of_canvas
    pixels = np.empty((len(rows), side, side, 3), np.uint8)
    for i, row in enumerate(rows):
        canvas = mirrored(images[row], augment.margin)
        box = random_crop(canvas.size, scale, augment.ratio, generator)
        crop = crop_resize(canvas, box, (side, side), "bilinear")
        pixels[i] = crop[:, ::-1] if generator.random() < augment.flip else crop
    return Batch(pixels, targets_N[rows], rows)


def val_batches(
    images: list[Image.Image], targets_N: Array, preprocessing: Preprocessing, batch_size: int, workers: int
) -> Iterator[Batch]:
    """Every photo once, in order, as `dla predict` would see it."""

    def make(start: int) -> Batch:
        rows = np.arange(start, min(start + batch_size, len(images)))
        return Batch(np.stack([preprocessing.pixels(images[r]) for r in rows]), targets_N[rows], rows)

    return run_ahead(make, range(0, len(images), batch_size), workers, 2 * max(workers, 1))


def to_input(pixels_NHW3: Array, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """uint8 (N, H, W, 3) -> normalised float x_N3HW."""
    scale, shift = (torch.from_numpy(a).to(device)[:, None, None] for a in preprocessing.scale_shift())
    x = torch.from_numpy(pixels_NHW3).to(device, non_blocking=True).permute(0, 3, 1, 2)
    return x.float().mul_(scale).add_(shift)
