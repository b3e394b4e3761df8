"""Boundaries lie where the photo has them; the network here answers with the brightness of each pixel."""

from __future__ import annotations

import numpy as np
import pytest

import dla
from dla.metrics.edge_maps import suppress_non_maxima, thin
from support.pixel_models import edge_detector


def line(width: int = 60, height: int = 40, place: int = 31) -> np.ndarray:
    """A soft vertical line, brightest at `place`."""
    profile = np.exp(-0.5 * ((np.arange(width) - place) / 1.5) ** 2)
    return np.repeat((255 * profile).astype(np.uint8)[None, :, None].repeat(height, 0), 3, 2)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (33, 31), (200, 333)])
def test_the_maps_have_the_size_of_the_photo(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    native, scaled = edge_detector()(pixels), edge_detector(short_side=24)(pixels)
    for record in (native, scaled):
        assert record.probability is not None
        assert record.probability.dtype == record.thin.dtype == np.uint8
        assert record.probability.shape == record.thin.shape == record.lines.shape == size
    wanted = 255 / (1 + np.exp(5 - pixels.mean(2) / 25.5))
    assert np.abs(native.probability - wanted).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("size", ["native", 80, 25])
def test_a_line_is_found_where_it_is(size: int | str) -> None:
    record = edge_detector()(line(), size=size)
    assert record.probability is not None
    assert (record.probability[5:-5].argmax(1) == 31).all()
    assert (record.lines.sum(1)[8:-8] == 1).all()
    assert record.lines[8:-8, 31].all()


def test_thin_and_lines_are_those_of_the_metrics() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    record = edge_detector()(pixels, threshold=0.6)
    assert record.probability is not None
    wanted = suppress_non_maxima(record.probability / 255)
    assert np.abs(record.thin / 255 - wanted).max() <= 0.5 / 255 + 1e-9
    assert (record.lines == thin(record.thin >= 0.6 * 255)).all()
    assert record.to_dict() == {"schema": "dla.edges/1", "path": "input 0", "width": 50, "height": 40,
                                "threshold": 0.6, "share": record.lines.mean()}  # fmt: skip


def test_the_threshold_is_the_models_own() -> None:
    assert edge_detector()(line()).threshold == 0.5
    assert edge_detector(threshold=0.31)(line()).threshold == 0.31
    assert edge_detector(results={"ods": 0.7, "threshold": 0.27})(line()).threshold == 0.27
    assert edge_detector(threshold=0.31)(line(), threshold=0.9).threshold == 0.9


@pytest.mark.parametrize("threshold", [0, -1, 1.01, float("nan")])
def test_a_threshold_that_is_no_probability(threshold: float) -> None:
    with pytest.raises(dla.UsageError, match=r"threshold is .*\. Allowed: above 0, to 1"):
        edge_detector()(line(), threshold=threshold)


def test_an_unreadable_photo_has_an_error() -> None:
    first, second = edge_detector()(["gone.jpg", line()])
    error = {"code": "not_found", "message": "gone.jpg: there is no such file"}
    assert first.to_dict() == {"schema": "dla.edges/1", "path": "gone.jpg", "error": error}
    assert second.error is None
