"""Accuracy, against scikit-learn and a count by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from dla.metrics.classify import topk_accuracy


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_equals_scikit_learn(seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    scores, targets = generator.normal(size=(40, 7)), generator.integers(0, 7, 40)
    expected = top_k_accuracy_score(targets, scores, k=k, labels=np.arange(7))
    assert topk_accuracy(scores, targets, k) == pytest.approx(expected, abs=1e-12)


def test_ties_count_for_the_earlier_class() -> None:
    scores = np.zeros((3, 4))
    assert topk_accuracy(scores, np.array([0, 1, 3]), 1) == pytest.approx(1 / 3)
    assert topk_accuracy(scores, np.array([0, 1, 3]), 2) == pytest.approx(2 / 3)
