"""What segmentation and boundary networks share for photos: reading, size, tiles, one record per input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from dla.engines.base import Engine
from dla.errors import ImageError
from dla.images.preprocessing import Preprocessing
from dla.inference.dense_maps import input_pixels, logits_of, resized_bands
from dla.inference.pipeline import InputPipeline, PhotoInput, PhotoReader, PreparedInput
from dla.models.registry import LOGITS
from dla.options import BatchOptions, DenseOptions, ReadOptions
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
        strict, workers = options.pop("strict", False), options.pop("workers", None)
        read = ReadOptions(self.preprocessing.exif, **options)
        reader = _WholeReader((), read, strict, partial(self._checked, dense, read.max_pixels))
        # one thread reads as fast as the network answers, and few photos are held whole
        threads = BatchOptions(workers=1 if workers is None else workers).threads
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

    def _checked(self, dense: DenseOptions, max_pixels: int, photo: Image.Image) -> Image.Image:
        height, width = dense.input_size(photo.size, self.trained_side)
        if height * width > max_pixels:
            short = min(height, width)
            raise _TooLargeError(
                f"with a short side of {short}, its {photo.width}x{photo.height} pixels would be {width:,}x{height:,}, "
                f"more than {max_pixels / 1e6:g} megapixels. Try --size native"
            )
        return photo


class _TooLargeError(Exception):
    """A photo, small as it is, would be too large at the size at which the network sees it."""


class _WholeReader(PhotoReader):
    """Reads photos as a whole; the view is a placeholder, as the network sees them later."""

    def _prepared(self, name: str, image: PhotoInput) -> PreparedInput:
        try:
            prepared = super()._prepared(name, image)
        except _TooLargeError as error:
            raise ImageError("too_large", f"{name}: {error}") from None
        return PreparedInput(name, (np.zeros(1),), prepared.truncated, kept=prepared.kept)
