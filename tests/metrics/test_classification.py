"""The figures of a classifier, against scikit-learn, SciPy and counts by hand."""

import itertools

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

import dla
from dla.metrics.classification import Evaluation, compare, evaluate, sample_results

seeds = st.integers(0, 10_000)


def random_case(seed: int, count: int = 60, classes: int = 7) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Random scores, some of them equal; the last class has no photos, the first is never named."""
    generator = np.random.default_rng(seed)
    logits = np.round(generator.normal(size=(count, classes)) * 2, 1)
    logits[:, 0] -= 20
    return logits, generator.integers(0, classes - 1, count), [f"class {k}" for k in range(classes)]


def column(found: Evaluation, name: str) -> np.ndarray:
    return np.array([getattr(c, name) for c in found.classes], float)  # None becomes nan


def by_hand(logits: np.ndarray, targets: np.ndarray, k: int) -> float:
    """Sort each row's classes, the higher score first, then the earlier class."""
    orders = [sorted(range(len(row)), key=lambda c, row=row: (-row[c], c)) for row in logits]
    return sum(t in order[:k] for t, order in zip(targets, orders, strict=True)) / len(targets)


@given(seeds, st.integers(1, 6))
def test_topk_equals_scikit_learn(seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    scores, targets = generator.normal(size=(40, 7)), generator.integers(0, 7, 40)
    expected = metrics.top_k_accuracy_score(targets, scores, k=k, labels=np.arange(7))
    assert sample_results(scores, targets).right(k).mean() == pytest.approx(expected, abs=1e-12)


@given(seeds)
def test_every_figure_equals_scikit_learn(seed: int) -> None:
    logits, targets, names = random_case(seed)
    found, labels = evaluate(logits, targets, names), np.arange(len(names))
    first = np.array([max(range(len(row)), key=lambda c, row=row: (row[c], -c)) for row in logits])
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        targets, first, labels=labels, zero_division=np.nan
    )
    for name, expected in {"precision": precision, "recall": recall, "f1": f1, "support": support}.items():
        np.testing.assert_allclose(column(found, name), expected, atol=1e-12, err_msg=name)
    np.testing.assert_array_equal(found.confusion_KK, metrics.confusion_matrix(targets, first, labels=labels))
    probabilities = scipy.special.softmax(logits, axis=1)
    assert found.log_loss == pytest.approx(metrics.log_loss(targets, probabilities, labels=labels), abs=1e-9)
    assert found.top1 == pytest.approx(metrics.accuracy_score(targets, first), abs=1e-12)
    assert found.top5 == pytest.approx(by_hand(logits, targets, 5), abs=1e-12)
    assert found.balanced_accuracy == pytest.approx(recall[np.unique(targets)].mean(), abs=1e-12)
    assert found.macro_f1 == pytest.approx(f1[np.unique(targets)].mean(), abs=1e-12)
    np.testing.assert_allclose(found.sample_results.confidence_N, probabilities.max(1), atol=1e-12)
    assert found.count == len(targets)
    assert [c.class_id for c in found.classes] == names


def test_a_class_without_photos_or_calls_has_no_figure_there() -> None:
    logits = np.array([[0.0, 9.0, 1.0, 0.0], [0.0, 9.0, 1.0, 0.0], [0.0, 1.0, 9.0, 0.0]])
    found = evaluate(logits, np.array([0, 1, 1]), ["a", "b", "c", "d"])
    figures = [(c.support, c.predicted, c.precision, c.recall, c.f1) for c in found.classes]
    assert figures == [(1, 0, None, 0.0, 0.0), (2, 2, 0.5, 0.5, 0.5), (0, 1, 0.0, None, 0.0), (0, 0, None, None, None)]
    assert found.balanced_accuracy == 0.25
    assert found.macro_f1 == 0.25


def test_ties_count_for_the_earlier_class() -> None:
    scores = np.zeros((3, 4))
    found = sample_results(scores, np.array([0, 1, 3]))
    assert found.predicted_N.tolist() == [0, 0, 0]
    assert found.right(1).tolist() == [True, False, False]
    assert found.right(2).tolist() == [True, True, False]


@given(seeds)
def test_the_order_of_photos_and_a_shift_of_scores_change_nothing(seed: int) -> None:
    logits, targets, names = random_case(seed)
    order = np.random.default_rng(seed).permutation(len(targets))
    found, other = evaluate(logits, targets, names), evaluate((logits + 64)[order], targets[order], names)
    for name in ("top1", "top5", "log_loss", "balanced_accuracy", "macro_f1"):
        assert getattr(found, name) == pytest.approx(getattr(other, name), abs=1e-12)
    assert found.top1_interval == other.top1_interval
    assert found.calibration.error == pytest.approx(other.calibration.error, abs=1e-9)


def test_rows_beyond_one_chunk_count(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets, names = random_case(3)
    whole = evaluate(logits.astype(np.float32), targets, names).to_dict()
    monkeypatch.setattr("dla.metrics.classification.CHUNK", 7)
    assert evaluate(logits.astype(np.float32), targets, names).to_dict() == whole


def test_scores_far_apart_lose_nothing() -> None:
    found = sample_results(np.array([[0.0, 800.0], [0.0, -2000.0]]), np.array([0, 0]))
    assert found.loss_N.tolist() == [800.0, 0.0]
    assert found.confidence_N.tolist() == [1.0, 1.0]


def test_two_classifiers_are_compared_photo_by_photo() -> None:
    targets = np.array([0, 0, 1, 1, 1])
    one, other = (np.eye(2)[answers] for answers in ([0, 0, 1, 1, 0], [0, 1, 1, 0, 1]))
    found = compare(evaluate(one, targets, "ab"), evaluate(other, targets, "ab"))
    assert (found.only_a_correct, found.only_b_correct) == (2, 1)
    assert found.top1 == pytest.approx(0.2)
    assert found.top5 == 0
    assert found.to_dict()["top5_interval"] == [0, 0]
    with pytest.raises(dla.UsageError, match="5 and 4 photos cannot be compared"):
        compare(evaluate(one, targets, "ab"), evaluate(other[:4], targets[:4], "ab"))


def test_the_record_is_plain() -> None:
    record = evaluate(*random_case(1)).to_dict()
    plain = (int, float, str, type(None))
    flat = itertools.chain.from_iterable(v if isinstance(v, list) else [v] for v in record.values())
    assert all(isinstance(v, (*plain, dict, list)) for v in flat)
    assert set(record) == {
        "count", "top1", "top5", "top1_interval", "top5_interval", "log_loss", "balanced_accuracy", "macro_f1",
        "calibration", "classes", "confusion",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("logits", "targets", "names", "said"),
    [
        (np.zeros((0, 2)), [], "ab", "no photos"),
        (np.zeros((3, 2)), [0, 1], "ab", "do not match 2 targets"),
        (np.zeros((2, 2)), [0, 2], "ab", "from 0 to 2. Allowed: 0 to 1"),
        (np.zeros((2, 2)), [0, -1], "ab", "from -1 to 0. Allowed: 0 to 1"),
        (np.zeros((2, 2)), [0, 1], "abc", "2 columns for 3 classes"),
        (np.array([[0, 1], [np.nan, 0]]), [0, 1], "ab", "1 of 2 photos, the first at index 1"),
        (np.array([[0, np.inf], [0, 0]]), [0, 1], "ab", "scores that are not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(logits: np.ndarray, targets: list[int], names: str, said: str) -> None:
    with pytest.raises(dla.UsageError, match=said):
        evaluate(logits, np.array(targets, np.int64), names)
