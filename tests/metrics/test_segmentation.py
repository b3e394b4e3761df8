"""The figures of a segmentation, against scikit-learn, torchmetrics and counts by hand."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from dla.errors import UsageError
from dla.metrics.segmentation import PixelCounts, compare_segmentations, count_pixels, evaluate_pixels
from support import oracle  # noqa: F401  # before torchmetrics, which imports torchvision too

from torchmetrics.classification import MulticlassConfusionMatrix  # isort: skip

seeds = st.integers(0, 10_000)
VOID = 255
NAMES = ("sky", "road", "tree", "car", "pole", "sign")
K = len(NAMES)

Pair = tuple[np.ndarray, np.ndarray]


def random_photos(seed: int, count: int = 5) -> list[Pair]:
    """Masks with ignored pixels, and predictions; no pixel is of class 4 or 5, and only predictions have class 3."""
    generator = np.random.default_rng(seed)
    photos = []
    for _ in range(count):
        height, width = generator.integers(1, 30, 2)
        truth = generator.integers(0, 3, (height, width)).astype(np.uint8)
        predicted = np.where(generator.random((height, width)) < 0.6, truth, generator.integers(0, 4, (height, width)))
        truth[generator.random((height, width)) < 0.2] = VOID
        truth[0, 0], predicted[0, 0] = 0, 3
        photos.append((truth, predicted))
    return photos


def counts_of(photos: list[Pair]) -> PixelCounts:
    return PixelCounts.merge(count_pixels(truth, predicted, K, VOID) for truth, predicted in photos)


def flat(photos: list[Pair]) -> Pair:
    """The counted pixels of all photos."""
    truth, predicted = (np.concatenate([pair[i].ravel() for pair in photos]).astype(int) for i in (0, 1))
    return truth[truth != VOID], predicted[truth != VOID]


@given(seeds)
@settings(max_examples=15)
def test_the_confusion_equals_two_others_to_the_count(seed: int) -> None:
    photos = random_photos(seed)
    counts = counts_of(photos)
    truth, predicted = flat(photos)
    np.testing.assert_array_equal(counts.confusion_KK, metrics.confusion_matrix(truth, predicted, labels=range(K)))
    theirs = MulticlassConfusionMatrix(K, ignore_index=VOID)
    for true, named in photos:
        theirs.update(torch.from_numpy(named.astype(int))[None], torch.from_numpy(true.astype(int))[None])
    np.testing.assert_array_equal(counts.confusion_KK, theirs.compute().numpy())
    assert counts.confusion_KK.dtype == counts.photos_N3K.dtype == np.int64
    assert counts.ignored == sum((true == VOID).sum() for true, _ in photos)


@given(seeds)
@settings(max_examples=15)
def test_the_figures_equal_scikit_learn(seed: int) -> None:
    photos = random_photos(seed)
    found = evaluate_pixels(counts_of(photos), NAMES)
    truth, predicted = flat(photos)
    present = sorted({*truth.tolist(), *predicted.tolist()})
    assert found.classes_counted == len(present)
    assert found.classes_absent == K - len(present)
    assert found.pixels == len(truth)
    options = {"labels": present, "average": None, "zero_division": 0}
    for name, theirs in [
        ("iou", metrics.jaccard_score(truth, predicted, **options)),
        ("precision", metrics.precision_score(truth, predicted, **options)),
        ("recall", metrics.recall_score(truth, predicted, **options)),
        ("dice", metrics.f1_score(truth, predicted, **options)),
    ]:
        np.testing.assert_allclose([getattr(found.classes[k], name) for k in present], theirs, rtol=1e-12)
    iou = metrics.jaccard_score(truth, predicted, **options)
    shares = np.array([(truth == k).mean() for k in present])
    assert found.miou == pytest.approx(iou.mean(), rel=1e-12)
    assert found.frequency_iou == pytest.approx((shares * iou).sum(), rel=1e-12)
    assert found.pixel_accuracy == pytest.approx(metrics.accuracy_score(truth, predicted), rel=1e-12)
    recalls = [(predicted[truth == k] == k).mean() for k in np.unique(truth)]
    assert found.mean_accuracy == pytest.approx(np.mean(recalls), rel=1e-12)
    own = [metrics.jaccard_score(*flat([pair]), average="macro") for pair in photos]
    assert found.miou_per_photo == pytest.approx(np.mean(own), rel=1e-12)


def test_a_class_in_neither_has_no_figures_and_one_only_predicted_has_zeros() -> None:
    truth, predicted = np.array([[0, 0, 1]]), np.array([[0, 3, 1]])
    found = evaluate_pixels(count_pixels(truth, predicted, K), NAMES)
    only_predicted, absent = found.classes[3], found.classes[4]
    assert (absent.iou, absent.precision, absent.recall, absent.dice) == (None,) * 4
    assert (only_predicted.iou, only_predicted.precision, only_predicted.recall, only_predicted.dice) == (0, 0, 0, 0)
    assert found.miou == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert (found.classes_counted, found.classes_absent) == (3, 3)
    assert [c.pixels for c in found.classes] == [2, 1, 0, 0, 0, 0]
    assert [c.predicted for c in found.classes] == [1, 1, 0, 1, 0, 0]
    json.dumps(found.to_dict(), allow_nan=False)


@given(seeds, seeds)
@settings(max_examples=10)
def test_what_is_predicted_for_ignored_pixels_changes_no_digit(seed: int, other: int) -> None:
    photos, generator = random_photos(seed), np.random.default_rng(other)
    changed = [(t, np.where(t == VOID, generator.integers(-5, 300, t.shape), p)) for t, p in photos]
    before, after = (evaluate_pixels(counts_of(pairs), NAMES) for pairs in (photos, changed))
    assert before.to_dict() == after.to_dict()


@given(seeds, st.integers(1, 4))
@settings(max_examples=10)
def test_how_photos_are_batched_changes_no_digit(seed: int, size: int) -> None:
    photos = random_photos(seed)
    batches = [counts_of(photos[i : i + size]) for i in range(0, len(photos), size)]
    assert (
        evaluate_pixels(PixelCounts.merge(batches), NAMES).to_dict()
        == evaluate_pixels(counts_of(photos), NAMES).to_dict()
    )


@given(seeds)
@settings(max_examples=10)
def test_renaming_classes_renames_their_figures(seed: int) -> None:
    photos, order = random_photos(seed), np.random.default_rng(seed).permutation(K)
    table = np.arange(256)
    table[:K] = order
    one = evaluate_pixels(counts_of(photos), NAMES)
    other = evaluate_pixels(counts_of([(table[t], table[p]) for t, p in photos]), [NAMES[k] for k in np.argsort(order)])
    assert {c.class_id: c for c in one.classes} == {c.class_id: c for c in other.classes}
    assert one.miou == pytest.approx(other.miou, rel=1e-12)


@given(seeds)
@settings(max_examples=10)
def test_a_mask_against_itself_is_right_everywhere(seed: int) -> None:
    found = evaluate_pixels(counts_of([(t, t) for t, _ in random_photos(seed)]), NAMES)
    assert found.miou == found.miou_per_photo == found.pixel_accuracy == found.mean_accuracy == 1
    assert found.miou_interval.to_list() == [1, 1]


def test_the_interval_equals_resampling_photo_by_photo() -> None:
    photos = [(t, np.where(np.random.default_rng(i).random(t.shape) < i / 12, 3, p))
              for i, (t, p) in enumerate(random_photos(3, 12))]  # fmt: skip
    counts = counts_of(photos)
    parts = [count_pixels(t, p, K, VOID) for t, p in photos]
    generator, mious, accuracies = np.random.default_rng(1), [], []
    for _ in range(4000):
        total = sum(parts[i].confusion_KK for i in generator.integers(0, len(parts), len(parts)))
        hits, union = np.diag(total), total.sum(0) + total.sum(1) - np.diag(total)
        mious.append((hits[union > 0] / union[union > 0]).mean())
        accuracies.append(hits.sum() / total.sum())
    found = evaluate_pixels(counts, NAMES)
    for interval, values in [(found.miou_interval, mious), (found.pixel_accuracy_interval, accuracies)]:
        low, high = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose(interval.to_list(), [low, high], atol=0.06 * (high - low))


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    photos = random_photos(0, 40)
    generator = np.random.default_rng(1)
    worse = [(t, np.where(generator.random(t.shape) < 0.05, 3, p)) for t, p in photos]
    one, other = (evaluate_pixels(counts_of(pairs), NAMES) for pairs in (photos, worse))
    found = compare_segmentations(one, other)
    assert found.miou == one.miou - other.miou > 0
    assert found.pixel_accuracy == one.pixel_accuracy - other.pixel_accuracy
    assert 0 < found.miou_interval.low < found.miou < found.miou_interval.high
    assert found.miou_interval.high - found.miou_interval.low < one.miou_interval.high - one.miou_interval.low
    assert found.better > found.worse
    mirrored = compare_segmentations(other, one)
    assert (mirrored.better, mirrored.worse) == (found.worse, found.better)
    np.testing.assert_allclose(mirrored.miou_interval.to_list(), [-found.miou_interval.high, -found.miou_interval.low])
    same = compare_segmentations(one, one)
    assert (same.miou, same.better, same.worse, same.miou_interval.to_list()) == (0, 0, 0, [0, 0])
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_photo_without_counted_pixels_changes_nothing_but_their_number() -> None:
    photos = random_photos(0)
    nothing = np.full((3, 4), VOID)
    one, other = (evaluate_pixels(counts_of(pairs), NAMES) for pairs in (photos, [*photos, (nothing, nothing * 0)]))
    assert (other.photos, other.ignored) == (one.photos + 1, one.ignored + 12)
    assert (other.miou, other.miou_per_photo) == (one.miou, one.miou_per_photo)


ONES = np.ones((2, 3), int)


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        (ONES, ONES.T, r"a mask of shape \(2, 3\) does not match a prediction of shape \(3, 2\)"),
        (ONES * 6, ONES, "the mask has the id 6. Allowed: 0 to 5"),
        (ONES, ONES - 2, "the prediction has the id -1. Allowed: 0 to 5"),
        (ONES / 2, ONES, "the mask is of float64. Allowed: integers, the ids of classes"),
    ],
)
def test_what_is_no_pair_is_refused(truth: np.ndarray, predicted: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        count_pixels(truth, predicted, K, VOID)


def test_counts_that_mean_nothing_are_refused() -> None:
    counts = count_pixels(ONES, ONES, K)
    with pytest.raises(UsageError, match="there are no photos"):
        PixelCounts.merge([])
    with pytest.raises(UsageError, match="counts of 6 and 3 classes cannot be merged"):
        PixelCounts.merge([counts, count_pixels(ONES, ONES, 3)])
    with pytest.raises(UsageError, match="the counts are of 6 classes, but 2 are named"):
        evaluate_pixels(counts, ("a", "b"))
    with pytest.raises(UsageError, match="no pixel of 1 photos is counted: all are ignored"):
        evaluate_pixels(count_pixels(ONES, ONES, K, 1), NAMES)
    one, other = (evaluate_pixels(count_pixels(truth, ONES, K), NAMES) for truth in (ONES, ONES * 2))
    with pytest.raises(UsageError, match="different photos or masks"):
        compare_segmentations(one, other)
