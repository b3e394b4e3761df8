"""`dla data check` from Python: `check_data(folder)`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dla.data.check import Pool, diagnose
from dla.data.look import Look, looks
from dla.data.open import DataOptions, find_sources
from dla.records import DataReport

__all__ = ["check_data"]

Watch = Callable[[Iterator[Look], int], Iterator[Look]]


def check_data(
    data: str | Path,
    options: DataOptions = DataOptions(),
    *,
    workers: int | None = None,
    watch: Watch = lambda seen, total: seen,
) -> DataReport:
    """Decode every photo of `data` once and tell what would hurt a training run. Nothing is written.

    Args:
        workers: processes that decode; None: one a core.
        watch: is handed the looks as they come and how many there will be, and hands them on: for a bar.

    Raises:
        UnavailableError: there is no such data, or imagehash is not installed.
        UsageError: no classes can be made out.
    """
    began = time.monotonic()
    pool = Pool.of(str(data), find_sources(Path(data), options))
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    names = [name for name, _, _ in pool.about]
    seen = list(watch(looks(pool.photos, names, count if workers is None else workers), len(pool.photos)))
    return diagnose(pool, seen, time.monotonic() - began)
