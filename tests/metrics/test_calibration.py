"""Calibration and temperature, against torchmetrics, SciPy and bins by hand."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st

import dla
from dla.metrics.calibration import apply_temperature, fit_temperature, reliability
from support import oracle  # noqa: F401  # before torchmetrics, which imports torchvision too

from torchmetrics.classification import MulticlassCalibrationError  # isort: skip

seeds = st.integers(0, 10_000)


def learned(seed: int, heat: float, count: int = 300, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are `heat` times too sure of themselves, and classes drawn from what they should say."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(count, classes)) * 2
    honest = scipy.special.softmax(logits, axis=1)
    targets = np.array([generator.choice(classes, p=p) for p in honest])
    return logits * heat, targets


@given(seeds)
def test_the_error_equals_torchmetrics(seed: int) -> None:
    logits, targets = learned(seed, 3.0)
    p = scipy.special.softmax(logits, axis=1)
    theirs = MulticlassCalibrationError(5, n_bins=15, norm="l1")
    expected = float(theirs(torch.from_numpy(p), torch.from_numpy(targets)))
    assert reliability(p.max(1), p.argmax(1) == targets).error == pytest.approx(expected, abs=1e-6)  # theirs is float32


@given(seeds, st.integers(1, 20))
def test_bins_equal_a_count_by_hand(seed: int, bins: int) -> None:
    generator = np.random.default_rng(seed)
    confidence = np.round(generator.random(50), 1)  # many on an edge
    right = generator.random(50) < confidence
    found = reliability(confidence, right, bins)
    error, edges = 0.0, np.linspace(0, 1, bins + 1)
    for b, got in enumerate(found.bins):
        inside = (confidence > edges[b]) & (confidence <= edges[b + 1]) | (b == 0) & (confidence == 0)
        assert got.count == inside.sum()
        if got.count:
            assert got.confidence == pytest.approx(confidence[inside].mean(), abs=1e-12)
            assert got.accuracy == pytest.approx(right[inside].mean(), abs=1e-12)
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        else:
            assert got.confidence is None
            assert got.accuracy is None
    assert found.error == pytest.approx(error, abs=1e-9)
    assert sum(b.count for b in found.bins) == 50


@given(seeds, st.sampled_from([0.3, 1.0, 4.0]))
def test_the_temperature_equals_scipys(seed: int, heat: float) -> None:
    logits, targets = learned(seed, heat)

    def loss(log_t: float) -> float:
        log_p = scipy.special.log_softmax(logits / np.exp(log_t), axis=1)
        return float(-log_p[np.arange(len(targets)), targets].mean())

    best = scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    found = fit_temperature(logits, targets)
    assert found == pytest.approx(np.exp(best.x), rel=1e-6)
    assert loss(np.log(found)) <= best.fun + 1e-12


def test_it_finds_how_much_too_sure_the_scores_are() -> None:
    logits, targets = learned(0, 2.5, count=20_000)
    temperature = fit_temperature(logits.astype(np.float32), targets)
    assert temperature == pytest.approx(2.5, rel=0.05)
    before, after = (scipy.special.softmax(logits / t, axis=1) for t in (1, temperature))
    errors = [reliability(p.max(1), p.argmax(1) == targets).error for p in (before, after)]
    assert errors[0] > 0.1
    assert errors[1] < 0.02


def test_logarithms_of_probabilities_do_as_well() -> None:
    logits, targets = learned(1, 2.0)
    shifted = scipy.special.log_softmax(logits, axis=1)
    assert fit_temperature(shifted, targets) == pytest.approx(fit_temperature(logits, targets), rel=1e-9)


@given(seeds, st.sampled_from([0.05, 0.4, 1.0, 1.7, 20.0]))
def test_tempered_probabilities_are_those_of_divided_logits(seed: int, temperature: float) -> None:
    logits = np.random.default_rng(seed).normal(size=(8, 6)).astype(np.float32) * 4
    p = scipy.special.softmax(logits, axis=1)
    found = apply_temperature(p, temperature)
    np.testing.assert_allclose(found, scipy.special.softmax(logits.astype(float) / temperature, axis=1), atol=2e-6)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.argmax(1), p.argmax(1))
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_a_temperature_of_one_changes_no_bit() -> None:
    p = np.array([[0.1, 0.7, 0.2]], np.float32)
    assert apply_temperature(p, 1.0) is p


@pytest.mark.parametrize("targets", [[0, 1, 0, 1], [1, 0, 1, 0]], ids=["all right", "all wrong"])
def test_where_nothing_can_be_fitted_it_says_so(targets: list[int]) -> None:
    with pytest.raises(dla.UsageError, match=r"no temperature from 0\.05 to 20 fits these 4 photos"):
        fit_temperature(np.array([[5.0, 0], [0, 5], [5, 0], [0, 5]]), np.array(targets))
