"""Find the boundaries in photos."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from PIL import Image

from dla.errors import InputError
from dla.inference.dense_maps import DenseOptions
from dla.inference.dense_model import DenseModel
from dla.inference.pipeline import PhotoInput, PreparedInput
from dla.metrics.edge_maps import suppress_non_maxima, thin
from dla.types import Array

EDGES_SCHEMA = "dla.edges/1"


@dataclass(frozen=True, eq=False)
class Boundaries:
    """The boundaries of one input, or the error.

    `probability` (H, W) is that of a boundary at each pixel of the upright photo, in 8 bits: 255 is 1. `threshold` is
    the model's own, 0 to 1.
    """

    path: str
    probability: Array | None = None
    threshold: float = 0.5
    photo: Image.Image | None = None
    error: InputError | None = None
    truncated: bool = False

    @cached_property
    def thin(self) -> Array:
        """The probability after non-maximum suppression, uint8 (H, W): 0 beside the ridges."""
        assert self.probability is not None
        return (255 * suppress_non_maxima(self.probability / 255)).round().astype(np.uint8)

    def lines(self, threshold: float | None = None) -> Array:
        """Return the boundaries (H, W), one pixel wide, where `thin` reaches the threshold, by default the model's."""
        level = self.threshold if threshold is None else threshold
        return thin(self.thin >= 255 * level)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as in JSON (docs/formats.md)."""
        record: dict[str, Any] = {"schema": EDGES_SCHEMA, "path": self.path}
        if self.probability is None:
            return record | {"error": asdict(self.error) if self.error else None}
        if self.truncated:
            record["truncated"] = True
        height, width = self.probability.shape
        share = float(self.lines().mean())
        return record | {"width": width, "height": height, "threshold": self.threshold, "share": share}


@dataclass(frozen=True)
class EdgeDetector(DenseModel):
    """A boundary network, ready for photos. Returned by `dla.load`."""

    @overload
    def __call__(self, images: str | os.PathLike[str] | bytes, **options: Any) -> Boundaries: ...
    @overload
    def __call__(self, images: Iterable[PhotoInput], **options: Any) -> Iterator[Boundaries]: ...
    def __call__(
        self,
        images: PhotoInput | Iterable[PhotoInput],
        *,
        size: str | int = DenseOptions.size,
        tile: int = DenseOptions.tile,
        **options: Any,
    ) -> Boundaries | Iterator[Boundaries]:
        """Return the boundaries of one photo, or of each of several. Arguments and errors are those of `Segmenter`."""
        threshold = float(self.config.dla.get("threshold") or 0.5)

        def record(p: PreparedInput, bands: Iterator[Array] | None) -> Boundaries:
            if bands is None:
                return Boundaries(p.name, error=p.error)
            rows = [_levels(band_1hW[0]) for band_1hW in bands]
            return Boundaries(p.name, np.concatenate(rows), threshold, p.kept, truncated=p.truncated)

        return self._records(images, DenseOptions(size, tile), options, record)


def _levels(logits_HW: Array) -> Array:
    """Return the sigmoid of logits in 8 bits."""
    return (255 / (1 + np.exp(-logits_HW.astype(np.float64)))).round().astype(np.uint8)
