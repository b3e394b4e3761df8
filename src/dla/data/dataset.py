"""Datasets and their splits, from folders and tables. Classes are matched by name, never by index."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from dla.data.archived import address_of, is_archived, read_archived
from dla.data.sources import (
    REMEDY,
    SPLIT_NAMES,
    TABLES,
    VAL_NAMES,
    DataOptions,
    LabelledPhotos,
    read_folder,
    read_table,
    split_word,
)
from dla.errors import UnavailableError, UsageError, nearest
from dla.images.archives import archive_kind
from dla.images.find import is_kind, list_entries
from dla.images.located import MEMBER

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(-[0-9a-f]{16})?$")  # older files have a hash too
_HUB_FOLDER = "data"


def open_splits(data: str | Path, options: DataOptions = DataOptions(), seed: int = 0) -> Splits:
    """Return the training and validation photos of `data`; a dataset without splits is divided by `seed`.

    Raises:
        UnavailableError: there is no such folder or file, or it is damaged.
        UsageError: there are no photos for training or validation, or the classes of the splits differ.
    """
    data = Path(data)
    sources = find_sources(data, options)
    source = sources.get("train", sources.get(""))
    if source is None:
        raise UsageError(f"{data} has {' and '.join(sources)}, but no train")
    train = _split("train" if "train" in sources else str(data), source)
    if np.count_nonzero(train.class_counts()) < 2:
        raise UsageError(f"{data} has {len(train):,} photos to learn from, of fewer than two classes")
    if (name := val_name(sources)) is None:
        return _divided(data, train, options, seed)
    val = _split(name, sources[name], train.class_ids)
    if not len(val):
        raise UsageError(f"{data}: {name} holds no photos to validate on")
    notes = (*train.notes, *val.notes, *_set_aside(data, sources, name))
    return Splits(train, val, f"train and {name} as they are", notes)


def open_split(
    data: str | Path, options: DataOptions = DataOptions(), class_ids: tuple[str, ...] | None = None
) -> Split:
    """Return the photos of `data` to validate on: its validation split, or all photos of a dataset without splits.

    With the `class_ids` of a network, the targets are indices of the network's outputs.

    Raises:
        UnavailableError, UsageError: as `open_splits`.
    """
    data = Path(data)
    sources = find_sources(data, options)
    name = "" if "" in sources else val_name(sources)
    if name is None:
        raise UsageError(f"{data} has only train. Name a folder or table with photos to validate on")
    split = _split(name or str(data), sources[name], class_ids)
    if not len(split):
        raise UsageError(f"{data} holds no photos to validate on")
    return replace(split, notes=(*split.notes, *_set_aside(data, sources, name)))


def find_sources(data: Path, options: DataOptions = DataOptions()) -> dict[str, LabelledPhotos]:
    """Read the photos of `data` by the name of the split; the split of a dataset without splits is "".

    An address in a store (`s3://bucket/flowers`) may have been made a path.
    """
    if is_archived(data):
        return by_usual_names(data, read_archived(data))
    if data.suffix.lower() in TABLES and data.is_file():
        return by_usual_names(data, read_table(data, options))
    if not data.is_dir():
        kinds = "is neither a folder nor a table (.csv, .tsv, .parquet) nor an archive (.tar, .zip)"
        what = kinds if data.exists() else "does not exist"
        raise UnavailableError(f"{data} {what}")
    places = _split_places(data)
    if not _is_divided(data, places):
        _refuse_splits_in_classes(data)
        return {"": read_folder(data)}
    return {name: _read_one(paths, options) for name, paths in places.items()}


def scanned_folders(data: Path) -> list[Path]:
    """Return the folders that have one folder per class; an empty list if `data` is a table."""
    if not data.is_dir():
        return []
    places = _split_places(data)
    if not _is_divided(data, places):
        return [data]
    return [path for paths in places.values() for path in paths if path.is_dir()]


def _split_places(data: Path) -> dict[str, list[Path]]:
    """Return the folders and tables of DATA that are called like splits; a split in several files has several.

    Those are called as on the Hugging Face hub, train-00000-of-00002.parquet, and may be in DATA/data.

    Raises:
        UsageError: one split has several places, such as train/ and Training/.
        UnavailableError: a split in several files lacks some.
    """
    places: dict[str, list[Path]] = {}
    for path in sorted(data.iterdir()):
        if path.is_dir() or path.suffix.lower() in TABLES:
            word = split_word(path.name if path.is_dir() else _SHARD.sub("", path.stem))
            if word is not None:
                places.setdefault(word, []).append(path)
    for word, paths in places.items():
        parts = [_SHARD.search(path.stem) for path in paths]
        if None not in parts:
            _check_complete(data, word, [(int(part[1]), int(part[2])) for part in parts if part])
        elif len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise UsageError(f"{data} has {names}, which both mean the split {word}. Rename or remove one")
    if not places and (data / _HUB_FOLDER).is_dir():
        inner = _split_places(data / _HUB_FOLDER)
        return inner if all(path.is_file() for paths in inner.values() for path in paths) else {}
    return places


def _check_complete(data: Path, word: str, parts: list[tuple[int, int]]) -> None:
    total = parts[0][1]
    if any(count != total for _, count in parts) or len({number for number, _ in parts}) != len(parts):
        raise UsageError(f"{data} has files of several versions of the split {word}. Keep those of one")
    if missing := sorted(set(range(total)) - {number for number, _ in parts}):
        few = ", ".join(f"{number:05}" for number in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UnavailableError(
            f"{data} has {len(parts):,} of the {total:,} files of the split {word} (missing: {few}). Add the others"
        )


def _is_divided(data: Path, places: dict[str, list[Path]]) -> bool:
    """Return whether folders such as train/ and test/ are splits: they may be classes too, as in bus/ car/ train/."""
    if any(path.parent != data for paths in places.values() for path in paths):
        return True
    train = places.get("train")
    if train is not None and (train[0].is_file() or _folders_in(train[0])):
        return True
    return bool(places) and _folders_in(data) <= {path.name for paths in places.values() for path in paths}


def _refuse_splits_in_classes(data: Path) -> None:
    """Refuse daisy/train daisy/val rose/train ...: read as classes, the photos to validate on would be trained on."""
    classes = {name: _folders_in(data / name) for name in sorted(_folders_in(data))}
    words = {split_word(name) for names in classes.values() for name in names}
    if all(classes.values()) and "train" in words and None not in words:
        class_id, names = next(iter(classes.items()))
        raise UsageError(
            f"{data} has the splits inside the classes ({class_id}/{min(names)}). Move them up: "
            "train/CLASS and val/CLASS"
        )


def _folders_in(folder: Path) -> set[str]:
    return {e.name for e in list_entries(str(folder)) or () if is_kind(e.is_dir) and not e.name.startswith(".")}


def _read_one(paths: Sequence[Path], options: DataOptions) -> LabelledPhotos:
    """Read a split from its folder, its table, or its tables in this order."""
    if paths[0].is_dir():
        return read_folder(paths[0])
    whole = LabelledPhotos()
    for path in paths:
        sources = read_table(path, options)
        if len(sources) > 1:
            raise UsageError(f"{path} is named like one split, but has rows of several: {', '.join(sorted(sources))}")
        whole.extend(next(iter(sources.values())))
    return whole


class _Named(Protocol):
    @property
    def names(self) -> Sequence[str]: ...


_Source = TypeVar("_Source", bound=_Named)


def by_usual_names(path: Path, sources: Mapping[str, _Source]) -> dict[str, _Source]:
    """Return the sources by the usual words for their splits ("Training" is "train"); "" stays.

    Raises:
        UsageError: a word names no split, or two mean the same.
    """
    usual: dict[str, _Source] = {}
    for word, source in sources.items():
        split = split_word(word) if word else word
        if split is None:
            first = next(iter(source.names), path)
            raise UsageError(f'{path}: the split of {first} is "{word}". Allowed: {", ".join(SPLIT_NAMES)}')
        if split in usual:
            raise UsageError(f"{path}: one split has several spellings ({', '.join(sorted(sources))})")
        usual[split] = source
    return usual


def val_name(sources: Mapping[str, object]) -> str | None:
    """Return the name of the split to validate on, or None."""
    return next((name for name in VAL_NAMES if name in sources), None)


def _set_aside(data: Path, sources: dict[str, LabelledPhotos], name: str) -> list[str]:
    others = [other for other in VAL_NAMES if other in sources and other != name]
    return [f"{data}: {', '.join(others)} is not used, {name} is"] if others else []


def _split(where: str, source: LabelledPhotos, class_ids: tuple[str, ...] | None = None) -> Split:
    """Build a split whose targets are indices of `class_ids`, by default the source's own class ids, sorted."""
    class_ids = tuple(sorted(source.class_ids)) if class_ids is None else class_ids
    _refuse_unknown(where, source.class_ids, class_ids)
    index = {class_id: i for i, class_id in enumerate(class_ids)}
    targets_N = np.array([index[label] for label in source.labels], np.int64)
    split = Split(source.photos, targets_N, class_ids, source.names)
    return replace(split, notes=(*source.notes, *_without_photos(where, split)))


