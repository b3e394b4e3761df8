"""ODS, OIS, AP and R50 of boundary maps, as the Berkeley segmentation benchmark defines them.

Source: Martin, Fowlkes and Malik (2004) and Arbeláez et al. (2011); the interpolation between thresholds, and R50, as
in Dollár's toolbox, which gives the benchmark's figures.

A map is thresholded and thinned, and its pixels are matched one to one with those of each annotator, within a tolerance
(`pixel_matching.py`). A predicted pixel is right if any annotator matches it; the annotators' pixels, matched and all,
are summed over annotators and photos. T is the number of thresholds, N of photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dla.errors import UsageError
from dla.metrics.edge_maps import suppress_non_maxima, thin
from dla.metrics.intervals import Interval, resampled_ci
from dla.metrics.pixel_matching import match_pixels
from dla.options import BoundaryOptions
from dla.types import Array

_STEPS = 100  # between two thresholds, when the best F is looked for


@dataclass(frozen=True, slots=True)
class PrecisionRecall:
    """Precision, recall and F (their harmonic mean) at a threshold. The three are 0 where a denominator is 0."""

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class PhotoBoundaries:
    """The best F of one photo, interpolated between thresholds; `empty_annotators` marked no pixel."""

    name: str
    best: PrecisionRecall
    annotators: int
    empty_annotators: int


@dataclass(frozen=True, slots=True, eq=False)
class BoundaryCounts:
    """The pixels of one photo at each threshold: `pixels_T4` has, as int64, the annotators' pixels that are matched,
    all of them (summed over annotators), the predicted pixels that are matched, all of them."""

    pixels_T4: Array
    annotators: int
    empty_annotators: int


@dataclass(frozen=True, slots=True)
class BoundaryEvaluation:
    """The figures of a set of boundary maps.

    `ods` is the best point with one threshold for all photos, interpolated between thresholds, and `ods_interval` the
    interval over photos of its F, which is computed at the thresholds; `ois` sums each photo at
    its own best threshold (and has none itself: NaN). `ap` is the mean precision at the recalls 0, 0.01, ..., 1, where
    those out of reach count as 0, and the sum is divided by 100, as in the benchmark. `r50` is the recall at a
    precision of one half, or at the least precision above.
    """

    ods: PrecisionRecall
    ods_interval: Interval
    ois: PrecisionRecall
    ap: float
    r50: float
    curve: tuple[PrecisionRecall, ...]
    photos: tuple[PhotoBoundaries, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        record = asdict(self) | {"ods_interval": self.ods_interval.to_list()}
        del record["ois"]["threshold"]
        return record


@dataclass(frozen=True, slots=True)
class BoundaryComparison:
    """The difference of two networks' ODS on the same photos, first less second, with its paired interval.

    `better` and `worse` count the photos whose own best F is higher, or lower, for the first.
    """

    ods: float
    ods_interval: Interval
    better: int
    worse: int

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return asdict(self) | {"ods_interval": self.ods_interval.to_list()}


def threshold_values(options: BoundaryOptions) -> Array:
    """Return the thresholds, (T,), in the last bit as MATLAB's linspace: 8-bit levels are compared with them."""
    return np.linspace(1 / (options.thresholds + 1), 1 - 1 / (options.thresholds + 1), options.thresholds)


