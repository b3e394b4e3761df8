"""How many cores there are to use: the affinity, and the quota of a container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dla import options
from dla.options import cores, cpu_quota, limit_threads


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "group", "quota"),
    [
        ({"cpu.max": "150000 100000"}, "/", 1.5),
        ({"cpu.max": "max 100000"}, "/", None),
        ({"a/cpu.max": "max 100000", "a/b/cpu.max": "50000 100000"}, "/a/b", 0.5),
        ({"a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000"}, "/a/b", 2),
        ({"a/cpu.max": "200000 100000"}, "/../../other", None),
        ({"cpu.max": "nonsense"}, "/", None),
        ({}, "/", None),
    ],
)
def test_a_quota_is_the_fewest_of_its_levels(
    tmp_path: Path, files: dict[str, str], group: str, quota: float | None
) -> None:
    for name, text in files.items():
        write(tmp_path / name, text + "\n")
    own = tmp_path / "own"
    own.write_text(f"12:cpu:/old\n0::{group}\n")
    assert cpu_quota(str(tmp_path), str(own)) == quota
    assert cpu_quota(str(tmp_path / "none"), str(tmp_path / "nothing")) is None


@pytest.mark.parametrize(("quota", "expected"), [("50000", 1), ("150000", 2), ("300000", 3), ("9900000", 4)])
def test_threads_are_as_many_as_both_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    write(tmp_path / "cpu.max", f"{quota} 100000\n")
    monkeypatch.setattr(options, "CGROUPS", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cores() == expected
    limit_threads()
    assert os.environ.pop("OMP_NUM_THREADS", None) == (None if expected == 4 else str(expected))
