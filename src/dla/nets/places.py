"""Where in a network features can be taken, and what those places are called. No torch."""

from __future__ import annotations

from collections.abc import Collection

from dla.errors import UnknownNameError

__all__ = ["POOLED", "check_place"]

POOLED = "pooled"


def check_place(at: str, known: Collection[str]) -> None:
    """Raise an UnknownNameError for a place that is not among the known ones."""
    if at not in known:
        largest = ", ".join(name for name in known if "." not in name)
        raise UnknownNameError("node of this network", at, known, f"{largest}, and what dla info MODEL --nodes lists")
