"""Colours of classes in masks, and of values in heat maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dla.types import Array


def class_palette(count: int, given: Sequence[Sequence[int]] | None = None) -> Array:
    """Return the colours of `count` classes, uint8 (count, 3): the given ones, else those of PASCAL VOC.

    VOC's colour of class k has the bits of k, lowest first, as the highest bits of red, green and blue in turn.
    """
    if given is not None and len(given) >= count:
        return np.array(given[:count], np.uint8)
    classes_K1 = np.arange(count)[:, None]
    colors_K3 = np.zeros((count, 3), np.int64)
    for bit in range(8):
        colors_K3 |= ((classes_K1 >> (3 * bit + np.arange(3))) & 1) << (7 - bit)
    return colors_K3.astype(np.uint8)


# From nothing to most: dark blue, violet, red, orange, pale yellow; lightness rises evenly, so that it prints in grey.
_HEAT = ((8, 10, 48), (92, 18, 110), (188, 48, 80), (246, 132, 24), (252, 250, 170))


def heat_colors(values: Array) -> Array:
    """Return the colours of values from 0 to 1, of any shape: uint8 (*shape, 3)."""
    stops = np.linspace(0, 1, len(_HEAT))
    return (
        np.stack([np.interp(values, stops, level) for level in zip(*_HEAT, strict=True)], -1).round().astype(np.uint8)
    )
