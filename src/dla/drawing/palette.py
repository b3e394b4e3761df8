"""Colours of classes in masks."""

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
