"""Accuracy, per-class metrics and confusions of a classifier, with confidence intervals.

N is the number of photos, K of classes; `targets_N` are indices of the correct classes. `logits_NK` are any scores
whose softmax gives the probabilities, such as their logarithms. Of equal scores, the class with the lower index ranks
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dla.errors import UsageError
from dla.metrics.calibration import CHUNK, Calibration, reliability
from dla.metrics.intervals import Interval, paired_bootstrap_ci, proportion_ci
from dla.types import Array


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """The metrics of one class: photos of it (`support`), photos classified as it (`predicted`), and shares (0 to 1).

    `precision` is None if `predicted` is 0, `recall` if `support` is 0, `f1` if both are 0.
    """

    class_id: str
    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, slots=True, eq=False)
class SampleResults:
    """The result of each photo: the top-1 class, the rank of the correct class (from 0), the probability of the top-1
    class (0 to 1), and the log loss (nats)."""

    predicted_N: Array
    rank_N: Array
    confidence_N: Array
    loss_N: Array

    def right(self, k: int) -> Array:
        """Return which photos have the correct class among the top `k`: booleans (N,)."""
        return self.rank_N < k


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The metrics of a classifier on a set of photos. Shares are from 0 to 1, `log_loss` is in nats.

    `top5` is 1 with fewer than six classes. `balanced_accuracy` and `macro_f1` are means over the classes with photos.
    `confusion_KK[i, j]` counts the photos of class i that were classified as j.
    """

    count: int
    top1: float
    top5: float
    top1_interval: Interval
    top5_interval: Interval
    log_loss: float
    balanced_accuracy: float
    macro_f1: float
    calibration: Calibration
    classes: tuple[ClassMetrics, ...]
    confusion_KK: Array
    sample_results: SampleResults

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as JSON values (docs/formats.md), without the results of each photo."""
        names = ("count", "top1", "top5", "top1_interval", "top5_interval", "log_loss", "balanced_accuracy", "macro_f1")
        return {name: getattr(self, name) for name in names} | {
            "top1_interval": self.top1_interval.to_list(),
            "top5_interval": self.top5_interval.to_list(),
            "calibration": self.calibration.to_dict(),
            "classes": [asdict(c) for c in self.classes],
            "confusion": self.confusion_KK.tolist(),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference in accuracy of two classifiers on the same photos: shares, first less second, paired intervals.

    `only_a_correct` and `only_b_correct` count the photos whose top-1 class is correct only for the first, or second.
    """

    top1: float
    top5: float
    top1_interval: Interval
    top5_interval: Interval
    only_a_correct: int
    only_b_correct: int

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values (docs/formats.md)."""
        intervals = {f"{k}_interval": getattr(self, f"{k}_interval").to_list() for k in ("top1", "top5")}
        return asdict(self) | intervals


def evaluate(logits_NK: Array, targets_N: Array, class_ids: Sequence[str], *, seed: int = 0) -> Evaluation:
    """Compute all metrics of a classifier. `seed` seeds the resampling for the intervals.

    Raises:
        UsageError: there are no photos, the shapes do not match, or a score is not finite.
    """
    outcome, count = sample_results(logits_NK, targets_N), len(targets_N)
    if logits_NK.shape[1] != len(class_ids):
        raise UsageError(f"the scores have {logits_NK.shape[1]} columns for {len(class_ids)} classes")
    confusion_KK = np.zeros((len(class_ids), len(class_ids)), np.int64)
    np.add.at(confusion_KK, (targets_N, outcome.predicted_N), 1)
    classes = _of_classes(confusion_KK, class_ids)
    seen = [c for c in classes if c.support]
    top1, top5 = outcome.right(1), outcome.right(5)
    return Evaluation(
        count=count,
        top1=float(top1.mean()),
        top5=float(top5.mean()),
        top1_interval=proportion_ci(top1, seed),
        top5_interval=proportion_ci(top5, seed),
        log_loss=float(outcome.loss_N.mean()),
        balanced_accuracy=float(np.mean([c.recall for c in seen])),
        macro_f1=float(np.mean([c.f1 for c in seen])),
        calibration=reliability(outcome.confidence_N, top1),
        classes=classes,
        confusion_KK=confusion_KK,
        sample_results=outcome,
    )


def compare(one: Evaluation, other: Evaluation, *, seed: int = 0) -> Comparison:
    """Compare two classifiers on the same photos in the same order; differences are `one` less `other`.

    Raises:
        UsageError: the numbers of photos differ.
    """
    if one.count != other.count:
        raise UsageError(f"evaluations of {one.count:,} and {other.count:,} photos cannot be compared photo by photo")
    (a1, b1), (a5, b5) = ((one.sample_results.right(k), other.sample_results.right(k)) for k in (1, 5))
    return Comparison(
        top1=one.top1 - other.top1,
        top5=one.top5 - other.top5,
        top1_interval=paired_bootstrap_ci(a1, b1, seed),
        top5_interval=paired_bootstrap_ci(a5, b5, seed),
        only_a_correct=int((a1 & ~b1).sum()),
        only_b_correct=int((b1 & ~a1).sum()),
    )


def sample_results(logits_NK: Array, targets_N: Array) -> SampleResults:
    """Compute the result of each photo, in double precision for `CHUNK` rows at a time.

    Raises:
        UsageError: there are no photos, the shapes do not match, or a score is not finite.
    """
    _check(logits_NK, targets_N)
    starts = range(0, len(targets_N), CHUNK)
    parts = [_outcomes(logits_NK[s : s + CHUNK].astype(np.float64), targets_N[s : s + CHUNK]) for s in starts]
    return SampleResults(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _outcomes(z_NK: Array, targets_N: Array) -> tuple[Array, Array, Array, Array]:
    highest_N, own_N = z_NK.max(1), np.take_along_axis(z_NK, targets_N[:, None], 1)[:, 0]
    log_sum_N = np.log(np.exp(z_NK - highest_N[:, None]).sum(1))  # log-sum-exp, less the highest score
    return z_NK.argmax(1), _ranks(z_NK, targets_N), np.exp(-log_sum_N), highest_N - own_N + log_sum_N


def _ranks(scores_NK: Array, targets_N: Array) -> Array:
    """Return how many classes rank before the correct one."""
    own_N1 = np.take_along_axis(scores_NK, targets_N[:, None], 1)
    higher_N = (scores_NK > own_N1).sum(1)
    earlier_N = ((scores_NK == own_N1) & (np.arange(scores_NK.shape[1]) < targets_N[:, None])).sum(1)
    return higher_N + earlier_N  # type: ignore[no-any-return]


def _check(logits_NK: Array, targets_N: Array) -> None:
    if logits_NK.ndim != 2 or logits_NK.shape[0] != len(targets_N):
        raise UsageError(f"scores of shape {logits_NK.shape} do not match {len(targets_N)} targets")
    if not len(targets_N):
        raise UsageError("there are no photos to evaluate on")
    if targets_N.min() < 0 or targets_N.max() >= logits_NK.shape[1]:
        raise UsageError(
            f"targets are from {targets_N.min()} to {targets_N.max()}. Allowed: 0 to {logits_NK.shape[1] - 1}"
        )
    broken = np.flatnonzero(~np.isfinite(logits_NK).all(1))
    if len(broken):
        which = f"{len(broken):,} of {len(targets_N):,} photos, the first at index {broken[0]}"
        raise UsageError(f"{which}, have scores that are not finite. The network's weights are not usable")


def _of_classes(confusion_KK: Array, class_ids: Sequence[str]) -> tuple[ClassMetrics, ...]:
    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    correct, support, predicted = confusion_KK.diagonal(), confusion_KK.sum(1), confusion_KK.sum(0)
    columns = zip(class_ids, *(a.tolist() for a in (correct, support, predicted)), strict=True)
    return tuple(
        ClassMetrics(class_id, n, called, share(hits, called), share(hits, n), share(2 * hits, n + called))
        for class_id, hits, n, called in columns
    )
