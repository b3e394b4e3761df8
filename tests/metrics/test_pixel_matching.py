"""One-to-one matching of boundary pixels, against SciPy's dense assignment of all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from dla.metrics import pixel_matching
from dla.metrics.edge_maps import thin
from dla.metrics.pixel_matching import match_pixels

seeds = st.integers(0, 10_000)


def random_maps(seed: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Two maps of lines or loose pixels that partly agree."""
    generator = np.random.default_rng(seed)
    one = generator.random(generator.integers(1, 28, 2)) < share
    other = np.where(generator.random(one.shape) < 0.3, np.roll(one, generator.integers(-2, 3), 1), one)
    if generator.random() < 0.5:
        one, other = thin(one), thin(other)
    return (one, other) if generator.random() < 0.5 else (other, one & (generator.random(one.shape) < 0.7))


def cheapest(one: np.ndarray, other: np.ndarray, most: float) -> tuple[int, float]:
    """The pairs and the distance of the nearest of the largest matchings."""
    a, b = np.argwhere(one), np.argwhere(other)
    distances = np.linalg.norm(a[:, None] - b[None], axis=2)
    costs = np.where(distances <= most, distances, 1e5)
    rows, columns = linear_sum_assignment(costs)
    pairs = costs[rows, columns] < 1e5
    return int(pairs.sum()), float(distances[rows, columns][pairs].sum())


def check(one: np.ndarray, other: np.ndarray, most: float) -> None:
    a, b = match_pixels(one, other, most)
    assert len(set(a.tolist())) == len(set(b.tolist())) == len(a) == len(b)
    assert one.ravel()[a].all()
    assert other.ravel()[b].all()
    (rows_a, columns_a), (rows_b, columns_b) = (np.unravel_index(flat, one.shape) for flat in (a, b))
    distances = np.hypot(rows_a - rows_b, columns_a - columns_b)
    assert distances.max(initial=0) <= most
    count, total = cheapest(one, other, most)
    assert len(a) == count
    assert distances.sum() == pytest.approx(total, abs=1e-9)


@given(seeds, st.floats(0, 0.7), st.sampled_from([0.5, 1, 1.5, 2.9, 4.34]))
@settings(max_examples=150)
def test_the_matching_is_the_nearest_of_the_largest(seed: int, share: float, most: float) -> None:
    check(*random_maps(seed, share), most)


@given(seeds)
@settings(max_examples=20)
def test_so_it_is_in_small_parts(seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixel_matching, "_LOOKED_UP_AT_ONCE", 64)
        patch.setattr(pixel_matching, "_LARGE", 10)
        check(*random_maps(seed, 0.3), 2.9)


@given(seeds)
@settings(max_examples=20)
def test_either_side_may_come_first(seed: int) -> None:
    one, other = random_maps(seed, 0.3)
    assert len(match_pixels(one, other, 2.9)[0]) == len(match_pixels(other, one, 2.9)[0])


def test_the_largest_matching_goes_before_the_nearest() -> None:
    """In a row of pixels a.b.a.b the near pair in the middle would leave two alone."""
    one, other = np.zeros((2, 1, 7), bool)
    one[0, [0, 3]] = True
    other[0, [2, 6]] = True
    a, b = match_pixels(one, other, 3)
    assert sorted(zip(a.tolist(), b.tolist(), strict=True)) == [(0, 2), (3, 6)]


def test_an_empty_map_matches_nothing() -> None:
    nothing, something = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    for one, other in [(nothing, something), (something, nothing), (nothing, nothing)]:
        a, b = match_pixels(one, other, 2)
        assert len(a) == len(b) == 0
