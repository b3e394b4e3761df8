"""Bootstrap intervals, against resampling photo by photo and exact quantiles."""

import numpy as np
import pytest
import scipy.stats

from dla.metrics.intervals import paired_bootstrap_ci, proportion_ci


def resampled(values: np.ndarray) -> np.ndarray:
    """2.5 and 97.5 % of the means of photos drawn with replacement, one by one."""
    generator = np.random.default_rng(1)
    means = values[generator.integers(0, len(values), (40_000, len(values)))].mean(1)
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize(("count", "right"), [(60, 50), (300, 255), (10, 1)])
def test_a_share_equals_resampling(count: int, right: int) -> None:
    answers = np.arange(count) < right
    found = proportion_ci(answers)
    steps = 1.01 / count  # the count that stands at a percentile may differ by one
    np.testing.assert_allclose([found.low, found.high], resampled(answers), atol=steps)
    exact = scipy.stats.binom.ppf([0.025, 0.975], count, right / count) / count
    np.testing.assert_allclose([found.low, found.high], exact, atol=steps)


def test_a_difference_equals_resampling_of_pairs() -> None:
    generator = np.random.default_rng(0)
    one = generator.random(200) < 0.8
    other = np.where(generator.random(200) < 0.9, one, ~one)
    found = paired_bootstrap_ci(one, other)
    np.testing.assert_allclose([found.low, found.high], resampled(one.astype(float) - other), atol=1.01 / 200)
    mirrored = paired_bootstrap_ci(other, one)
    np.testing.assert_allclose([-mirrored.high, -mirrored.low], [found.low, found.high], atol=1.01 / 200)


def test_what_both_get_right_does_not_widen_a_difference() -> None:
    one = np.arange(1000) < 900
    other = np.arange(1000) < 890
    paired = paired_bootstrap_ci(one, other)
    alone = proportion_ci(one)
    assert paired.low > 0
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_nine_of_ten_intervals_hold_the_truth() -> None:
    """Of many sets of photos of a classifier that is right on 70 %, about 95 % have an interval with 70 % in it."""
    generator = np.random.default_rng(0)
    found = [proportion_ci(generator.random(400) < 0.7, seed) for seed in range(400)]
    assert 0.92 < np.mean([f.low <= 0.7 <= f.high for f in found]) < 0.98


def test_the_seed_decides_and_all_right_has_no_width() -> None:
    answers = np.arange(5000) % 3 > 0
    assert proportion_ci(answers, 1) == proportion_ci(answers, 1)
    assert proportion_ci(np.ones(9, bool)).to_list() == [1, 1]
    assert paired_bootstrap_ci(answers, answers).to_list() == [0, 0]
