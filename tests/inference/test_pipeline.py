"""The one loop over inputs: their order, their batches, their views, and how many are held at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import dla
from dla.errors import InputError
from dla.inference.pipeline import InputPipeline, PhotoReader, PreparedInput
from dla.options import ReadOptions

BROKEN = {3, 4, 9, 20}


def prepare(n: int) -> PreparedInput:
    if n in BROKEN:
        return PreparedInput(str(n), error=InputError("empty_file", str(n)))
    return PreparedInput(str(n), (np.full((2, 2, 3), n, np.uint8), np.full((1, 1, 3), n + 100, np.uint8)))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 4, (1, 3, 8)])
def test_each_input_has_its_result_in_order(workers: int, at_once: int, batch_size: Any) -> None:
    sizes: list[int] = []

    def compute(first_N223: Any, second_N113: Any) -> Any:
        assert first_N223.shape[1:] == (2, 2, 3)
        sizes.append(len(first_N223))
        return zip(first_N223[:, 0, 0, 0].tolist(), second_N113[:, 0, 0, 0].tolist(), strict=True)

    pipeline = InputPipeline(batch_size, workers, at_once)
    found = list(pipeline.results(range(30), prepare, compute, lambda p, row: (p.name, p.error is None, row)))
    assert found == [(str(n), n not in BROKEN, None if n in BROKEN else (n, n + 100)) for n in range(30)]
    assert sum(sizes) == 26
    if at_once == 1:
        turns = {1: [1] * 26, 4: [4] * 6 + [2], (1, 3, 8): [1, 3, 8, 1, 3, 8, 1, 1]}
        assert sizes == turns[batch_size]


@pytest.mark.parametrize(("workers", "at_once"), [(0, 1), (2, 1), (2, 2)])
def test_few_inputs_are_held_however_many_there_are(workers: int, at_once: int) -> None:
    begun = 0

    def endless() -> Iterator[int]:
        nonlocal begun
        while True:
            begun += 1
            yield 50

    pipeline = InputPipeline(4, workers, at_once)
    results = pipeline.results(endless(), prepare, lambda first, second: first, lambda p, row: p.name)
    for count in range(1, 101):
        assert next(results) == "50"
        assert begun - count <= (at_once + 1) * 4 + 4 + 2 * workers
    results.close()  # type: ignore[attr-defined]


def test_an_error_comes_after_the_results_before_it() -> None:
    def broken(n: int) -> PreparedInput:
        if n == 6:
            raise dla.ImageError("empty_file", "the seventh")
        return prepare(50)

    results = InputPipeline(4, 2).results(range(9), broken, lambda first, second: first, lambda p, row: p.name)
    assert [next(results) for _ in range(6)] == ["50"] * 6
    with pytest.raises(dla.ImageError, match="the seventh"):
        next(results)


@pytest.mark.parametrize("numbers", [(0, 2), (4, -1), ((1, 0), 2)])
def test_numbers_that_cannot_be(numbers: tuple[Any, int]) -> None:
    with pytest.raises(dla.UsageError, match="batch_size is .*: at least 1 and 0"):
        InputPipeline(*numbers)


def test_a_photo_is_read_once_for_all_its_views() -> None:
    sizes = (dla.Preprocessing((16, 16)), dla.Preprocessing((32, 24)))
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    found = PhotoReader(sizes, ReadOptions()).read("photo", photo)
    assert [view.shape for view in found.views] == [(16, 16, 3), (32, 24, 3)]
    (alone,) = PhotoReader(sizes[1:], ReadOptions()).read("photo", photo).views
    assert (found.views[1] == alone).all()
    many = PhotoReader(sizes, ReadOptions())
    assert many(("number", 5)).error.code == "not_an_image"  # type: ignore[union-attr]
    with pytest.raises(dla.UsageError, match="an image cannot be given as int"):
        many.read("number", 5)
