"""The names of the ImageNet-1k classes, in the order of a network's outputs."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

from dla.types import ClassName


@cache
def imagenet_classes() -> tuple[ClassName, ...]:
    """Return the 1000 classes. Names are WordNet's lemmas; two names that occur twice are made unique."""
    with files("dla.images").joinpath("imagenet1k.tsv").open(encoding="utf-8") as table:
        return tuple(ClassName(**line) for line in csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))
