"""How far a figure can be believed: percentile bootstrap intervals over photos (Efron and Tibshirani 1993, 13.3).

To draw N photos of N with replacement and count those of a kind is to draw from a multinomial distribution, so the
resampled counts are drawn as such: exact, and the same work for any number of photos.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dla.types import Array

__all__ = ["CONFIDENCE", "Interval", "paired_bootstrap_ci", "proportion_ci"]


CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`, with a confidence of `CONFIDENCE`."""

    low: float
    high: float

    def to_list(self) -> list[float]:
        """[low, high], as JSON has it."""
        return [self.low, self.high]


def proportion_ci(right_N: Array, seed: int = 0) -> Interval:
    """The interval of `right_N.mean()` (booleans). Where all are right, or none, it has no width."""
    count = len(right_N)
    return _percentiles(np.random.default_rng(seed).binomial(count, right_N.mean(), RESAMPLES) / count)


def paired_bootstrap_ci(right_N: Array, other_N: Array, seed: int = 0) -> Interval:
    """The interval of `right_N.mean() - other_N.mean()`, two answers (booleans) about each of the same photos.

    Photos are drawn together with both of their answers, so that what both get right or wrong does not widen it.
    """
    count = len(right_N)
    only_one, only_other = (right_N & ~other_N).mean(), (other_N & ~right_N).mean()
    kinds = (only_one, only_other, max(0.0, 1 - only_one - only_other))
    drawn_R3 = np.random.default_rng(seed).multinomial(count, kinds, RESAMPLES)
    return _percentiles((drawn_R3[:, 0] - drawn_R3[:, 1]) / count)


def _percentiles(values_R: Array) -> Interval:
    low, high = np.quantile(values_R, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Interval(float(low), float(high))
