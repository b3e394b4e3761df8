"""Photos that show the same picture: against brute force, and on photos stored again in other ways."""

import io
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dla.data.duplicates import are_alike, identical, near_groups, pairs_within
from dla.data.scan import scan_photos
from support.photos import crops, jpeg

hashes = st.lists(st.integers(0, 2**64 - 1), max_size=30)
flips = st.lists(st.tuples(st.integers(0, 29), st.sets(st.integers(0, 63), max_size=9)), max_size=20)


@given(hashes, flips, st.integers(0, 8))
def test_pairs_are_those_of_brute_force(numbers: list[int], planted: list[tuple[int, set[int]]], most: int) -> None:
    numbers = numbers + [numbers[i] ^ sum(1 << bit for bit in bits) for i, bits in planted if i < len(numbers)]
    wanted = [
        [i, j]
        for i, j in itertools.combinations(range(len(numbers)), 2)
        if (numbers[i] ^ numbers[j]).bit_count() <= most
    ]
    assert pairs_within(np.array(numbers, np.uint64), most).tolist() == wanted


def test_many_random_hashes_are_searched_through() -> None:
    generator = np.random.default_rng(0)
    numbers = generator.integers(0, 2**64, 20_000, np.uint64)
    rows = generator.choice(20_000, 50, replace=False)
    for row in rows:
        for bit in generator.choice(64, 6, replace=False):
            numbers[row] ^= np.uint64(1) << np.uint64(bit)
    doubled = np.concatenate((numbers, numbers[rows]))
    doubled[-25:] ^= np.uint64(0b111111)
    found = pairs_within(doubled, 6)
    assert {(int(row), 20_000 + i) for i, row in enumerate(rows)} <= {(i, j) for i, j in found.tolist()}
    assert (np.bitwise_count(doubled[found[:, 0]] ^ doubled[found[:, 1]]) <= 6).all()


def test_equal_hashes_pair_with_each_other() -> None:
    assert len(pairs_within(np.full(300, 7, np.uint64), 0)) == 300 * 299 // 2
    assert pairs_within(np.array([], np.uint64), 6).shape == (0, 2)


def test_identical_rows_are_grouped_and_what_has_no_digest_is_not() -> None:
    assert identical([b"x", b"", b"y", b"x", b"", b"z", b"y", b"x"]) == [[0, 3, 7], [2, 6]]


def test_difference_is_held_against_contrast() -> None:
    generator = np.random.default_rng(0)
    busy = generator.integers(0, 200, 768)
    flat = np.full(768, 90)
    small = np.array([busy, busy + 10, busy + 40, flat, flat + 1, flat + 2], np.uint8)
    pairs = np.array([[0, 1], [0, 2], [3, 4], [3, 5], [0, 3]])
    assert busy.std() * 0.25 > 10
    assert are_alike(small, pairs).tolist() == [True, False, True, False, False]


def stored(image: Image.Image, kind: str, **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file).convert("RGB")


def scaled(by: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize((round(image.width * by), round(image.height * by)), Image.Resampling.BICUBIC)


WAYS = {
    "JPEG, quality 50": lambda image: stored(image, "JPEG", quality=50),
    "WebP": lambda image: stored(image, "WEBP", quality=75),
    "half size": scaled(0.5),
    "double size": scaled(2),
    "half size, JPEG": lambda image: stored(scaled(0.5)(image), "JPEG", quality=70),
}


@pytest.mark.parametrize("way", WAYS)
def test_pictures_stored_again_are_found_and_other_pictures_are_not(way: str) -> None:
    """Forty crops of three photos, many of which overlap, and each of them stored in another way.

    The fourth photo's are of a night sky: the hash of a picture without detail is little more than its noise.
    """
    pictures = [crop for i, crop in enumerate(crops(54)) if i % 4 != 2][:40]
    photos = [jpeg(p, quality=95) for p in pictures] + [jpeg(WAYS[way](p), quality=95) for p in pictures]
    seen = list(scan_photos(photos, ["x"] * 80, 0))
    phashes_N = np.array([look.phash for look in seen], np.uint64)
    small = np.array([list(look.small) for look in seen], np.uint8)
    assert sorted(near_groups(phashes_N, small)) == [[i, i + 40] for i in range(40)]
