"""Find the boundaries in photos."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
from PIL import Image

from dla.errors import InputError, UsageError
from dla.inference.dense_model import DenseModel
from dla.inference.pipeline import PhotoInput, PreparedInput
from dla.metrics.edge_maps import suppress_non_maxima, thin
from dla.options import DenseOptions
from dla.types import Array

EDGES_SCHEMA = "dla.edges/1"


@dataclass(frozen=True, eq=False)
class Boundaries:
    """The boundaries of one input, or the error.

    `probability` (H, W) is that of a boundary at each pixel of the upright photo, in 8 bits: 255 is 1. `threshold`, 0
    to 1, is where `lines` begin. `files` are the names of the files that `dla edges` wrote.
    """

    path: str
    probability: Array | None = None
    threshold: float = 0.5
    photo: Image.Image | None = None
    files: dict[str, str] = field(default_factory=dict)
    error: InputError | None = None
    truncated: bool = False

    @cached_property
    def thin(self) -> Array:
        """The probability after non-maximum suppression, uint8 (H, W): 0 beside the ridges."""
        assert self.probability is not None
        return (255 * suppress_non_maxima(self.probability / 255)).round().astype(np.uint8)

    @cached_property
    def lines(self) -> Array:
        """The boundaries, one pixel wide, where `thin` reaches the threshold: booleans (H, W)."""
        return thin(self.thin >= 255 * self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as in JSON (docs/formats.md)."""
        record: dict[str, Any] = {"schema": EDGES_SCHEMA, "path": self.path}
        if self.probability is None:
            return record | {"error": asdict(self.error) if self.error else None}
        if self.truncated:
            record["truncated"] = True
        height, width = self.probability.shape
        share = float(self.lines.mean())
        record |= {"width": width, "height": height, "threshold": self.threshold, "share": share}
        return record | {"files": dict(self.files)} if self.files else record


@dataclass(frozen=True)
class EdgeDetector(DenseModel):
    """A boundary network, ready for photos. Returned by `dla.load`."""

    @property
    def threshold(self) -> float:
        """The threshold with the best F over the validation photos (ODS), as the model folder has it, else 0.5."""
        results = self.config.dla.get("results") or {}
        return float(self.config.dla.get("threshold") or results.get("threshold") or 0.5)

    @overload
    def __call__(self, images: str | os.PathLike[str] | bytes, **options: Any) -> Boundaries: ...
    @overload
    def __call__(self, images: Iterable[PhotoInput], **options: Any) -> Iterator[Boundaries]: ...
    def __call__(
        self,
        images: PhotoInput | Iterable[PhotoInput],
        *,
        size: int | str = DenseOptions.size,
        tile: int = DenseOptions.tile,
        threshold: float | None = None,
        **options: Any,
    ) -> Boundaries | Iterator[Boundaries]:
        """Return the boundaries of one photo, or of each of several. Arguments and errors are those of `Segmenter`.

        Args:
            threshold: the probability from which a pixel may be on a line; None: the model's own, which had the best F
                on its validation photos, or 0.5 if it has none.
        """
        if threshold is not None and not 0 < threshold <= 1:
            raise UsageError(f"threshold is {threshold}. Allowed: above 0, to 1")
        level = self.threshold if threshold is None else threshold

        def record(p: PreparedInput, bands: Iterator[Array] | None) -> Boundaries:
            if bands is None:
                return Boundaries(p.name, error=p.error)
            assert p.kept is not None
            levels_HW = np.empty((p.kept.height, p.kept.width), np.uint8)
            top = 0
            for band_1hW in bands:
                levels_HW[top : top + band_1hW.shape[1]] = _levels(band_1hW[0])
                top += band_1hW.shape[1]
                del band_1hW  # before the next tiles are computed
            return Boundaries(p.name, levels_HW, level, p.kept, truncated=p.truncated)

        return self._records(images, DenseOptions(size, tile), options, record)


def _levels(logits_HW: Array) -> Array:
    """Return the sigmoid of logits in 8 bits."""
    return (127.5 + 127.5 * np.tanh(logits_HW / 2)).round().astype(np.uint8)  # no exponential that overflows
