"""The pairs of a training run: their splits and classes, read by row, and saved to the run's data.json."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dla.data.dataset import Unreadable, relative_names
from dla.data.mask_classes import MaskClasses
from dla.data.masks import read_boundaries, read_mask, require_known
from dla.data.pair_check import mask_classes, without_faulty_pairs
from dla.data.pairs import Pair, PairTask, find_pairs, open_pair_splits
from dla.data.sources import DataOptions
from dla.data.split_file import DATA_SCHEMA
from dla.errors import DamagedError, UnavailableError, UsageError
from dla.images.decode import read_header
from dla.storage.files import JsonObject
from dla.types import Array, Progress

IGNORED = 255  # in the targets of a run, whatever the files have
BOUNDARY = "boundary"  # the class of boundaries


@dataclass(frozen=True, eq=False)
class PairSplit:
    """The pairs of one split. `classes` are None for boundaries."""

    pairs: Sequence[Pair]
    classes: MaskClasses | None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def photos(self) -> list[str]:
        """The paths of the photos."""
        return [pair.photo for pair in self.pairs]

    @property
    def names(self) -> list[str]:
        """The photos' names in messages and records."""
        return [pair.name for pair in self.pairs]

    @property
    def class_ids(self) -> tuple[str, ...]:
        """The classes in the order of the network's outputs."""
        return (BOUNDARY,) if self.classes is None else self.classes.class_ids

    def short_side(self) -> int | None:
        """Return the short side of all photos in pixels, or None if they differ."""
        sides = {min(read_header(pair.photo, name=pair.name).size) for pair in self.pairs}
        return sides.pop() if len(sides) == 1 else None

    def take(self, rows: Sequence[int]) -> PairSplit:
        """Return a split of the pairs in these rows."""
        return replace(self, pairs=[self.pairs[row] for row in rows])

    def mask(self, row: int) -> Array:
        """Return the class indices (H, W) of a photo's upright pixels, uint8, 255 where they are ignored.

        Raises:
            ImageError: the mask cannot be read, or has an id that is no class.
        """
        assert self.classes is not None
        pair = self.pairs[row]
        mask = read_mask(pair.targets[0], self.classes, read_header(pair.photo, name=pair.name))
        ids_HW = require_known(pair.targets[0], mask, self.classes)
        return np.where(ids_HW == self.classes.ignore_index, IGNORED, ids_HW).astype(np.uint8)

    def annotations(self, row: int) -> list[Array]:
        """Return the boundaries (H, W) of booleans that each annotator marked on a photo's upright pixels.

        Raises:
            ImageError: a map cannot be read, or is not two-valued.
        """
        pair = self.pairs[row]
        header = read_header(pair.photo, name=pair.name)
        return [read_boundaries(target, header) for target in pair.targets]


@dataclass(frozen=True, eq=False)
class RunPairs:
    """The pairs of a run. The fields are those of `dla.data.dataset.Splits`."""

    train: PairSplit
    val: PairSplit
    split_method: str
    notes: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()

    @classmethod
    def open(
        cls, data: str, task: PairTask, options: DataOptions, seed: int, workers: int, progress: Progress
    ) -> RunPairs:
        """Open the pairs of `data`, without those that have a fault.

        Raises:
            UnavailableError, UsageError: as by `open_pair_splits`; or there are more classes than 255.
            CheckError: too many have a fault.
        """
        splits = open_pair_splits(data, task, options, group=options.group, seed=seed)
        classes, notes = None, splits.notes
        if task == "segment":
            classes = mask_classes(data, find_pairs(data, task, options), workers, progress)
            notes = (*notes, classes.note) if classes.note else notes
            if len(classes.class_ids) > IGNORED:
                raise UsageError(f"{data} has {len(classes.class_ids):,} classes. Allowed: up to {IGNORED}")
        splits = without_faulty_pairs(splits, classes, options.max_unreadable, workers, progress)
        train, val = (PairSplit(source.pairs, classes) for source in (splits.train, splits.val))
        return cls(train, val, splits.split_method, (*notes, *splits.notes), splits.unreadable)

    def to_dict(self, data: str) -> dict[str, Any]:
        """Return the pairs of each split and their classes as JSON values (docs/formats.md)."""
        record: dict[str, Any] = {"schema": DATA_SCHEMA, "split_method": self.split_method}
        record["classes"] = None if self.train.classes is None else asdict(self.train.classes)
        for name, split in (("train", self.train), ("val", self.val)):
            paths = [[pair.photo, *pair.targets] for pair in split.pairs]
            record[name] = [relative_names(Path(data), names) for names in paths]
        return record | {"unreadable": [asdict(fault) for fault in self.unreadable], "notes": list(self.notes)}

    @classmethod
    def restore(cls, saved: Mapping[str, Any], data: str) -> RunPairs:
        """Restore the pairs that `to_dict` saved, from the same data, which may have been moved.

        Raises:
            UnavailableError: a photo or a mask is missing.
            UsageError: `saved` was altered.
        """
        root = JsonObject(saved, "data.json")
        try:
            root.get("schema", str, DATA_SCHEMA, lambda schema: schema == DATA_SCHEMA)
            method = root.get("split_method", str, "a text")
            notes = root.get("notes", list, "texts", lambda texts: all(isinstance(text, str) for text in texts))
            stored = root.get("classes", dict, "an object", default=None)
            classes = None if stored is None else MaskClasses(**{k: _tuples(v) for k, v in stored.items()})
            base = os.path.join(data if os.path.isdir(data) else os.path.dirname(data), "")
            train, val = (PairSplit(_pairs(root, name, base), classes) for name in ("train", "val"))
            unreadable = tuple(Unreadable(**fault) for fault in root.get("unreadable", list, "a list"))
        except (DamagedError, TypeError, ValueError) as error:
            raise UsageError(
                "data.json in the run's folder was altered and no longer lists the photos of a run. Start a new run "
                "with another --output"
            ) from error
        paths = [path for pair in (*train.pairs, *val.pairs) for path in (pair.photo, *pair.targets)]
        if gone := [path for path in paths if not os.path.isfile(path)]:
            raise UnavailableError(f"{data}: files of this run are missing ({len(gone):,}), such as {gone[0]}")
        return cls(train, val, method, tuple(notes), unreadable)


def _pairs(root: JsonObject, name: str, base: str) -> list[Pair]:
    rows = root.get(name, list, "a photo and its masks each")
    pairs = []
    for row in rows:
        photo, *targets = (os.path.join(base, path) for path in row)
        pairs.append(Pair(photo, photo, tuple(targets)))
    return pairs


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value
