"""A set of photos with classes, from a folder with a folder a class or a parquet file of encoded photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dla.errors import UnavailableError, UsageError
from dla.images.find import PhotoFinder

__all__ = ["Split", "open_split", "open_splits"]


@dataclass(frozen=True)
class Split:
    """Photos (paths or encoded bytes) and their classes: `targets_N` index `class_ids`."""

    photos: Sequence[str | bytes]
    targets_N: np.ndarray[Any, np.dtype[np.int64]]
    class_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.photos)


def open_splits(data: Path) -> tuple[Split, Split]:
    """The train and val splits of DATA: `train/` and `val/`, or `train.parquet` and `val.parquet`.

    Raises:
        UnavailableError: there is no such folder or split.
        UsageError: the splits disagree about the classes, which are matched by name.
    """
    train, val = (open_split(_find(data, name)) for name in ("train", "val"))
    if unknown := sorted(set(val.class_ids) - set(train.class_ids)):
        raise UsageError(f"{data}: classes of val that train does not have: {', '.join(unknown[:5])}")
    position = np.array([train.class_ids.index(c) for c in val.class_ids])
    return train, Split(val.photos, position[val.targets_N], train.class_ids)


def _find(data: Path, name: str) -> Path:
    for candidate in (data / name, data / f"{name}.parquet"):
        if candidate.exists():
            return candidate
    raise UnavailableError(f"{data} has neither a folder {name}/ nor a file {name}.parquet")


def open_split(path: Path) -> Split:
    """One split: a folder with a folder a class, or a parquet file with the columns `image` and `synset`."""
    return _open_parquet(path) if path.suffix == ".parquet" else _open_folder(path)


def _open_folder(path: Path) -> Split:
    class_ids = tuple(sorted(p.name for p in path.iterdir() if p.is_dir()))
    if not class_ids:
        raise UsageError(f"{path}: no folders, so no classes. Expected a folder a class, photos inside")
    photos: list[str] = []
    targets: list[int] = []
    for index, class_id in enumerate(class_ids):
        files = list(PhotoFinder([str(path / class_id)]))
        photos += files
        targets += [index] * len(files)
    return Split(photos, np.array(targets, np.int64), class_ids)


def _open_parquet(path: Path) -> Split:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise UnavailableError("parquet files need pyarrow: pip install 'dla[train]'") from None
    table = pq.read_table(path, columns=["image", "synset"])
    names = table["synset"].to_pylist()
    class_ids = tuple(sorted(set(names)))
    rank = {c: i for i, c in enumerate(class_ids)}
    return Split(table["image"].to_pylist(), np.array([rank[n] for n in names], np.int64), class_ids)
