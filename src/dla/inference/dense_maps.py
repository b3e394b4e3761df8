"""From a photo to the logits of each of its pixels: the size of the network's input, tiles, and back to the photo.

K classes; logits are float32 (K, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from dla.images.preprocessing import crop_resize
from dla.options import TILE_OVERLAP, Interpolation
from dla.types import Array

GRID = 32  # tiles begin at multiples of the coarsest stride, so that all maps lie as in the whole photo
BAND_LOGITS = 2**22  # that are answered at a time

Compute = Callable[[Array], Array]  # uint8 (1, H, W, 3) to logits (1, K, H, W)


def input_pixels(photo: Image.Image, size: tuple[int, int], interpolation: Interpolation) -> Array:
    """Return the photo at this (height, width), uint8 (H, W, 3)."""
    if (photo.height, photo.width) == size:
        return np.array(photo)
    return crop_resize(photo, (0, 0, photo.width, photo.height), size, interpolation)


def logits_of(pixels_HW3: Array, compute: Compute, tile: int) -> Iterator[Array]:
    """Yield the logits of a photo in bands of rows, (K, h, W), from above.

    Larger photos are computed in overlapping tiles, whose logits are blended linearly; only one row of tiles is held.
    """
    height, width = pixels_HW3.shape[:2]
    if max(height, width) <= tile:
        yield from _in_bands(compute(pixels_HW3[None])[0])
        return
    rows, columns = _spans(height, tile), _spans(width, tile)
    carried: Array | None = None  # the weighted sum of the rows that the next tiles overlap
    for n, (top, bottom) in enumerate(rows):
        row_KhW = _row_of_tiles(pixels_HW3[top:bottom], columns, compute)
        row_KhW *= _ramps(rows, n)[:, None]
        if carried is not None:
            row_KhW[:, : carried.shape[1]] += carried
        done = rows[n + 1][0] - top if n + 1 < len(rows) else bottom - top
        yield from _in_bands(row_KhW[:, :done])
        carried = row_KhW[:, done:].copy()
        del row_KhW  # before the next one is made


def _in_bands(logits_KHW: Array) -> Iterator[Array]:
    height = max(1, BAND_LOGITS // (len(logits_KHW) * logits_KHW.shape[2]))
    for top in range(0, logits_KHW.shape[1], height):
        yield logits_KHW[:, top : top + height]


def _row_of_tiles(pixels_hW3: Array, columns: list[tuple[int, int]], compute: Compute) -> Array:
    band: Array | None = None
    for n, (left, right) in enumerate(columns):
        logits_Khw = compute(np.ascontiguousarray(pixels_hW3[None, :, left:right]))[0]
        if band is None:
            band = np.zeros((*logits_Khw.shape[:2], pixels_hW3.shape[1]), np.float32)
        band[:, :, left:right] += logits_Khw * _ramps(columns, n)
    assert band is not None
    return band


def _spans(length: int, tile: int) -> list[tuple[int, int]]:
    """Return the (first, end) of overlapping tiles that cover `length`.

    All are of one size, as an engine may hold memory for each size it has seen, and all begin on the grid.
    """
    count = max(1, -(-(length - TILE_OVERLAP) // (tile - TILE_OVERLAP - GRID)))
    if count == 1:
        return [(0, length)]
    size = -(-(length - TILE_OVERLAP) // count) + TILE_OVERLAP
    size += (length - size) % GRID  # so that the last one, too, begins on the grid
    return [
        (start, start + size) for start in (n * (length - size) // (count - 1) // GRID * GRID for n in range(count))
    ]


def _ramps(spans: list[tuple[int, int]], n: int) -> Array:
    """Return the weights along tile n; those of all tiles sum to 1.

    Where two tiles overlap, the outer quarter of each counts nothing, as its network sees a border that the photo does
    not have; in the half between, one falls linearly as the other rises.
    """
    first, end = spans[n]
    weights = np.ones(end - first, np.float32)
    if n > 0:
        shared = spans[n - 1][1] - first
        weights[:shared] = _rise(shared)
    if n + 1 < len(spans):
        shared = end - spans[n + 1][0]
        weights[-shared:] *= 1 - _rise(shared)
    return weights


def _rise(length: int) -> Array:
    return (2 * (np.arange(length) + 0.5) / length - 0.5).clip(0, 1).astype(np.float32)


def resized_bands(bands: Iterator[Array], size: tuple[int, int], to: tuple[int, int]) -> Iterator[Array]:
    """Yield logits in bands of a few rows, (K, h, W), interpolated linearly from (height, width) `size` to `to`.

    Of the logits before, only the rows are held that the next band needs.
    """
    if size == to:
        yield from bands
        return
    left, right, share_W = _neighbours(size[1], to[1])
    above, below, share_H = _neighbours(size[0], to[0])
    held_KhW = next(bands)
    first, height = 0, max(1, BAND_LOGITS // (len(held_KhW) * to[1]))
    for top in range(0, to[0], height):
        rows = slice(top, top + height)
        held_KhW = held_KhW[:, above[top] - first :].copy()  # a view would keep the whole band in memory
        first = above[top]
        while held_KhW.shape[1] <= below[rows][-1] - first:
            held_KhW = np.concatenate((held_KhW, next(bands)), 1)
        share_h1 = share_H[rows, None]
        upper_Khw, lower_Khw = held_KhW[:, above[rows] - first], held_KhW[:, below[rows] - first]
        band_Khw = upper_Khw * (1 - share_h1) + lower_Khw * share_h1
        yield band_Khw[:, :, left] * (1 - share_W) + band_Khw[:, :, right] * share_W


def _neighbours(size: int, to: int) -> tuple[Array, Array, Array]:
    """Return, for each of `to` pixels, the two of `size` it lies between, and the share of the second."""
    place = ((np.arange(to) + 0.5) * size / to - 0.5).clip(0, size - 1)
    first = np.floor(place).astype(np.int64)
    return first, np.minimum(first + 1, size - 1), (place - first).astype(np.float32)