def count_boundaries(
    map_HW: Array, annotators: Sequence[Array], options: BoundaryOptions = BoundaryOptions()
) -> BoundaryCounts:
    """Match one photo's map with its annotators at each threshold.

    Args:
        map_HW: the probability of a boundary, floats from 0 to 1 or uint8 from 0 to 255. It is scored in 8 bits.
        annotators: each annotator's boundaries, (H, W) of booleans, one pixel wide.
        options: thresholds, tolerance and suppression.

    Raises:
        UsageError: there are no annotators, sizes differ, or values are out of range.
    """
    if options.nms:
        map_HW = suppress_non_maxima(_as_shares(map_HW), options.nms_m)
    levels_HW = _as_levels(map_HW)
    _check(levels_HW, annotators)
    levels = np.arange(256) / 255
    lowest_T = np.searchsorted(levels, np.maximum(threshold_values(options), np.finfo(float).eps))
    at_least = np.bincount(levels_HW.ravel(), minlength=257)[::-1].cumsum()[::-1]
    counted: dict[int, Array] = {}  # maps with as many pixels are equal, since those of higher thresholds are subsets
    for lowest in lowest_T.tolist():
        if at_least[lowest] not in counted:
            counted[at_least[lowest]] = _match_all(thin(levels_HW >= lowest), annotators, options.tolerance)
    pixels_T4 = np.stack([counted[at_least[lowest]] for lowest in lowest_T.tolist()])
    return BoundaryCounts(pixels_T4, len(annotators), sum(not one.any() for one in annotators))


def count_lines(
    lines_HW: Array, annotators: Sequence[Array], tolerance: float = BoundaryOptions.tolerance
) -> BoundaryCounts:
    """Match lines (H, W) of booleans, such as another annotator's, with the annotators; T is 1.

    Raises:
        UsageError: there are no annotators, or sizes differ.
    """
    _check(lines_HW, annotators)
    pixels_14 = _match_all(lines_HW, annotators, tolerance)[None]
    return BoundaryCounts(pixels_14, len(annotators), sum(not one.any() for one in annotators))


def evaluate_boundaries(
    names: Sequence[str], counts: Sequence[BoundaryCounts], options: BoundaryOptions = BoundaryOptions(), seed: int = 0
) -> BoundaryEvaluation:
    """Compute the figures from the counts of each photo, made with the same `options`. `seed` is of the resampling.

    Raises:
        UsageError: there are no photos.
    """
    if not counts:
        raise UsageError("there are no photos to evaluate on")
    thresholds_T = threshold_values(options)
    photos, own_N4 = [], []
    for name, one in zip(names, counts, strict=True):
        precision_T, recall_T, f1_T = _rates(one.pixels_T4)
        own_N4.append(one.pixels_T4[f1_T.argmax()])
        best = _best(thresholds_T, precision_T, recall_T)
        photos.append(PhotoBoundaries(name, best, one.annotators, one.empty_annotators))
    precision_T, recall_T, f1_T = _rates(np.sum([one.pixels_T4 for one in counts], axis=0))
    columns = zip(*(values.tolist() for values in (thresholds_T, precision_T, recall_T, f1_T)), strict=True)
    return BoundaryEvaluation(
        ods=_best(thresholds_T, precision_T, recall_T),
        ods_interval=resampled_ci(_highest_f1, np.stack([one.pixels_T4 for one in counts]), seed),
        ois=PrecisionRecall(float("nan"), *(float(rate) for rate in _rates(np.sum(own_N4, axis=0)))),
        ap=_average_precision(precision_T, recall_T),
        r50=_recall_at_half(precision_T, recall_T),
        curve=tuple(PrecisionRecall(*point) for point in columns),
        photos=tuple(photos),
    )


def compare_boundaries(
    names: Sequence[str], one: Sequence[BoundaryCounts], other: Sequence[BoundaryCounts], options: BoundaryOptions,
    seed: int = 0,
) -> BoundaryComparison:  # fmt: skip
    """Compare two networks on the same photos in the same order; differences are `one` less `other`."""
    a, b = (evaluate_boundaries(names, counts, options, seed) for counts in (one, other))
    pairs_N2T4 = np.stack([np.stack((x.pixels_T4, y.pixels_T4)) for x, y in zip(one, other, strict=True)])
    gains = [x.best.f1 - y.best.f1 for x, y in zip(a.photos, b.photos, strict=True)]
    return BoundaryComparison(
        ods=a.ods.f1 - b.ods.f1,
        ods_interval=resampled_ci(lambda sums: _highest_f1(sums[:, 0]) - _highest_f1(sums[:, 1]), pairs_N2T4, seed),
        better=sum(gain > 0 for gain in gains),
        worse=sum(gain < 0 for gain in gains),
    )


