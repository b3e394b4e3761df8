"""Check that the header of every photo can be read, before a run starts. The full check is in check.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dla.data.dataset import Split, Splits, Unreadable
from dla.data.prefetch import run_ahead
from dla.data.sources import DataOptions
from dla.errors import CheckError, ImageError
from dla.images.decode import read_header, read_photo
from dla.options import RuntimeOptions
from dla.types import NO_PROGRESS, Progress


def check_headers(
    split: Split, workers: int = RuntimeOptions.workers, progress: Progress = NO_PROGRESS
) -> dict[int, Unreadable]:
    """Return the photos whose file is missing, empty, truncated, not a photo, or has a broken header, by row.

    Pixels are decoded only if a file does not end with its format's end marker.
    """

    def check(row: int) -> Unreadable | None:
        photo, name = split.photos[row], split.names[row]
        try:
            if not read_header(photo, name=name).ends:
                read_photo(photo, name=name)
        except ImageError as error:
            return Unreadable(name, error.code, str(error))
        return None

    progress.start("reading headers", len(split))
    faults: dict[int, Unreadable] = {}
    for row, fault in enumerate(run_ahead(check, range(len(split)), workers, 64)):
        if fault is not None:
            faults[row] = fault
        progress.advance()
    return faults


def without_unreadable(
    splits: Splits,
    max_unreadable: float = DataOptions.max_unreadable,
    workers: int = RuntimeOptions.workers,
    progress: Progress = NO_PROGRESS,
) -> Splits:
    """Return the splits without the photos that `check_headers` finds; `unreadable` lists them, `notes` mentions them.

    Raises:
        CheckError: they are more than `max_unreadable` (0 to 1) of a split, or all of it.
    """
    train, train_faults = _without(splits.train, max_unreadable, workers, progress)
    val, val_faults = _without(splits.val, max_unreadable, workers, progress)
    unreadable = (*train_faults, *val_faults)
    notes = splits.notes
    if unreadable:
        notes = (*notes, f"photos that cannot be read are left out ({len(unreadable):,}): {_some(unreadable)}")
    return replace(splits, train=train, val=val, notes=notes, unreadable=unreadable)


def _without(
    split: Split, max_unreadable: float, workers: int, progress: Progress
) -> tuple[Split, tuple[Unreadable, ...]]:
    unreadable = check_headers(split, workers, progress)
    if not unreadable:
        return split, ()
    faults, share = tuple(unreadable.values()), len(unreadable) / len(split)
    if share > max_unreadable or len(faults) == len(split):
        raise CheckError(
            f"{len(faults):,} of {len(split):,} photos cannot be read ({share:.1%}; up to {max_unreadable:.1%} are "
            f"left out): {_some(faults)}. dla data check lists them; --data.max-unreadable allows more"
        )
    return split.take(np.setdiff1d(np.arange(len(split)), list(unreadable))), faults


def _some(faults: tuple[Unreadable, ...]) -> str:
    named = ", ".join(f"{fault.name} ({fault.code})" for fault in faults[:3])
    return named + (", ..." if len(faults) > 3 else "")
