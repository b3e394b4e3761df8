"""Write masks as COCO's JSON: one annotation for each class of a photo, as an uncompressed run-length encoding."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from dla.inference.segmenter import ClassArea
from dla.storage.files import open_aside
from dla.types import Array, ClassName


class CocoWriter:
    """Writes the annotations of each photo as they come; only the photos' names and sizes are held.

    The id of a category is the index of its class plus 1, as many readers take 0 for "none". `iscrowd` is 1: by COCO's
    format, segmentations in run lengths have it, and an annotation may cover several objects.
    """

    def __init__(self, file: IO[bytes], classes: Sequence[ClassName]) -> None:
        self.file = file
        self.images: list[dict[str, Any]] = []
        self.annotations = 0
        categories = [
            {"id": k, "name": c.label, "supercategory": "", "class_id": c.class_id} for k, c in enumerate(classes, 1)
        ]
        self._write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')

    def add(self, path: str, mask_HW: Array, areas: Sequence[ClassArea]) -> None:
        """Write the annotations of one photo."""
        height, width = mask_HW.shape
        self.images.append({"id": len(self.images) + 1, "file_name": path, "width": width, "height": height})
        counts_of = run_lengths(mask_HW)
        for area in areas:
            left, top, right, bottom = area.box
            self.annotations += 1
            annotation = {
                "id": self.annotations,
                "image_id": len(self.images),
                "category_id": area.index + 1,
                "segmentation": {"size": [height, width], "counts": counts_of[area.index]},
                "area": area.pixels,
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": 1,
            }
            self._write(("," if self.annotations > 1 else "") + "\n" + json.dumps(annotation))

    def finish(self) -> None:
        """Complete the file."""
        self._write(f'],\n"images": {json.dumps(self.images)}}}\n')

    def _write(self, text: str) -> None:
        self.file.write(text.encode())


@contextmanager
def open_coco(path: Path, classes: Sequence[ClassName]) -> Iterator[CocoWriter]:
    """Open a writer whose file replaces `path` when the `with` block ends without an error."""
    with open_aside(path) as file:
        writer = CocoWriter(file, classes)
        yield writer
        writer.finish()


def run_lengths(mask_HW: Array) -> dict[int, list[int]]:
    """Return for each class of a mask its run lengths, column by column: pixels without and with it, in turn."""
    ids_P = mask_HW.ravel(order="F")
    starts_R = np.concatenate(([0], np.flatnonzero(ids_P[1:] != ids_P[:-1]) + 1))
    ends_R, classes_R = np.append(starts_R[1:], len(ids_P)), ids_P[starts_R]
    counts = {}
    for k in np.unique(classes_R):
        own = classes_R == k
        places = np.column_stack((starts_R[own], ends_R[own])).ravel()
        lengths = np.diff(places, prepend=0, append=len(ids_P)).tolist()
        counts[int(k)] = lengths if lengths[-1] else lengths[:-1]
    return counts