def _divided(data: Path, whole: Split, options: DataOptions, seed: int) -> Splits:
    keys = relative_names(data, whole.names)
    train, val = (whole.take(rows) for rows in divide(whole.targets_N, keys, options.val_share, seed))
    if not len(val):
        raise UsageError(f"{data}: no class has two photos, so none can be held out for validation")
    how = f"{options.val_share:.0%} of each class held out for validation, by seed {seed}"
    return Splits(train, val, how, (*whole.notes, *_without_photos("the part held out for validation", val)))


def relative_names(data: Path, names: Sequence[str]) -> list[str]:
    """Return names relative to the data's folder, so that they stay the same when it is moved, or packed as a tar."""
    address = address_of(data)
    if address is not None or (archive_kind(data.name) and data.is_file()):
        base = f"{address or data}{MEMBER if archive_kind(data.name) else '/'}"
    else:
        base = os.path.join(data if data.is_dir() else data.parent, "")
    return [name.removeprefix(base) for name in names]


def _refuse_unknown(where: str, class_ids: set[str], known: tuple[str, ...]) -> None:
    unknown = sorted(class_ids - set(known))
    if not unknown:
        return
    near = nearest(unknown[0], known)
    hint = f" Nearest: {', '.join(near)}." if near else ""
    more = f" (and {len(unknown) - 1:,} more)" if len(unknown) > 1 else ""
    flat = f" If it is a folder with photos of several classes, {REMEDY}" if len(class_ids) == 1 else ""
    raise UsageError(f'{where}: the class "{unknown[0]}"{more} is none of the {len(known):,} known ones.{hint}{flat}')


