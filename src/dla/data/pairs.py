"""pilot: pairs"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dla.types import Array


@dataclass(frozen=True, eq=False)
class PairSplit:
    photos: Sequence[str]
    masks: Sequence[tuple[str, ...]]
    class_ids: tuple[str, ...]
    names: Sequence[str]
    colors: tuple[tuple[int, int, int], ...] | None = None
    ignore_index: int = 255

    def __len__(self) -> int:
        return len(self.photos)

    def take(self, rows):
        rows = list(rows)
        return PairSplit(
            [self.photos[i] for i in rows],
            [self.masks[i] for i in rows],
            self.class_ids,
            [self.names[i] for i in rows],
            self.colors,
            self.ignore_index,
        )

    def mask(self, row: int) -> Array:
        ids = np.array(Image.open(self.masks[row][0]))
        return np.where(ids == self.ignore_index, 255, ids).astype(np.uint8)

    def annotations(self, row: int) -> list[Array]:
        return [np.array(Image.open(path).convert("L")) > 0 for path in self.masks[row]]


def open_pairs(data: Path, task: str) -> tuple[PairSplit, PairSplit]:
    splits = []
    classes = json.loads((data / "classes.json").read_text()) if task == "segment" else {"classes": ["boundary"]}
    names = classes["classes"]
    ignore = classes.get("ignore_index", 255)
    if ignore == len(names) - 1:
        names = names[:-1]
    for split in ("train", "val"):
        photos = sorted((data / split / "images").iterdir())
        kind = "masks" if task == "segment" else "boundaries"
        masks = [
            tuple(
                sorted(
                    str(p) for p in (data / split / kind).glob(f"{photo.stem}{'' if task == 'segment' else '_*'}.png")
                )
            )
            for photo in photos
        ]
        splits.append(
            PairSplit(
                [str(p) for p in photos], masks, tuple(names), [str(p) for p in photos], classes.get("colors"), ignore
            )
        )
    return splits[0], splits[1]
