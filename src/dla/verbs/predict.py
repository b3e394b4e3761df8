"""Classify photos: one record an input, in the inputs' order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from dla.data.load import run_ahead
from dla.engines.base import Array, Engine
from dla.errors import ImageError, UsageError
from dla.images.labels import ClassName, imagenet_classes
from dla.images.prepare import Preprocessing
from dla.images.read import ReadOptions, to_photo
from dla.nets.table import DEFAULT_MODEL
from dla.records import Class, InputError, Prediction
from dla.weights.folder import ModelConfig

__all__ = ["Classifier", "load"]

Input = Any  # a path, encoded bytes, a PIL image, an array or a tensor: dla.images.read.to_photo says which


@dataclass(frozen=True)
class Classifier:
    """A network with its preprocessing and its class names, ready for photos. Made by `dla.load`."""

    engine: Engine
    preprocessing: Preprocessing
    classes: tuple[ClassName, ...]
    config: ModelConfig
    origin: str
    notes: tuple[str, ...] = ()

    @overload
    def predict(self, images: str | os.PathLike[str] | bytes, topk: int = 5, **options: Any) -> Prediction: ...
    @overload
    def predict(self, images: Iterable[Input], topk: int = 5, **options: Any) -> Iterator[Prediction]: ...
    def predict(  # type: ignore[misc]  # the overloads leave the options to this signature
        self,
        images: Input | Iterable[Input],
        topk: int = 5,
        *,
        batch_size: int = 8,
        workers: int = 2,
        strict: bool = False,
        allow_truncated: bool = False,
        max_pixels: int = ReadOptions().max_pixels,
    ) -> Prediction | Iterator[Prediction]:
        """The `topk` likeliest classes of one photo, or of each of several.

        Args:
            images: a path, encoded bytes, a PIL image, an (H, W, 3) array or a (3, H, W) tensor gives one
                `Prediction`; a list or any other iterable of these gives a generator of them, in order, which
                reads ahead of the network but holds only a few photos at a time.
            topk: classes a photo; more than there are means all.
            batch_size: photos that the network takes at once.
            workers: threads that read and resize; 0 does it in this thread.
            strict: raise at the first input that cannot be read, instead of giving a record with `error`.
            allow_truncated: classify what is there of a file that ends early.
            max_pixels: refuse larger photos by their header.

        Raises:
            UsageError: a number out of range, or something that is no image.
            ImageError: with `strict`, the first input that cannot be read.
        """
        if topk < 1 or batch_size < 1 or workers < 0:
            raise UsageError(f"topk is {topk}, batch_size {batch_size}, workers {workers}: at least 1, 1 and 0")
        options = ReadOptions(self.preprocessing.exif, max_pixels, allow_truncated)
        if _is_several(images):
            return self._predict_each(images, topk, batch_size, workers, strict, options)
        return next(self._answer([self._prepare(_name(0, images), images, strict, options)], topk))

    def _predict_each(
        self, images: Iterable[Input], topk: int, batch_size: int, workers: int, strict: bool, options: ReadOptions
    ) -> Iterator[Prediction]:
        def prepare(numbered: tuple[int, Input]) -> _Prepared:
            name = _name(*numbered)
            try:
                return self._prepare(name, numbered[1], strict, options)
            except UsageError as error:  # among many, what is no image costs its own record only
                if strict:
                    raise
                return _Prepared(name, error=InputError("not_an_image", str(error)))

        waiting: list[_Prepared] = []
        filled = 0
        for prepared in run_ahead(prepare, enumerate(images), workers, batch_size + 2 * workers):
            waiting.append(prepared)
            filled += prepared.pixels_HW3 is not None
            if filled == batch_size or (not filled and prepared.error):
                yield from self._answer(waiting, topk)
                waiting, filled = [], 0
        yield from self._answer(waiting, topk)

    def _prepare(self, name: str, image: Input, strict: bool, options: ReadOptions) -> _Prepared:
        try:
            photo = to_photo(image, options, name)
        except ImageError as error:
            if strict:
                raise
            return _Prepared(name, error=InputError(error.code, str(error)))
        return _Prepared(name, self.preprocessing.pixels(photo.image), photo.truncated)

    def _answer(self, waiting: list[_Prepared], topk: int) -> Iterator[Prediction]:
        pixels = [p.pixels_HW3 for p in waiting if p.pixels_HW3 is not None]
        rows = iter(self.engine.probabilities(np.stack(pixels)) if pixels else ())
        for p in waiting:
            if p.error is not None:
                yield Prediction(p.name, error=p.error)
            else:
                yield Prediction(p.name, self._best(next(rows), topk), truncated=p.truncated)

    def _best(self, probabilities_K: Array, topk: int) -> tuple[Class, ...]:
        order = np.argsort(-probabilities_K, kind="stable")[:topk]
        return tuple(
            Class(rank, int(k), self.classes[k].class_id, self.classes[k].label, float(probabilities_K[k]))
            for rank, k in enumerate(order, 1)
        )


@dataclass(frozen=True, slots=True)
class _Prepared:
    name: str
    pixels_HW3: Array | None = None
    truncated: bool = False
    error: InputError | None = None


def _is_several(images: Any) -> bool:
    single = isinstance(images, str | bytes | bytearray | os.PathLike) or hasattr(images, "shape")
    return not single and not hasattr(images, "getpixel") and isinstance(images, Iterable)


def _name(position: int, image: Input) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"input {position}"


def load(source: str = DEFAULT_MODEL, *, device: str = "auto", cache_dir: str | None = None) -> Classifier:
    """A network with everything it needs to classify photos.

    Args:
        source: `dla60`, `dla60.in1k`, `hf-hub:owner/name[@revision]`, `local-dir:PATH`, a path to a model folder
            or to a .safetensors or .pth file, or `shipped:NAME`; without it, the network that comes along.
        device: "auto", "cpu", "cuda", "mps", ...
        cache_dir: where files from the hub are kept, in place of its usual cache.

    Raises:
        UnknownNameError: no network or file is called `source`.
        UnavailableError: the weights cannot be had; the message says where it looked.
        DamagedError: the weights are not what they should be.
    """
    from dla.engines.torch import TorchEngine
    from dla.weights.load import open_model

    opened = open_model(source, cache_dir=cache_dir)
    config = opened.config
    saved = config.dla.get("preprocessing", {})
    preprocessing = Preprocessing.from_config(config.pretrained_cfg, exif=saved.get("exif", "apply"))
    engine = TorchEngine(opened.model, *preprocessing.scale_shift(), device)
    return Classifier(engine, preprocessing, class_names(config), config, opened.origin, opened.report.notes)


def class_names(config: ModelConfig) -> tuple[ClassName, ...]:
    """The classes of a network, by its own record; a network of 1000 classes without one is ImageNet-1k's."""
    if config.label_names is None:
        if config.num_classes == len(imagenet_classes()):
            return imagenet_classes()
        return tuple(ClassName(f"class_{k}", f"class_{k}", "") for k in range(config.num_classes))
    known = {c.class_id: c.label for c in imagenet_classes()}
    described = config.label_descriptions or known
    return tuple(ClassName(n, described.get(n, n), described.get(n, n)) for n in config.label_names)