def _without_photos(where: str, split: Split) -> list[str]:
    missing = [c for c, count in zip(split.class_ids, split.class_counts(), strict=True) if count == 0]
    if not missing:
        return []
    some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    return [f"{where}: {len(missing):,} of {len(split.class_ids):,} classes have no photos ({some})"]


Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Split:
    """Photos (paths or encoded bytes) and their classes: `targets_N` are indices of `class_ids`.

    `names` are the photos' names in messages and records: a path, or `val.parquet#17` for a row, counted from 0.
    `notes` are sentences about the dataset for the user.
    """

    photos: Sequence[str | bytes]
    targets_N: Rows
    class_ids: tuple[str, ...]
    names: Sequence[str]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.photos)

    def take(self, rows: Sequence[int] | Rows) -> Split:
        """Return a split of the photos in these rows, in the order of `rows`."""
        rows = np.asarray(rows, np.int64)
        photos, names = [self.photos[i] for i in rows], [self.names[i] for i in rows]
        return Split(photos, self.targets_N[rows], self.class_ids, names)

    def class_counts(self) -> Rows:
        """Return the number of photos of each class, (K,)."""
        return np.bincount(self.targets_N, minlength=len(self.class_ids))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A photo that cannot be read: its name, a code of docs/errors.md, and a message."""

    name: str
    code: str
    message: str


@dataclass(frozen=True, eq=False)
class Splits:
    """The training and the validation split of a run, with the same classes.

    `split_method` describes in a few words how the photos were divided; `notes` are sentences for the user.
    `unreadable` are the photos left out of both splits because they cannot be read.
    """

    train: Split
    val: Split
    split_method: str
    notes: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()


def divide(targets_N: Rows, keys: Sequence[str], val_share: float, seed: int) -> tuple[Rows, Rows]:
    """Return the rows for training and for validation, stratified: the same share of every class, rounded half up.

    A class with at least two photos has at least one on each side; a single photo is for training. Photos are ranked
    by a hash of `seed` and their key, so the division does not depend on their order, and hardly changes when photos
    are added.
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
