"""Sets of photos with classes, and how one is divided in two.

N photos, K classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Split", "Splits", "Unreadable", "divide"]

Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Split:
    """Photos (paths or encoded bytes) and their classes: `targets_N` index `class_ids`.

    `names` are what messages and records call the photos: a path, or `val.parquet#17` for a row, counted from 0.
    `notes` are sentences about the set that the user should hear.
    """

    photos: Sequence[str | bytes]
    targets_N: Rows
    class_ids: tuple[str, ...]
    names: Sequence[str]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.photos)

    def take(self, rows: Sequence[int] | Rows) -> Split:
        """The photos of these rows, in their order."""
        rows = np.asarray(rows, np.int64)
        photos, names = [self.photos[i] for i in rows], [self.names[i] for i in rows]
        return Split(photos, self.targets_N[rows], self.class_ids, names)

    def class_counts(self) -> Rows:
        """How many photos each class has."""
        return np.bincount(self.targets_N, minlength=len(self.class_ids))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A photo that cannot be read: a code of docs/errors.md, and a message for people."""

    name: str
    code: str
    message: str


@dataclass(frozen=True, eq=False)
class Splits:
    """What a run learns from and what it is validated on, with the same classes.

    `how` says in a few words where the division comes from; `notes` are sentences that the user should hear.
    `left_out` are the photos that are in neither because they cannot be read.
    """

    train: Split
    val: Split
    how: str
    notes: tuple[str, ...] = ()
    left_out: tuple[Unreadable, ...] = ()


def divide(targets_N: Rows, keys: Sequence[str], val_share: float, seed: int) -> tuple[Rows, Rows]:
    """Rows for training and for validation, stratified: the same share of every class, rounded half up.

    A class with at least two photos has at least one on each side; a single photo is for training. Which photos are
    taken depends on `seed` and on each photo's key alone: neither on their order nor, but for the last few, on the
    other photos, so that a set that grows keeps nearly all of its division.
    """
    ranks = [hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogateescape")).digest() for key in keys]
    by_class: dict[int, list[int]] = {}
    for row, target in enumerate(targets_N.tolist()):
        by_class.setdefault(target, []).append(row)
    val = sorted(
        row
        for rows in by_class.values()
        for row in sorted(rows, key=lambda row: (ranks[row], row))[: _val_count(len(rows), val_share)]
    )
    train = np.setdiff1d(np.arange(len(targets_N), dtype=np.int64), val)
    return train, np.array(val, np.int64)


def _val_count(count: int, share: float) -> int:
    return min(max(math.floor(count * share + 0.5), 1), count - 1)
