"""What segmentation and boundary networks share for photos: reading, size, tiles, one record per input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from dla.engines.base import Engine
from dla.images.preprocessing import Preprocessing
from dla.inference.dense_maps import DenseOptions, input_pixels, logits_of, resized_bands
from dla.inference.pipeline import InputPipeline, PhotoInput, PhotoReader, PreparedInput
from dla.models.registry import LOGITS
from dla.options import BatchOptions, ReadOptions
from dla.types import Array, ClassName
from dla.weights.model_folder import ModelConfig

R = TypeVar("R")


@dataclass(frozen=True)
class DenseModel:
    """A segmentation or boundary network with its preprocessing and class names, ready for photos.

    `sha256` is the hash of the weight file.
    """

    engine: Engine
    preprocessing: Preprocessing
    classes: tuple[ClassName, ...]
    config: ModelConfig
    origin: str
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def trained_side(self) -> int | None:
        """The short side in pixels at which the network was trained; None: any."""
        return self.config.dla.get("short_side")

    def _records(
        self,
        images: PhotoInput | Iterable[PhotoInput],
        dense: DenseOptions,
        options: dict[str, Any],
        record: Callable[[PreparedInput, Iterator[Array] | None], R],
    ) -> R | Iterator[R]:
        """Return what `record` makes of each photo, in `kept`, and its logits in bands at the photo's size."""
        strict, workers = options.pop("strict", False), options.pop("workers", BatchOptions.workers)
        read = ReadOptions(self.preprocessing.exif, **options)
        reader = _WholeReader((), read, strict, lambda photo: photo)
        threads = BatchOptions(workers=workers).threads
        logits = self.engine.features_at(LOGITS)

        def answer(p: PreparedInput, row: Any) -> R:
            if p.kept is None:
                return record(p, None)
            size = dense.input_size(p.kept.size, self.trained_side)
            pixels_HW3 = input_pixels(p.kept, size, self.preprocessing.interpolation)
            bands = logits_of(pixels_HW3, logits, dense.tile)
            return record(p, resized_bands(bands, size, (p.kept.height, p.kept.width)))

        pipeline = InputPipeline(1, threads)
        return pipeline.of_photos(images, reader, lambda counts_N: counts_N, answer)


class _WholeReader(PhotoReader):
    """Reads photos as a whole; the view is a placeholder, as the network sees them later."""

    def _prepared(self, name: str, image: PhotoInput) -> PreparedInput:
        prepared = super()._prepared(name, image)
        return PreparedInput(name, (np.zeros(1),), prepared.truncated, kept=prepared.kept)
