"""Dividing a set: a stratified share, by seed and name alone."""

import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dla.data.dataset import divide

sets = st.lists(st.tuples(st.integers(0, 5), st.text(max_size=6)), min_size=1, max_size=60, unique_by=lambda x: x[1])
shares = st.sampled_from([0.01, 0.1, 0.2, 0.25, 0.5, 0.9])
seeds = st.integers(0, 2**63)


def apart(photos: list[tuple[int, str]], share: float, seed: int) -> tuple[set[str], set[str]]:
    rows = divide(np.array([c for c, _ in photos], np.int64), [k for _, k in photos], share, seed)
    assert all((np.diff(side) > 0).all() for side in rows)
    train, val = ({photos[i][1] for i in side} for side in rows)
    return train, val


@pytest.mark.slow
@given(sets, shares, seeds)
def test_against_the_rule_written_out(photos: list[tuple[int, str]], share: float, seed: int) -> None:
    train, val = apart(photos, share, seed)
    assert not train & val
    assert train | val == {key for _, key in photos}
    for label in {c for c, _ in photos}:
        keys = [k for c, k in photos if c == label]
        count = len(keys)
        exact = count * Fraction(share).limit_denominator(1000)
        wanted = next(n for n in range(count + 1) if n - Fraction(1, 2) <= exact < n + Fraction(1, 2))
        wanted = 0 if count == 1 else min(max(wanted, 1), count - 1)
        by_digest = sorted(
            keys, key=lambda k: hashlib.sha256(f"{seed}\0{k}".encode("utf-8", "surrogateescape")).digest()
        )
        assert val & set(keys) == set(by_digest[:wanted])


@given(sets, shares, seeds, st.randoms())
def test_order_does_not_matter(photos: list[tuple[int, str]], share: float, seed: int, random: object) -> None:
    shuffled = photos.copy()
    random.shuffle(shuffled)
    assert apart(photos, share, seed) == apart(shuffled, share, seed)


@given(sets, shares, seeds)
def test_a_set_that_grows_keeps_its_division(photos: list[tuple[int, str]], share: float, seed: int) -> None:
    """One more photo of a class moves at most one other photo of that class, and none of the others."""
    _, before = apart(photos, share, seed)
    _, after = apart([*photos, (0, "a photo more")], share, seed)
    moved = (before ^ after) - {"a photo more"}
    assert len(moved) <= 1
    assert moved <= {key for label, key in photos if label == 0}


def test_seeds_differ_and_names_need_not_be_text() -> None:
    photos = [(i % 3, f"{i}\udcff") for i in range(300)]
    divisions = [apart(photos, 0.2, seed)[1] for seed in (0, 1, 0)]
    assert divisions[0] == divisions[2] != divisions[1]
    assert 5 < len(divisions[0] & divisions[1]) < 25  # 12 by chance
