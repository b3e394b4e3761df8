"""Segment photos: a class for each pixel."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
from PIL import Image

from dla.drawing.palette import class_palette
from dla.errors import InputError
from dla.inference.dense_model import DenseModel
from dla.inference.pipeline import PhotoInput, PreparedInput
from dla.options import DenseOptions
from dla.types import Array, ClassName

SEGMENT_SCHEMA = "dla.segment/1"
MOST_CLASSES_OF_8_BITS = 255  # 255 itself is the usual id of ignored pixels


@dataclass(frozen=True, slots=True)
class ClassArea:
    """A class that a photo has: its share of the pixels (0 to 1), and its bounding box (left, top, right, bottom)."""

    index: int
    class_id: str
    label: str
    pixels: int
    share: float
    box: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The segmentation of one input, or the error.

    `mask` (H, W) holds class indices at the size of the upright photo, which is `photo`: uint8, or uint16 if the
    network has more than 255 classes. `classes` are those that the photo has, by descending share. `probabilities`
    (K, H, W) float16 are there on request. `palette` are the colours of all classes. `files` are the names of the files
    that `dla segment` wrote.
    """

    path: str
    mask: Array | None = None
    classes: tuple[ClassArea, ...] = ()
    photo: Image.Image | None = None
    probabilities: Array | None = None
    palette: tuple[tuple[int, ...], ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    error: InputError | None = None
    truncated: bool = False

    @property
    def shares(self) -> dict[str, float]:
        """The share of each class that the photo has, 0 to 1."""
        return {c.class_id: c.share for c in self.classes}

    def to_dict(self) -> dict[str, Any]:
        """Return the record as in JSON (docs/formats.md)."""
        record: dict[str, Any] = {"schema": SEGMENT_SCHEMA, "path": self.path}
        if self.error is not None or self.mask is None:
            return record | {"error": asdict(self.error) if self.error else None}
        if self.truncated:
            record["truncated"] = True
        height, width = self.mask.shape
        record |= {"width": width, "height": height, "classes": [asdict(c) for c in self.classes]}
        return record | {"files": dict(self.files)} if self.files else record

    def overlay(self) -> Image.Image:
        """Return the photo, RGB, with each class in its colour over it and a legend below.

        Raises:
            ValueError: there is no mask, as the input could not be read.
        """
        from dla.drawing.overlay import draw_overlay  # here, because few runs draw

        if self.mask is None or self.photo is None:
            raise ValueError(f"{self.path} has no mask: {self.error.message if self.error else 'no photo'}")
        legend = [(c.index, c.label, c.share) for c in self.classes]
        return draw_overlay(self.photo, self.mask, self.palette, legend)


@dataclass(frozen=True)
class Segmenter(DenseModel):
    """A segmentation network, ready for photos. Returned by `dla.load`."""

    @cached_property
    def palette(self) -> tuple[tuple[int, ...], ...]:
        """The colour of each class, (red, green, blue): the model folder's, else VOC's."""
        colors_K3 = class_palette(len(self.classes), self.config.dla.get("palette"))
        return tuple(tuple(color) for color in colors_K3.tolist())

    @overload
    def __call__(self, images: str | os.PathLike[str] | bytes, **options: Any) -> Segmentation: ...
    @overload
    def __call__(self, images: Iterable[PhotoInput], **options: Any) -> Iterator[Segmentation]: ...
    def __call__(
        self,
        images: PhotoInput | Iterable[PhotoInput],
        *,
        size: int | str = DenseOptions.size,
        tile: int = DenseOptions.tile,
        probabilities: bool = False,
        **options: Any,
    ) -> Segmentation | Iterator[Segmentation]:
        """Return the segmentation of one photo, or of each of several.

        Args:
            images: one input or several, as for `Classifier.predict`.
            size: "trained", "native", or the short side in pixels (see `DenseOptions`).
            tile: side of the largest tile in pixels; larger photos are computed in tiles, in bounded memory.
            probabilities: also return the probability of each class at each pixel.
            options: `workers`, `strict`, `allow_truncated`, `max_pixels` and `max_bytes`, as for `Classifier.predict`.

        Raises:
            UsageError: a number is out of range, or an input is not an image.
            ImageError: with `strict`, an input cannot be read.
        """

        palette = self.palette
        dtype = np.uint8 if len(self.classes) <= MOST_CLASSES_OF_8_BITS else np.uint16

        def record(p: PreparedInput, bands: Iterator[Array] | None) -> Segmentation:
            if bands is None:
                return Segmentation(p.name, error=p.error)
            assert p.kept is not None
            mask_HW = np.empty((p.kept.height, p.kept.width), dtype)
            probabilities_KHW = np.empty((len(self.classes), *mask_HW.shape), np.float16) if probabilities else None
            top = 0
            for band_KhW in bands:
                rows = slice(top, top + band_KhW.shape[1])
                mask_HW[rows] = band_KhW.argmax(0)
                if probabilities_KHW is not None:
                    probabilities_KHW[:, rows] = _softmax(band_KhW)
                top = rows.stop
                del band_KhW  # before the next tiles are computed
            areas = class_areas(mask_HW, self.classes)
            return Segmentation(p.name, mask_HW, areas, p.kept, probabilities_KHW, palette, truncated=p.truncated)

        return self._records(images, DenseOptions(size, tile), options, record)


def class_areas(mask_HW: Array, classes: tuple[ClassName, ...]) -> tuple[ClassArea, ...]:
    """Return the classes of a mask by descending share, equal ones by their index."""
    counts_K = np.bincount(mask_HW.ravel(), minlength=len(classes))
    areas = []
    for k in np.argsort(-counts_K, kind="stable"):
        if not counts_K[k]:
            break
        is_k_HW = mask_HW == k
        rows, columns = (np.flatnonzero(is_k_HW.any(axis)) for axis in (1, 0))
        box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        name, pixels = classes[k], int(counts_K[k])
        areas.append(ClassArea(int(k), name.class_id, name.label, pixels, pixels / mask_HW.size, box))
    return tuple(areas)


def _softmax(logits_KHW: Array) -> Array:
    shifted = np.exp(logits_KHW - logits_KHW.max(0))
    return shifted / shifted.sum(0)  # type: ignore[no-any-return]
