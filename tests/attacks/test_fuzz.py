"""The fuzzer: a few hundred tries, and that it would find something. `make fuzz` runs as many as one likes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from attacks.fuzz import Fuzzer, fuzz, one_damaged

pytestmark = pytest.mark.slow

TRIES = 300


def test_nothing_but_errors_of_ours() -> None:
    fuzzer = fuzz(0, range(TRIES))
    assert fuzzer.failures == []
    assert sum(fuzzer.outcomes.values()) == TRIES
    kinds = {outcome.partition(":")[0] for outcome in fuzzer.outcomes}
    assert len(kinds) == len(fuzzer.kinds)
    for outcome in ("read", "refused"):
        assert sum(count for name, count in fuzzer.outcomes.items() if name.endswith(outcome)) > TRIES / 10


def test_an_exception_is_a_failure(tmp_path: Path) -> None:
    fuzzer = Fuzzer(0, tmp_path)

    def careless(path: Path) -> None:
        raise KeyError(path.name)

    for kind in fuzzer.kinds.values():
        kind.read = careless
    fuzzer.run(range(3))
    assert len(fuzzer.failures) == 3
    assert "KeyError" in fuzzer.failures[0]


def test_words_of_a_library_on_standard_error_are_a_failure(tmp_path: Path) -> None:
    fuzzer = Fuzzer(0, tmp_path)
    for kind in fuzzer.kinds.values():
        kind.read = lambda path: os.write(2, b"TIFFFillStrip: Read error on strip 0.\n") and None
    fuzzer.run(range(2))
    assert len(fuzzer.failures) == 2
    assert fuzzer.failures[0].endswith("on standard error: TIFFFillStrip: Read error on strip 0.\n")


def test_a_damaged_file_depends_only_on_the_seed() -> None:
    for data in (bytes(range(256)) * 4, b'{"a": [1, 2.5, "text", null], "b": true}\n' * 20):
        found = [one_damaged(data, random.Random(seed)) for seed in ("0 5", "0 5", "0 6", "1 5")]
        assert found[0] == found[1]
        assert len(set(found)) == 3
