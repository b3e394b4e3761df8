"""The names of ImageNet-1k's classes, in the order of its networks' outputs."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

from dla.types import ClassName

__all__ = ["imagenet_classes"]


@cache
def imagenet_classes() -> tuple[ClassName, ...]:
    """The 1000 classes; names are WordNet's lemmas, and the two that occur twice are told apart."""
    with files("dla.images").joinpath("imagenet1k.tsv").open(encoding="utf-8") as table:
        return tuple(ClassName(**line) for line in csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))
