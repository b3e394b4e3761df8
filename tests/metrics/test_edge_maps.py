"""Thinning against scikit-image, suppression against the toolbox's loop over pixels."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage import morphology

from dla.metrics.edge_maps import suppress_non_maxima, thin

seeds = st.integers(0, 10_000)


def blobs(seed: int) -> np.ndarray:
    """Smooth random values from 0 to 1, of any size from 1x1 on."""
    generator = np.random.default_rng(seed)
    values = gaussian_filter(generator.random(generator.integers(1, 50, 2)), generator.choice([0, 0.7, 2]))
    return (values - values.min()) / max(float(np.ptp(values)), 1e-9)


@given(seeds, st.floats(0, 1))
@settings(max_examples=40)
def test_thinning_equals_scikit_image(seed: int, threshold: float) -> None:
    mask = blobs(seed) >= threshold
    before = mask.copy()
    np.testing.assert_array_equal(thin(mask), morphology.thin(mask))
    np.testing.assert_array_equal(mask, before)


@given(seeds)
@settings(max_examples=20)
def test_a_thinned_map_is_thin(seed: int) -> None:
    lines = thin(blobs(seed) > 0.5)
    np.testing.assert_array_equal(thin(lines), lines)


def smoothed(values: np.ndarray) -> np.ndarray:
    """The triangle filter of radius 4 by its definition, a mean of mirrored values."""
    for axis in (0, 1):
        padded = np.pad(values, [(4, 4) if a == axis else (0, 0) for a in (0, 1)], mode="symmetric")
        length = values.shape[axis]
        weights = [1, 2, 3, 4, 5, 4, 3, 2, 1]
        values = sum(w / 25 * np.take(padded, range(i, i + length), axis) for i, w in enumerate(weights))
    return values


def toolbox(edges: np.ndarray, m: float) -> np.ndarray:
    """The toolbox's suppression, pixel by pixel, as it is written there."""
    height, width = edges.shape
    oy, ox = np.gradient(smoothed(edges))
    oxx, oyy, oxy = np.gradient(ox, axis=1), np.gradient(oy, axis=0), np.gradient(oy, axis=1)
    result = edges.copy()

    def value(x: float, y: float) -> float:
        x, y = min(max(x, 0), width - 1.001), min(max(y, 0), height - 1.001)
        x0, y0 = int(x), int(y)
        dx, dy = x - x0, y - y0
        rows = [edges[y0 + i, x0] * (1 - dx) + edges[y0 + i, x0 + 1] * dx for i in (0, 1)]
        return rows[0] * (1 - dy) + rows[1] * dy

    for y in range(height):
        for x in range(width):
            o = math.atan(oyy[y, x] * np.sign(-oxy[y, x]) / (oxx[y, x] + 1e-5)) % math.pi
            for d in (-1, 1):
                if edges[y, x] * m < value(x + d * math.cos(o), y + d * math.sin(o)):
                    result[y, x] = 0
    for s in range(5):
        for lines in (result[s], result[-1 - s], result[:, s], result[:, -1 - s]):
            lines *= s / 5
    return result


@pytest.mark.parametrize("m", [1.0, 1.01, 1.2])
def test_suppression_equals_the_toolbox(m: float) -> None:
    generator = np.random.default_rng(0)
    edges = gaussian_filter(generator.random((30, 41)) ** 8, 1.5)
    edges /= edges.max()
    found = suppress_non_maxima(edges, m)
    np.testing.assert_allclose(found, toolbox(edges, m), atol=1e-12)
    assert 0 < np.count_nonzero(found) < 0.7 * edges.size  # some were removed, and not all


@pytest.mark.parametrize("angle", [0, 15, 30, 45, 60, 75, 91, 105, 120, 135, 150, 165])
def test_a_blurred_line_keeps_its_middle(angle: int) -> None:
    y, x = np.mgrid[-30:31, -30:31]
    across = x * math.cos(math.radians(angle)) + y * math.sin(math.radians(angle))
    kept = suppress_non_maxima(np.exp(-((across / 3) ** 2)))[6:-6, 6:-6] > 0
    distance = np.abs(across[6:-6, 6:-6])
    assert distance[kept].max() <= 1
    assert kept[distance < 0.1].all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (2, 3), (7, 7)])
def test_small_maps_are_no_trouble(shape: tuple[int, int]) -> None:
    found = suppress_non_maxima(np.ones(shape))
    assert found.shape == shape
    assert np.isfinite(found).all()
    assert thin(np.ones(shape, bool)).shape == shape