def _highest_f1(sums_RT4: Array) -> Array:
    """Return the highest F over the thresholds, (R,), of sums over photos."""
    return _rates(sums_RT4)[2].max(-1)  # type: ignore[no-any-return]


def _match_all(predicted_HW: Array, annotators: Sequence[Array], tolerance: float) -> Array:
    """Return the four counts of `BoundaryCounts` for one threshold, (4,)."""
    most = tolerance * float(np.hypot(*predicted_HW.shape))
    right_HW = np.zeros(predicted_HW.shape, bool)
    found = 0
    for one_HW in annotators:
        found_M, predicted_M = match_pixels(one_HW, predicted_HW, most)
        right_HW.ravel()[predicted_M] = True
        found += len(found_M)
    everything = sum(int(np.count_nonzero(one_HW)) for one_HW in annotators)
    return np.array([found, everything, right_HW.sum(), predicted_HW.sum()], np.int64)


def _as_shares(map_HW: Array) -> Array:
    """Return the map as floats from 0 to 1."""
    if map_HW.dtype == np.uint8:
        return map_HW / 255
    if map_HW.dtype.kind != "f" or not (map_HW.min(initial=0) >= 0 and map_HW.max(initial=0) <= 1):
        raise UsageError(f"a boundary map of {map_HW.dtype} is not of uint8, or of floats from 0 to 1")
    return map_HW


def _as_levels(map_HW: Array) -> Array:
    """Return the map as uint8, rounded half up."""
    return map_HW if map_HW.dtype == np.uint8 else np.floor(_as_shares(map_HW) * 255 + 0.5).astype(np.uint8)


def _check(map_HW: Array, annotators: Sequence[Array]) -> None:
    if not annotators:
        raise UsageError("there is no annotator's map to compare with")
    for one_HW in annotators:
        if one_HW.shape != map_HW.shape or map_HW.ndim != 2:
            raise UsageError(f"a boundary map of shape {map_HW.shape} does not match an annotator's {one_HW.shape}")
        if one_HW.dtype != bool:
            raise UsageError(f"an annotator's map is of {one_HW.dtype}. Allowed: booleans")


def _rates(pixels_4: Array) -> tuple[Array, Array, Array]:
    """Return precision, recall and F from counts (..., 4); 0 where a denominator is 0."""
    found, everything, right, predicted = np.moveaxis(pixels_4.astype(float), -1, 0)
    precision, recall = right / np.maximum(predicted, 1), found / np.maximum(everything, 1)
    return precision, recall, _f1(precision, recall)


def _f1(precision: Array, recall: Array) -> Array:
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)  # type: ignore[no-any-return]


def _best(thresholds_T: Array, precision_T: Array, recall_T: Array) -> PrecisionRecall:
    """Return the point with the highest F on the straight lines between neighbouring thresholds."""
    points_T3 = np.stack((thresholds_T, precision_T, recall_T), axis=1)
    if len(points_T3) > 1:
        share_S11 = np.linspace(0, 1, _STEPS)[:, None, None]
        points_ST3 = points_T3[1:] * share_S11 + points_T3[:-1] * (1 - share_S11)
        points_T3 = points_ST3.swapaxes(0, 1).reshape(-1, 3)  # in the order of the thresholds: the first best one
    f1 = _f1(points_T3[:, 1], points_T3[:, 2])
    threshold, precision, recall = points_T3[f1.argmax()].tolist()
    return PrecisionRecall(threshold, precision, recall, float(f1.max()))


def _average_precision(precision_T: Array, recall_T: Array) -> float:
    recall, first = np.unique(recall_T, return_index=True)
    if len(recall) < 2:
        return 0.0
    at = np.interp(np.arange(101) / 100, recall, precision_T[first], left=0, right=0)
    return float(at.sum() / 100)


def _recall_at_half(precision_T: Array, recall_T: Array) -> float:
    precision, first = np.unique(precision_T, return_index=True)
    return float(np.interp(max(precision[0], 0.5), precision, recall_T[first]))
