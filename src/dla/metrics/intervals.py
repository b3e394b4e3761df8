"""Percentile bootstrap intervals over photos (Efron and Tibshirani 1993, 13.3).

The counts in N photos drawn with replacement from N have a multinomial distribution, so the resampled counts are drawn
from it directly: exact, and the same work for any number of photos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dla.types import Array

CONFIDENCE = 0.95
RESAMPLES = 10_000
_DRAWN_AT_ONCE = 2**22  # numbers of photos, each 8 bytes


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval from `low` to `high`, at the level `CONFIDENCE`."""

    low: float
    high: float

    def to_list(self) -> list[float]:
        """Return [low, high], for JSON."""
        return [self.low, self.high]

    def percent(self, sign: str = "") -> str:
        """Format an interval of shares in per cent, such as "42.1 to 55.3"; with the sign "+", "+0.3 to +2.1"."""
        return f"{100 * self.low:{sign}.1f} to {100 * self.high:{sign}.1f}"


def proportion_ci(right_N: Array, seed: int = 0) -> Interval:
    """Return the interval of `right_N.mean()` (booleans). Its width is 0 if all are correct, or none."""
    count = len(right_N)
    return _percentiles(np.random.default_rng(seed).binomial(count, right_N.mean(), RESAMPLES) / count)


def paired_bootstrap_ci(right_N: Array, other_N: Array, seed: int = 0) -> Interval:
    """Return the interval of `right_N.mean() - other_N.mean()` (booleans of two classifiers on the same photos).

    Each photo is resampled with both of its results, so photos that both get right or wrong do not widen the interval.
    """
    count = len(right_N)
    only_one, only_other = (right_N & ~other_N).mean(), (other_N & ~right_N).mean()
    kinds = (only_one, only_other, max(0.0, 1 - only_one - only_other))
    drawn_R3 = np.random.default_rng(seed).multinomial(count, kinds, RESAMPLES)
    return _percentiles((drawn_R3[:, 0] - drawn_R3[:, 1]) / count)


def resampled_ci(metric: Callable[[Array], Array], photos_N: Array, seed: int = 0) -> Interval:
    """Return the interval of `metric(photos_N.sum(0))`, for a metric of sums over photos that is no mean of them.

    Args:
        metric: takes R sums, (R, ...), and returns R values; NaN for a sum without a value, which is left out.
        photos_N: what is summed, of each photo: integers, (N, ...).
        seed: seeds the drawing. The same seed draws the same photos, whatever is summed.
    """
    count, shape = len(photos_N), photos_N.shape[1:]
    numbers_NM = photos_N.reshape(count, -1).astype(np.float64)  # exact below 2**53, and a product of BLAS
    generator, shares_N = np.random.default_rng(seed), np.full(count, 1 / count)
    at_once = max(1, _DRAWN_AT_ONCE // count)
    values = []
    for start in range(0, RESAMPLES, at_once):
        drawn_RN = generator.multinomial(count, shares_N, min(at_once, RESAMPLES - start))
        values.append(metric((drawn_RN @ numbers_NM).reshape(len(drawn_RN), *shape)))
    values_R = np.concatenate(values)
    return _percentiles(values_R[~np.isnan(values_R)])


def _percentiles(values_R: Array) -> Interval:
    low, high = np.quantile(values_R, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Interval(float(low), float(high))
