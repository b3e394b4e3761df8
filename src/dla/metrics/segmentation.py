"""IoU, accuracy and per-class metrics of a segmentation network, with bootstrap intervals over photos.

All metrics but `miou_per_photo` come from one confusion matrix, summed over the pixels of all photos, so they do not
depend on how photos are batched. Ignored pixels are left out of it. N is the number of photos, K of classes, R of
resamples; H and W are a photo's height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dla.errors import UsageError
from dla.metrics.intervals import Interval, resampled_ci
from dla.types import Array


@dataclass(frozen=True, slots=True, eq=False)
class PixelCounts:
    """Counts of pixels from which all metrics follow, all int64.

    `confusion_KK[i, j]` counts the pixels of class i that were predicted as j. `photos_N3K` has for each photo and
    class the pixels that are correct, the pixels of the class, and the pixels predicted as it. `ignored` pixels are in
    none of them.
    """

    confusion_KK: Array
    photos_N3K: Array
    ignored: int = 0

    @classmethod
    def of_photo(cls, confusion_KK: Array, ignored: int) -> PixelCounts:
        """Return the counts of one photo from its confusion matrix."""
        return cls(confusion_KK, _correct_true_predicted(confusion_KK)[None], ignored)

    @classmethod
    def merge(cls, parts: Iterable[PixelCounts]) -> PixelCounts:
        """Return the counts of all parts together, with the photos in the order of the parts.

        Raises:
            UsageError: there are no parts, or their numbers of classes differ.
        """
        total_KK: Array | None = None
        photos, ignored = [], 0
        for part in parts:
            if total_KK is None:
                total_KK = np.zeros_like(part.confusion_KK)
            if part.confusion_KK.shape != total_KK.shape:
                raise UsageError(f"counts of {len(total_KK)} and {len(part.confusion_KK)} classes cannot be merged")
            total_KK += part.confusion_KK
            photos.append(part.photos_N3K)
            ignored += part.ignored
        if total_KK is None:
            raise UsageError("there are no photos to evaluate on")
        return cls(total_KK, np.concatenate(photos), ignored)

    def photo_miou(self) -> Array:
        """Return the mIoU of each photo, (N,); NaN for photos without a counted pixel."""
        return _miou(self.photos_N3K)


@dataclass(frozen=True, slots=True)
class SegmentMetrics:
    """The metrics of one class: pixels of it, pixels predicted as it, and shares (0 to 1).

    The shares are None if the class is neither in the masks nor in the predictions. If it is in one of them only, they
    are all 0, also the one whose denominator is 0.
    """

    class_id: str
    pixels: int
    predicted: int
    iou: float | None
    precision: float | None
    recall: float | None
    dice: float | None


@dataclass(frozen=True, slots=True, eq=False)
class SegmentationEvaluation:
    """The metrics of a segmentation network on a set of photos. Shares are from 0 to 1.

    `miou` is the mean IoU over the `classes_counted` classes that the masks or the predictions have; `classes_absent`
    have neither. `pixel_accuracy` is the share of correct pixels, `mean_accuracy` the mean recall over the classes that
    the masks have, `frequency_iou` the mean IoU weighted with the pixels of each class. `miou_per_photo` is another
    figure: the mean over the photos of each photo's own `miou`; photos without a counted pixel are left out of it.
    """

    photos: int
    pixels: int
    ignored: int
    miou: float
    miou_interval: Interval
    classes_counted: int
    classes_absent: int
    pixel_accuracy: float
    pixel_accuracy_interval: Interval
    mean_accuracy: float
    frequency_iou: float
    miou_per_photo: float
    classes: tuple[SegmentMetrics, ...]
    counts: PixelCounts

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as JSON values, without the counts of each photo."""
        names = ("photos", "pixels", "ignored", "miou", "miou_interval", "classes_counted", "classes_absent",
                 "pixel_accuracy", "pixel_accuracy_interval", "mean_accuracy", "frequency_iou",
                 "miou_per_photo")  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        record = {k: v.to_list() if isinstance(v, Interval) else v for k, v in values.items()}
        return record | {
            "classes": [asdict(c) for c in self.classes],
            "confusion": self.counts.confusion_KK.tolist(),
        }


