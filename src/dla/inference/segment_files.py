"""Write masks, overlays, probabilities and boundary maps into a folder, and the records as a table, JSON or CSV.

The files of a photo are named after it and the hash of its path, as `dla.inference.classifier.output_name` has it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from dla.data.masks import read_ids
from dla.errors import ImageError, UnavailableError, UsageError
from dla.inference.classifier import output_name
from dla.inference.coco import CocoWriter
from dla.inference.edge_detector import Boundaries
from dla.inference.result_files import RecordWriter, class_lines
from dla.inference.segmenter import MOST_CLASSES_OF_8_BITS, Segmentation, class_areas
from dla.options import ReadOptions, ResultFormat
from dla.storage.files import open_aside, write_files
from dla.types import Array, ClassName

RECORDS = "records.jsonl"  # in the folder; --resume continues it
_JPEG_QUALITY = 95
_MOST_JPEG_SIDE = 65_535  # pixels


@dataclass(frozen=True)
class MaskFiles:
    """Writes `<name>.mask.png`, `<name>.overlay.png` and, if wanted, `<name>.npz` with the probabilities."""

    folder: Path
    classes: tuple[ClassName, ...]

    def start(self) -> None:
        """Do nothing: each photo's files stand for themselves."""

    def write(self, record: Segmentation) -> None:
        """Write the files of a record without an error, and their names into it."""
        assert record.mask is not None
        name = output_name(record.path)
        files = {"mask": f"{name}.mask.png", "overlay": f"{name}.overlay.png"}
        mask, overlay = mask_png(record.mask, record.palette), encoded_png(record.overlay())
        write_files({self.folder / files["mask"]: mask, self.folder / files["overlay"]: overlay})
        if record.probabilities is not None:
            files["probabilities"] = f"{name}.npz"
            with open_aside(self.folder / files["probabilities"]) as file:
                class_ids = np.array([c.class_id for c in self.classes])
                np.savez(file, probabilities=record.probabilities, class_ids=class_ids)
        record.files.update(files)

    def finish(self, names: Sequence[str]) -> None:
        """Do nothing: each photo's files stand for themselves."""


@dataclass(frozen=True)
class VocFiles:
    """Writes PASCAL VOC's layout: `JPEGImages/`, `SegmentationClass/`, `labelmap.txt` and the list of all photos.

    Raises:
        UsageError: the classes cannot be written so.
    """

    folder: Path
    classes: tuple[ClassName, ...]
    palette: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.classes) > MOST_CLASSES_OF_8_BITS:
            raise UsageError(f"--layout voc holds up to 255 classes, and this network has {len(self.classes):,}")
        for c in self.classes:
            if ":" in c.class_id or c.class_id.startswith("#") or len(c.class_id.splitlines()) != 1:
                raise UsageError(f"the class {c.class_id!r} cannot stand in labelmap.txt. Leave out --layout voc")
        if len(set(self.palette)) < len(self.palette):
            raise UsageError("two classes of this network have one colour, which labelmap.txt does not allow. "
                             "Leave out --layout voc")  # fmt: skip

    def start(self) -> None:
        """Create the folders and write `labelmap.txt`."""
        for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        colors = (",".join(map(str, color)) for color in self.palette)
        lines = [f"{c.class_id}:{color}::" for c, color in zip(self.classes, colors, strict=True)]
        text = "\n".join(["# label:color_rgb:parts:actions", *lines, ""])
        write_files({self.folder / "labelmap.txt": text.encode()})

    def write(self, record: Segmentation) -> None:
        """Write the upright photo and its mask, and their names into the record."""
        assert record.mask is not None
        assert record.photo is not None
        name = output_name(record.path)
        is_long = max(record.photo.size) > _MOST_JPEG_SIDE
        files = {"mask": f"SegmentationClass/{name}.png", "photo": f"JPEGImages/{name}.{'png' if is_long else 'jpg'}"}
        jpeg = {} if is_long else {"format": "JPEG", "quality": _JPEG_QUALITY, "subsampling": 0}
        write_files({self.folder / files["photo"]: encoded_png(record.photo, **jpeg)})
        write_files({self.folder / files["mask"]: mask_png(record.mask, record.palette)})
        record.files.update(files)

    def finish(self, names: Sequence[str]) -> None:
        """Write the list of all masks' names."""
        stems = dict.fromkeys(Path(name).stem for name in names)
        text = "".join(f"{stem}\n" for stem in stems).encode("utf-8", "surrogateescape")
        write_files({self.folder / "ImageSets" / "Segmentation" / "default.txt": text})


