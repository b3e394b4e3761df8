"""Non-maximum suppression and thinning of boundary maps, as the Berkeley benchmark and its usual toolbox have them."""

from __future__ import annotations

import numpy as np

from dla.options import BoundaryOptions
from dla.types import Array

_SMOOTHING = 4  # radius of the triangle filter, pixels
_BORDER = 5  # pixels
# The neighbours of a pixel, x1 to x8 of Lam, Lee and Suen: from the right counter-clockwise, as (row, column).
_NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def suppress_non_maxima(map_HW: Array, margin: float = BoundaryOptions.nms_m) -> Array:
    """Set pixels to 0 that are not maxima across the boundary, (H, W) of floats from 0 to 1; return float64.

    Source: Dollár and Zitnick, "Fast Edge Detection Using Structured Forests" (2015), as in their toolbox. The
    direction across comes from second derivatives of the map, smoothed by a triangle filter of radius 4. A pixel stays
    if `margin` times its value is at least both values one pixel away in that direction (bilinear). Values within 5
    pixels of the border fade to 0. As in the toolbox, a map that is exactly constant along its rows has no direction
    and is not suppressed.

    Args:
        map_HW: the probability of a boundary at each pixel.
        margin: the factor; above 1, wider maxima stay.
    """
    edges_HW = np.asarray(map_HW, np.float64)
    angle_HW = _across(edges_HW)
    rows_E, columns_E = np.nonzero(edges_HW)
    values_E, angle_E = edges_HW[rows_E, columns_E], angle_HW[rows_E, columns_E]
    kept_E = np.ones(len(values_E), bool)
    for step in (-1, 1):
        beside_E = _bilinear(edges_HW, rows_E + step * np.sin(angle_E), columns_E + step * np.cos(angle_E))
        kept_E &= values_E * margin >= beside_E
    result_HW = np.zeros_like(edges_HW)
    result_HW[rows_E, columns_E] = np.where(kept_E, values_E, 0)
    return result_HW * _fade(edges_HW.shape[0])[:, None] * _fade(edges_HW.shape[1])


def thin(mask_HW: Array) -> Array:
    """Thin lines to a width of one pixel without breaking them, (H, W) of booleans, until nothing changes.

    Source: Guo and Hall (1989) in the form of Lam, Lee and Suen (1992), section V, as MATLAB's bwmorph has it.

    A pixel's removal depends on its eight neighbours alone, so after the first pass only pixels beside removed ones are
    looked at again.
    """
    height, width = mask_HW.shape
    padded = np.zeros((height + 2, width + 2), bool)
    padded[1:-1, 1:-1] = mask_HW
    on = padded.ravel()
    offsets = np.array([row * (width + 2) + column for row, column in _NEIGHBOURS])
    pending = [on.copy(), on.copy()]
    while pending[0].any() or pending[1].any():
        for part, removable in enumerate(_REMOVABLE):
            pixels = np.flatnonzero(pending[part] & on)
            pending[part][:] = False
            codes = np.zeros(len(pixels), np.uint8)
            for bit, offset in enumerate(offsets):
                codes |= on[pixels + offset].view(np.uint8) << np.uint8(bit)
            removed = pixels[removable[codes]]
            on[removed] = False
            beside = (removed[:, None] + offsets).ravel()
            pending[0][beside] = pending[1][beside] = True
    return padded[1:-1, 1:-1].copy()


def _across(edges_HW: Array) -> Array:
    """Return the direction across the boundary at each pixel, an angle from 0 to pi, from x to y (downwards)."""
    from scipy.ndimage import convolve1d

    rise = np.arange(1, _SMOOTHING + 1)
    triangle = np.concatenate((rise, [_SMOOTHING + 1], rise[::-1])) / (_SMOOTHING + 1) ** 2
    smooth_HW = edges_HW
    for axis in (0, 1):
        smooth_HW = convolve1d(smooth_HW, triangle, axis=axis, mode="reflect")
    x_HW, y_HW = _derivative(smooth_HW, 1), _derivative(smooth_HW, 0)
    xx_HW, xy_HW, yy_HW = _derivative(x_HW, 1), _derivative(y_HW, 1), _derivative(y_HW, 0)
    return np.arctan(yy_HW * np.sign(-xy_HW) / (xx_HW + 1e-5)) % np.pi


def _derivative(values_HW: Array, axis: int) -> Array:
    """Return central differences, one-sided at the border; 0 along an axis of one pixel."""
    return np.gradient(values_HW, axis=axis) if values_HW.shape[axis] > 1 else np.zeros_like(values_HW)


def _bilinear(values_HW: Array, rows_E: Array, columns_E: Array) -> Array:
    """Return the values at positions between pixels; those outside are moved to the border."""
    corners = []
    for position_E, length in ((rows_E, values_HW.shape[0]), (columns_E, values_HW.shape[1])):
        position_E = position_E.clip(0, max(0.0, length - 1.001))
        low_E = position_E.astype(np.int64)
        corners.append((low_E, np.minimum(low_E + 1, length - 1), position_E - low_E))
    (top, bottom, down), (left, right, along) = corners
    upper_E = values_HW[top, left] * (1 - along) + values_HW[top, right] * along
    lower_E = values_HW[bottom, left] * (1 - along) + values_HW[bottom, right] * along
    return upper_E * (1 - down) + lower_E * down  # type: ignore[no-any-return]


def _fade(length: int) -> Array:
    """Return factors that rise from 0 at both ends of an axis to 1 within `_BORDER` pixels."""
    border = min(_BORDER, length // 2)
    factors = np.ones(length)
    if border:
        ramp = np.arange(border) / border
        factors[:border] *= ramp
        factors[::-1][:border] *= ramp
    return factors


def _removable() -> tuple[Array, Array]:
    """Return which pixels each of the two passes removes, by the code of their neighbours: bit k - 1 is xk."""
    x = {k: np.arange(256) >> (k - 1) % 8 & 1 == 1 for k in range(1, 10)}  # x9 is x1
    crossings = np.sum([~x[2 * i - 1] & (x[2 * i] | x[2 * i + 1]) for i in range(1, 5)], axis=0)
    one_way, other_way = (np.sum([x[2 * k + i] | x[2 * k + i + 1] for k in range(1, 5)], axis=0) for i in (-1, 0))
    pairs = np.minimum(one_way, other_way)
    both = (crossings == 1) & (pairs >= 2) & (pairs <= 3)
    return both & ~((x[2] | x[3] | ~x[8]) & x[1]), both & ~((x[6] | x[7] | ~x[4]) & x[5])


_REMOVABLE = _removable()