@dataclass(frozen=True, slots=True)
class SegmentationComparison:
    """The differences of two networks on the same photos: shares, first less second, with paired intervals.

    `better` and `worse` count the photos whose own mIoU is higher, or lower, for the first.
    """

    miou: float
    miou_interval: Interval
    pixel_accuracy: float
    pixel_accuracy_interval: Interval
    better: int
    worse: int

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        intervals = {f"{k}_interval": getattr(self, f"{k}_interval").to_list() for k in ("miou", "pixel_accuracy")}
        return asdict(self) | intervals


def count_pixels(
    truth_HW: Array, predicted_HW: Array, num_classes: int, ignore_index: int | None = None
) -> PixelCounts:
    """Count the pixels of one photo: class ids (integers) of the mask, and those predicted.

    Pixels whose mask is `ignore_index` are left out, whatever is predicted for them.

    Raises:
        UsageError: the sizes differ, or another id is not one of 0 to `num_classes` - 1.
    """
    if truth_HW.shape != predicted_HW.shape:
        raise UsageError(f"a mask of shape {truth_HW.shape} does not match a prediction of shape {predicted_HW.shape}")
    for name, ids in (("mask", truth_HW), ("prediction", predicted_HW)):
        if ids.dtype.kind not in "iu":
            raise UsageError(f"the {name} is of {ids.dtype}. Allowed: integers, the ids of classes")
    counted = np.ones(truth_HW.shape, bool) if ignore_index is None else truth_HW != ignore_index
    truth_P, predicted_P = truth_HW[counted].astype(np.int64), predicted_HW[counted].astype(np.int64)
    for name, ids in (("mask", truth_P), ("prediction", predicted_P)):
        if ids.size and not (ids.min() >= 0 and ids.max() < num_classes):
            unknown = ids.max() if ids.max() >= num_classes else ids.min()
            raise UsageError(f"the {name} has the id {unknown}. Allowed: 0 to {num_classes - 1}")
    confusion_KK = np.bincount(truth_P * num_classes + predicted_P, minlength=num_classes**2)
    confusion_KK = confusion_KK.reshape(num_classes, num_classes)
    return PixelCounts.of_photo(confusion_KK, truth_HW.size - truth_P.size)


def evaluate_pixels(counts: PixelCounts, class_ids: Sequence[str], *, seed: int = 0) -> SegmentationEvaluation:
    """Compute all metrics from the counts of a set of photos. `seed` seeds the resampling for the intervals.

    Raises:
        UsageError: no pixel was counted, or the number of classes differs.
    """
    sums_3K = _correct_true_predicted(counts.confusion_KK)
    correct_K, true_K, predicted_K = sums_3K
    pixels = int(true_K.sum())
    if len(class_ids) != len(true_K):
        raise UsageError(f"the counts are of {len(true_K)} classes, but {len(class_ids)} are named")
    if not pixels:
        raise UsageError(f"no pixel of {len(counts.photos_N3K):,} photos is counted: all are ignored")
    classes = tuple(_of_class(class_id, *sums) for class_id, sums in zip(class_ids, sums_3K.T.tolist(), strict=True))
    counted = int(np.count_nonzero(true_K + predicted_K))
    per_photo_N = counts.photo_miou()
    frequency_K = np.divide(true_K, pixels)
    return SegmentationEvaluation(
        photos=len(counts.photos_N3K),
        pixels=pixels,
        ignored=counts.ignored,
        miou=float(_miou(sums_3K)),
        miou_interval=resampled_ci(_miou, counts.photos_N3K, seed),
        classes_counted=counted,
        classes_absent=len(class_ids) - counted,
        pixel_accuracy=float(_accuracy(sums_3K)),
        pixel_accuracy_interval=resampled_ci(_accuracy, counts.photos_N3K, seed),
        mean_accuracy=float(np.mean(correct_K[true_K > 0] / true_K[true_K > 0])),
        frequency_iou=float(np.nansum(frequency_K * _iou(sums_3K))),
        miou_per_photo=float(np.nanmean(per_photo_N)),
        classes=classes,
        counts=counts,
    )


