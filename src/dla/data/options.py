"""What a user says about how photos and their classes lie. No heavy import: `dla train --help` reads it."""

from __future__ import annotations

from dataclasses import dataclass

from dla.errors import UsageError

__all__ = ["DataOptions"]


@dataclass(frozen=True)
class DataOptions:
    """How the photos lie (docs/data.md).

    Args:
        val_share: share of each class that is kept for validation where the data has no split of its own.
        image_column: of a table: file names in CSV and TSV (path), encoded photos in parquet (image).
        label_column: of a table: the classes' names (label; in parquet synset where there is one).
        split_column: of a table: train or val for each row (split, where there is one).
        max_unreadable: share of the photos that a run may leave out because they cannot be read.
    """

    val_share: float = 0.2
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    max_unreadable: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.val_share < 1:
            raise UsageError(f"val_share is {self.val_share}: it takes a share between 0 and 1, such as 0.2")
        if not 0 <= self.max_unreadable <= 1:
            raise UsageError(f"max_unreadable is {self.max_unreadable}: it takes a share from 0 to 1, such as 0.01")
