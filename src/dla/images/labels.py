"""The names of ImageNet-1k's classes, in the order of its networks' outputs."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__ = ["ClassName", "imagenet_classes"]


@dataclass(frozen=True, slots=True)
class ClassName:
    """One class: its id (a WordNet synset, or a folder's name), a short unique name, all its names."""

    class_id: str
    label: str
    description: str


@cache
def imagenet_classes() -> tuple[ClassName, ...]:
    """The 1000 classes; names are WordNet's lemmas, and the two that occur twice are told apart."""
    with files("dla.images").joinpath("imagenet1k.tsv").open(encoding="utf-8") as table:
        return tuple(ClassName(**line) for line in csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))