def compare_segmentations(
    one: SegmentationEvaluation, other: SegmentationEvaluation, *, seed: int = 0
) -> SegmentationComparison:
    """Compare two networks on the same photos in the same order; differences are `one` less `other`.

    Raises:
        UsageError: the masks of the photos differ, so these are not the same photos.
    """
    a_N3K, b_N3K = one.counts.photos_N3K, other.counts.photos_N3K
    if a_N3K.shape != b_N3K.shape or not np.array_equal(a_N3K[:, 1], b_N3K[:, 1]):
        raise UsageError("these are evaluations of different photos or masks, so they cannot be compared")
    pairs_N23K = np.stack((a_N3K, b_N3K), axis=1)
    gain_N = _difference(_miou, pairs_N23K)
    return SegmentationComparison(
        miou=one.miou - other.miou,
        miou_interval=resampled_ci(lambda sums: _difference(_miou, sums), pairs_N23K, seed),
        pixel_accuracy=one.pixel_accuracy - other.pixel_accuracy,
        pixel_accuracy_interval=resampled_ci(lambda sums: _difference(_accuracy, sums), pairs_N23K, seed),
        better=int((gain_N > 0).sum()),
        worse=int((gain_N < 0).sum()),
    )


def _correct_true_predicted(confusion_KK: Array) -> Array:
    """Return the counts of correct, true and predicted pixels of each class, (3, K)."""
    return np.stack((confusion_KK.diagonal(), confusion_KK.sum(1), confusion_KK.sum(0)))


def _iou(sums_3K: Array) -> Array:
    """Return the IoU of each class, (..., K), from sums (..., 3, K); NaN for a class without any pixel."""
    correct, true, predicted = np.moveaxis(sums_3K, -2, 0)
    union = true + predicted - correct
    return np.divide(correct, union, out=np.full(union.shape, np.nan), where=union > 0)  # type: ignore[no-any-return]


def _miou(sums_3K: Array) -> Array:
    """Return the mean of the IoUs that are not NaN, (...), from sums (..., 3, K); NaN if there are none."""
    iou = _iou(sums_3K)
    known = ~np.isnan(iou)
    count = known.sum(-1)
    total = np.where(known, iou, 0).sum(-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)  # type: ignore[no-any-return]


def _accuracy(sums_3K: Array) -> Array:
    """Return the share of correct pixels, (...), from sums (..., 3, K); NaN if there are no pixels."""
    correct, true = (sums_3K[..., row, :].sum(-1) for row in (0, 1))
    return np.divide(correct, true, out=np.full(np.shape(true), np.nan), where=true > 0)  # type: ignore[no-any-return]


def _difference(metric: Any, pairs_23K: Array) -> Array:
    return metric(pairs_23K[..., 0, :, :]) - metric(pairs_23K[..., 1, :, :])  # type: ignore[no-any-return]


def _of_class(class_id: str, correct: int, true: int, predicted: int) -> SegmentMetrics:
    def share(part: int, whole: int) -> float | None:
        return (part / whole if whole else 0.0) if true + predicted else None

    return SegmentMetrics(
        class_id=class_id,
        pixels=true,
        predicted=predicted,
        iou=share(correct, true + predicted - correct),
        precision=share(correct, predicted),
        recall=share(correct, true),
        dice=share(2 * correct, true + predicted),
    )
