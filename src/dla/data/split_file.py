"""Save the splits of a run to its data.json, and restore them, so that it resumes with the same photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dla.data.dataset import Split, Splits, Unreadable, find_sources, relative_names, val_name
from dla.data.sources import DataOptions, LabelledPhotos
from dla.errors import DamagedError, UnavailableError, UsageError
from dla.storage.files import JsonObject

DATA_SCHEMA = "dla.data/1"


def splits_to_dict(splits: Splits, data: str | Path) -> dict[str, Any]:
    """Return the photos of each split, in order, and their classes as JSON values (docs/formats.md)."""
    record: dict[str, Any] = {
        "schema": DATA_SCHEMA,
        "split_method": splits.split_method,
        "class_ids": list(splits.train.class_ids),
    }
    for name, split in (("train", splits.train), ("val", splits.val)):
        photos = relative_names(Path(data), split.names)
        record[name] = {"count": len(split), "photos": photos, "targets": split.targets_N.tolist()}
    return record | {"unreadable": [asdict(fault) for fault in splits.unreadable], "notes": list(splits.notes)}


def restore_splits(saved: Mapping[str, Any], data: str | Path, options: DataOptions = DataOptions()) -> Splits:
    """Restore the splits that `splits_to_dict` saved, from the same data, which may have been moved.

    Raises:
        UnavailableError: photos of the run are missing.
        UsageError: the class of a photo has changed, or `saved` was altered.
    """
    _check(saved)
    data = Path(data)
    sources = find_sources(data, options)
    whole, name = sources.get(""), val_name(sources)
    train_source, val_source = whole or sources.get("train"), whole or (sources[name] if name else None)
    if train_source is None or val_source is None:
        gone = "train" if train_source is None else "val"
        raise UnavailableError(f"{data} no longer has the {gone} that this run started with. Put it back")
    class_ids = tuple(saved["class_ids"])
    train, new = _restored(data, train_source, saved["train"], class_ids)
    val, new_val = _restored(data, val_source, saved["val"], class_ids)
    known = len(saved["unreadable"])
    new = new - len(val) - known if whole else new + new_val - known
    notes = [f"{data}: photos added since this run started are not used ({new:,})"] if new > 0 else []
    unreadable = tuple(Unreadable(**fault) for fault in saved["unreadable"])
    return Splits(train, val, saved["split_method"], (*saved["notes"], *notes), unreadable)


def _check(saved: Mapping[str, Any]) -> None:
    root = JsonObject(saved, "data.json")
    try:
        root.get("schema", str, DATA_SCHEMA, lambda schema: schema == DATA_SCHEMA)
        root.get("split_method", str, "a text")
        root.texts("notes")
        classes = len(root.texts("class_ids"))
        for split in (root.object("train"), root.object("val")):
            photos, targets = split.texts("photos"), split.get("targets", list, "a list")
            if len(targets) != len(photos) or not all(type(i) is int and 0 <= i < classes for i in targets):
                raise split.error(f"{split.inside}targets are not one of {classes} classes for each photo")
        for fault in root.objects("unreadable"):
            for name in Unreadable.__slots__:
                fault.get(name, str, "a text")
            Unreadable(**fault.fields)
    except (DamagedError, TypeError) as error:
        raise UsageError(
            "data.json in the run's folder was altered and no longer lists the photos of a run. Start a new run with "
            "another --output"
        ) from error


def _restored(
    data: Path, source: LabelledPhotos, saved: Mapping[str, Any], class_ids: Sequence[str]
) -> tuple[Split, int]:
    """Return a split, and how many other photos its source has."""
    names = relative_names(data, source.names)
    rows = {key: row for row, key in enumerate(zip(names, source.labels, strict=True))}
    wanted = [(name, class_ids[i]) for name, i in zip(saved["photos"], saved["targets"], strict=True)]
    lost = [key for key in wanted if key not in rows]
    if gone := sorted({name for name, _ in lost} - set(names)):
        raise UnavailableError(f"{data}: photos of this run are missing ({len(gone):,}), such as {gone[0]}")
    if lost:
        raise UsageError(
            f'{data}: {lost[0][0]} had the class "{lost[0][1]}" when this run started, and has another now '
            f"({len(lost):,} such photos). Put them back, or start a new run with another --output"
        )
    chosen = [rows[key] for key in wanted]
    photos, split_names = [source.photos[i] for i in chosen], [source.names[i] for i in chosen]
    split = Split(photos, np.array(saved["targets"], np.int64), tuple(class_ids), split_names)
    return split, len(names) - len(split)
