"""A network that is small enough for a test, but has every part: nodes of every kind, trees of depth 1 to 3."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dla.models.dla import DLA
from dla.models.registry import TABLE, Row

LEVELS = (1, 1, 2, 3, 2, 1)
CHANNELS = (4, 8, 16, 16, 24, 32)
ROW = Row("tiny", (1, 1, 1, 1, 1, 1), (4, 8, 8, 8, 16, 16), "basic")


def tiny(block: str = "basic", **options: Any) -> DLA:
    return DLA(LEVELS, CHANNELS, block=block, num_classes=options.pop("num_classes", 5), **options)


def shallow(block: str = "basic", **options: Any) -> DLA:
    """With trees of depth 1: for tests whose time goes by the number of layers, and that ask nothing of the trees."""
    return DLA((1,) * 6, CHANNELS, block=block, num_classes=options.pop("num_classes", 5), **options)


@contextmanager
def in_the_table(row: Row = ROW) -> Iterator[str]:
    """The name of a shallow network that commands find as they find others; the table is closed to anything else."""
    rows = gc.get_referents(TABLE)[0]
    rows[row.name] = row
    try:
        yield row.name
    finally:
        del rows[row.name]
