"""ODS, OIS, AP and R50, against counts pixel by pixel on small maps; what must hold whatever the map."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from skimage import morphology

from dla.errors import UsageError
from dla.metrics.boundaries import (
    BoundaryCounts,
    count_boundaries,
    count_lines,
    evaluate_boundaries,
)
from dla.options import BoundaryOptions

seeds = st.integers(0, 10_000)
PLAIN = BoundaryOptions(thresholds=7, tolerance=0.08, nms=False)
BSDS = (321, 481)  # of a photo; the tolerance is 4.34 pixels


def random_photo(seed: int, height: int = 20, width: int = 24) -> tuple[np.ndarray, list[np.ndarray]]:
    """A soft map in 8 bits and three annotators whose lines partly agree with it."""
    generator = np.random.default_rng(seed)
    lines = morphology.thin(generator.random((height, width)) < 0.25)
    annotators = [np.roll(lines & (generator.random(lines.shape) < 0.8), i, axis=1) for i in range(3)]
    levels = generator.integers(0, 256, lines.shape) * np.where(lines, 1, 0.4)
    return levels.astype(np.uint8), annotators


def by_hand(levels: np.ndarray, annotators: list[np.ndarray], threshold: float, tolerance: float) -> list[int]:
    """The four counts of one threshold: thinned by scikit-image, matched by the assignment of all pairs."""
    lines = morphology.thin(levels / 255 >= threshold)
    predicted, right, found = np.argwhere(lines), np.zeros(lines.shape, bool), 0
    most = tolerance * math.hypot(*lines.shape)
    for one in annotators:
        distances = np.linalg.norm(np.argwhere(one)[:, None] - predicted[None], axis=2)
        costs = np.where(distances <= most, distances, 1e5)
        rows, columns = linear_sum_assignment(costs)
        columns = columns[costs[rows, columns] < 1e5]
        right[tuple(predicted[columns].T)] = True
        found += len(columns)
    return [found, sum(one.sum() for one in annotators), right.sum(), len(predicted)]


@given(seeds)
@settings(max_examples=10)
def test_counts_equal_those_by_hand(seed: int) -> None:
    levels, annotators = random_photo(seed)
    found = count_boundaries(levels, annotators, PLAIN).pixels_T4
    for counts, threshold in zip(found, np.arange(1, 8) / 8, strict=True):
        expected = by_hand(levels, annotators, threshold, PLAIN.tolerance)
        # of equally near matchings each may take another, so the union over annotators may differ by a few
        assert (counts[[0, 1, 3]] == np.array(expected)[[0, 1, 3]]).all()
        assert abs(counts[2] - expected[2]) <= 0.02 * expected[3]
        single = count_boundaries(levels, annotators[:1], PLAIN).pixels_T4
        assert (single[:, 0] == single[:, 2]).all()


def f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0


def test_the_figures_follow_from_the_counts() -> None:
    counts = [
        BoundaryCounts(np.array([[90, 100, 100, 200], [70, 100, 70, 90], [20, 100, 18, 20]]), 2, 0),
        BoundaryCounts(np.array([[160, 200, 80, 100], [90, 200, 50, 52], [0, 200, 0, 0]]), 3, 1),
    ]
    found = evaluate_boundaries(["a", "b"], counts, BoundaryOptions(thresholds=3))
    points = [(180 / 300, 250 / 300), (120 / 142, 160 / 300), (18 / 20, 20 / 300)]  # precision, recall
    np.testing.assert_allclose([(at.precision, at.recall) for at in found.curve], points)
    assert [at.threshold for at in found.curve] == [0.25, 0.5, 0.75]
    dense = [
        (p + s * (q - p), r + s * (t - r), 0.25 * (i + 1 + s))
        for i, ((p, r), (q, t)) in enumerate(itertools.pairwise(points))
        for s in np.linspace(0, 1, 100)
    ]
    best = max(dense, key=lambda point: f1(point[0], point[1]))
    assert found.ods.f1 == pytest.approx(f1(*best[:2]))
    assert (found.ods.precision, found.ods.recall, found.ods.threshold) == pytest.approx(best)
    assert found.ods.f1 > max(at.f1 for at in found.curve)
    own = (70 + 80) / (90 + 100), (70 + 160) / (100 + 200)  # the second threshold for a, the first for b
    assert (found.ois.precision, found.ois.recall, found.ois.f1) == pytest.approx((*own, f1(*own)))
    (p3, r3), (p2, r2), (p1, r1) = reversed(points)
    at = [r / 100 for r in range(101)]
    sums = [p3 + (r - r3) / (r2 - r3) * (p2 - p3) if r < r2 else p2 + (r - r2) / (r1 - r2) * (p1 - p2)
            for r in at if r3 <= r <= r1]  # fmt: skip
    assert found.ap == pytest.approx(sum(sums) / 100)
    assert found.r50 == pytest.approx(r1)  # no precision is as low as 0.5
    assert [(one.name, one.annotators, one.empty_annotators) for one in found.photos] == [("a", 2, 0), ("b", 3, 1)]
    json.dumps(found.to_dict(), allow_nan=False)


def test_r50_lies_between_thresholds() -> None:
    counts = BoundaryCounts(np.array([[80, 100, 40, 100], [60, 100, 60, 100]]), 1, 0)
    found = evaluate_boundaries(["a"], [counts], BoundaryOptions(thresholds=2))
    assert found.r50 == pytest.approx(0.7)


def square(size: int) -> np.ndarray:
    lines = np.zeros(BSDS, bool)
    lines[60 : 60 + size, [100, 100 + size]] = lines[[60, 60 + size], 100 : 100 + size] = True
    return morphology.thin(lines)  # which takes the corners


def test_an_annotator_against_itself_is_right_everywhere() -> None:
    lines = square(150)
    for found in [
        evaluate_boundaries(["a"], [count_boundaries(lines * 1.0, [lines], BoundaryOptions(nms=False))]),
        evaluate_boundaries(["a"], [count_lines(lines, [lines, lines])], BoundaryOptions(thresholds=1)),
    ]:
        assert (found.ods.f1, found.ods.precision, found.ods.recall, found.ois.f1) == (1, 1, 1, 1)


@pytest.mark.parametrize(("shift", "share"), [(0, 1), (3, 1), (4, 1), (5, 0), (6, 0)])
def test_a_line_moved_across_itself_is_found_within_the_tolerance(shift: int, share: float) -> None:
    line = np.zeros(BSDS, bool)
    line[100:220, 200] = True
    pixels = count_lines(np.roll(line, shift, axis=1), [line]).pixels_T4[0]
    assert pixels.tolist() == [share * 120, 120, share * 120, 120]


@given(seeds, st.permutations(range(3)))
@settings(max_examples=10)
def test_the_order_of_annotators_changes_no_digit(seed: int, order: list[int]) -> None:
    levels, annotators = random_photo(seed)
    one, other = (count_boundaries(levels, a, PLAIN) for a in (annotators, [annotators[i] for i in order]))
    np.testing.assert_array_equal(one.pixels_T4, other.pixels_T4)


@given(seeds)
@settings(max_examples=10)
def test_more_annotators_never_make_a_pixel_wrong(seed: int) -> None:
    levels, annotators = random_photo(seed)
    one, other = (count_boundaries(levels, annotators[:n], PLAIN).pixels_T4 for n in (1, 3))
    assert (one[:, 2] <= other[:, 2]).all()
    assert (other[:, [0, 2]] <= other[:, [1, 3]]).all()


def test_floats_are_scored_in_8_bits_and_suppressed_before() -> None:
    levels, annotators = random_photo(0)
    shares = (levels + np.random.default_rng(0).uniform(-0.49, 0.49, levels.shape)).clip(0, 255) / 255
    one, other = (count_boundaries(values, annotators, PLAIN) for values in (levels, shares))
    np.testing.assert_array_equal(one.pixels_T4, other.pixels_T4)
    blurred = np.exp(-((np.arange(-240, 241) / 6.0) ** 2)) * np.ones((321, 1))
    line = np.zeros(BSDS, bool)
    line[:, 240] = True
    counts = count_boundaries(blurred, [line], BoundaryOptions(thresholds=1)).pixels_T4[0]
    inside = 321 - 2 * 3  # the border fades: half of the first five rows' values are below one half
    assert counts.tolist() == [inside, 321, inside, inside]


def test_an_empty_map_and_an_empty_annotator_count() -> None:
    lines, nothing = square(100), np.zeros(BSDS, bool)
    options = BoundaryOptions(thresholds=3, nms=False)
    found = evaluate_boundaries(["a"], [count_boundaries(nothing * 1.0, [lines], options)], options)
    assert (found.ods.f1, found.ap, found.r50) == (0, 0, 0)
    counts = count_boundaries(lines * 1.0, [lines, nothing], options)
    assert (counts.annotators, counts.empty_annotators) == (2, 1)
    assert evaluate_boundaries(["a"], [counts], options).ods.f1 == 1
    alone = evaluate_boundaries(["a"], [count_boundaries(lines * 1.0, [nothing], options)], options)
    assert (alone.ods.recall, alone.ods.precision) == (0, 0)


def test_the_last_bit_of_a_threshold_counts() -> None:
    """Level 85 of 255 is a third, and MATLAB's linspace(1/6, 5/6, 5) has a second value just above it."""
    pixels = count_boundaries(
        np.where(square(50), 85, 0).astype(np.uint8), [square(50)], BoundaryOptions(thresholds=5, nms=False)
    ).pixels_T4
    assert pixels[:2, 3].tolist() == [square(50).sum(), 0]


@pytest.mark.parametrize(
    ("values", "annotators", "message"),
    [
        (np.ones((3, 4)), [], "there is no annotator's map"),
        (np.ones((3, 4)), [np.ones((4, 3), bool)], r"of shape \(3, 4\) does not match an annotator's \(4, 3\)"),
        (np.ones((3, 4)), [np.ones((3, 4))], "an annotator's map is of float64. Allowed: booleans"),
        (np.ones((3, 4)) * 2, [np.ones((3, 4), bool)], "a boundary map of float64 is not of uint8, or of floats"),
        (np.full((3, 4), np.nan), [np.ones((3, 4), bool)], "a boundary map of float64 is not of uint8, or of floats"),
    ],
)
def test_what_is_no_map_is_refused(values: np.ndarray, annotators: list[np.ndarray], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        count_boundaries(values, annotators, BoundaryOptions(nms=False))


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="thresholds is 0"):
        BoundaryOptions(thresholds=0)
    with pytest.raises(UsageError, match="tolerance is 0"):
        BoundaryOptions(tolerance=0)
    with pytest.raises(UsageError, match="there are no photos"):
        evaluate_boundaries([], [])
