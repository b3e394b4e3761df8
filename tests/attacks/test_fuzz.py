"""The fuzzer: a few hundred tries, and that it would find something. `make fuzz` runs as many as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest

from attacks.fuzz import Fuzzer, fuzz

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


def test_a_try_depends_only_on_its_seed_and_number(tmp_path: Path) -> None:
    found = []
    for seed, number in ((0, 5), (0, 5), (0, 6), (1, 5)):
        (tmp_path / str(len(found))).mkdir()
        fuzzer = Fuzzer(seed, tmp_path / str(len(found)))
        fuzzer.run(range(number, number + 1))
        found.append(sorted((path.name, path.read_bytes()) for path in fuzzer.place.rglob("*") if path.is_file()))
    assert found[0] == found[1]
    assert found[0] != found[2] != found[3] != found[0]