@dataclass(frozen=True)
class EdgeFiles:
    """Writes `<name>.edges.png`, `<name>.thin.png` (8 bits: 255 is 1) and `<name>.lines.png` (1 bit)."""

    folder: Path

    def start(self) -> None:
        """Do nothing: each photo's files stand for themselves."""

    def write(self, record: Boundaries) -> None:
        """Write the files of a record without an error, and their names into it."""
        assert record.probability is not None
        maps = {"edges": record.probability, "thin": record.thin, "lines": record.lines}
        files = {kind: f"{output_name(record.path)}.{kind}.png" for kind in maps}
        write_files({self.folder / files[kind]: encoded_png(Image.fromarray(values)) for kind, values in maps.items()})
        record.files.update(files)

    def finish(self, names: Sequence[str]) -> None:
        """Do nothing: each photo's files stand for themselves."""


def mask_png(mask_HW: Array, palette: Sequence[Sequence[int]]) -> bytes:
    """Return a mask as PNG: 8 bits with the palette, or 16 bits without one."""
    image = Image.fromarray(mask_HW)
    if mask_HW.dtype != np.uint8:
        return encoded_png(image)
    colors = [level for color in palette for level in color]
    # From L to P; the indices stay. A shorter palette would give fewer bits, which some programs read as other ids.
    image.putpalette(colors + [0] * (3 * 256 - len(colors)))
    return encoded_png(image)


def encoded_png(image: Image.Image, **options: Any) -> bytes:
    """Return an image as PNG, or as `options` say."""
    file = io.BytesIO()
    image.save(file, **{"format": "PNG", "compress_level": 4, **options})
    return file.getvalue()


def earlier_records(path: str, count: int) -> list[dict[str, Any]]:
    """Return those of the first `count` records of a run that have an answer, as JSON has them."""
    with open(path, encoding="utf-8") as file:
        records = (json.loads(line) for line in islice(file, count))
        return [record for record in records if "error" not in record]


def add_earlier(
    writer: CocoWriter, folder: Path, records: Sequence[dict[str, Any]], classes: tuple[ClassName, ...]
) -> None:
    """Add the masks that an earlier run wrote to COCO's file.

    Raises:
        UnavailableError: a mask is gone or changed.
    """
    for record in records:
        path = folder / record["files"]["mask"]
        size = record["height"], record["width"]
        try:
            mask_HW = read_ids(str(path), ReadOptions(max_pixels=size[0] * size[1]))
        except ImageError as error:
            raise _changed(path, record["path"]) from error
        if mask_HW.shape != size or mask_HW.max() >= len(classes):
            raise _changed(path, record["path"])
        writer.add(record["path"], mask_HW, class_areas(mask_HW, classes))


def _changed(path: Path, photo: str) -> UnavailableError:
    return UnavailableError(f"{path} is not the mask of {photo} any more. Give --force instead of --resume")


class SegmentWriter(RecordWriter[Segmentation]):
    """Writes records of masks: in a CSV row, after the size, share, left, top, right and bottom of each class."""

    def __init__(self, file: TextIO, format: ResultFormat, classes: Sequence[ClassName]) -> None:
        super().__init__(file, format)
        parts = ("share", "left", "top", "right", "bottom")
        self.columns = ("width", "height", *(f"{part}_{c.class_id}" for c in classes for part in parts))
        self.classes = classes

    def cells(self, record: Segmentation) -> list[object]:
        """Return the cells of a CSV row; those of a class that the photo does not have are 0 and empty."""
        if record.mask is None:
            return []
        by_index = {area.index: area for area in record.classes}
        cells: list[object] = [*record.mask.shape[::-1]]
        for k in range(len(self.classes)):
            cells += [by_index[k].share, *by_index[k].box] if k in by_index else [0.0, "", "", "", ""]
        return cells

    def lines(self, record: Segmentation, shown: Callable[[str], str]) -> list[str]:
        """Return a line for each class that the photo has."""
        boxes = ("   {},{} to {},{}".format(*area.box) for area in record.classes)
        return class_lines([(area.share, area.label, area.label) for area in record.classes], shown, boxes)


class EdgesWriter(RecordWriter[Boundaries]):
    """Writes records of boundaries: in a CSV row size, threshold and share."""

    columns = ("width", "height", "threshold", "share")

    def cells(self, record: Boundaries) -> list[object]:
        """Return the cells of a CSV row."""
        return [] if record.probability is None else [record.to_dict()[column] for column in self.columns]

    def lines(self, record: Boundaries, shown: Callable[[str], str]) -> list[str]:
        """Return one line: the share of pixels on a line."""
        if record.probability is None:
            return []
        share = f"{record.lines.mean():7.1%}".replace("%", " %")
        return [f"{share}  on boundaries (threshold {record.threshold:.2f})"]
