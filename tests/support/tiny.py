"""A network that is small enough for a test, but has every part: nodes of every kind, trees of depth 1 to 3."""

from __future__ import annotations

from typing import Any

from dla.models.dla import DLA

LEVELS = (1, 1, 2, 3, 2, 1)
CHANNELS = (4, 8, 16, 16, 24, 32)


def tiny(block: str = "basic", **options: Any) -> DLA:
    return DLA(LEVELS, CHANNELS, block=block, num_classes=options.pop("num_classes", 5), **options)
