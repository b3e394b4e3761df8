"""Classify photos, or take features of them: one record an input, in the inputs' order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dla.engines.base import Engine
from dla.errors import InputError, UsageError
from dla.images.preprocessing import Preprocessing
from dla.inference.open_engine import open_engine
from dla.inference.pipeline import InputPipeline, PhotoInput, PhotoReader, PreparedInput
from dla.metrics.calibration import apply_temperature
from dla.models.registry import PRE_LOGITS
from dla.options import BatchOptions, EngineOptions, PrecisionChoice, PredictOptions, ReadOptions
from dla.storage.files import errors_name
from dla.types import DEFAULT_MODEL, NO_PROGRESS, Array, ClassName, Progress
from dla.weights.model_folder import ModelConfig

__all__ = [
    "PREDICT_SCHEMA",
    "ClassScore",
    "Classifier",
    "Features",
    "Prediction",
    "check_classifies",
    "class_names",
    "draw_prediction",
    "load",
    "thumbnail_for_chart",
]


PREDICT_SCHEMA = "dla.predict/1"


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class that a photo may show. `probability` is from 0 to 1; `index` is the network's output."""

    rank: int
    index: int
    class_id: str
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one input: classes by falling probability, or the error that took their place.

    `path` is the input as it was given, or a name such as "input 3" for one that has no path. `truncated` says
    that the file ended early and only the part that is there was classified.
    """

    path: str
    classes: tuple[ClassScore, ...] = ()
    error: InputError | None = None
    truncated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it (docs/formats.md)."""
        record: dict[str, Any] = {"schema": PREDICT_SCHEMA, "path": self.path}
        if self.error is not None:
            return record | {"error": asdict(self.error)}
        if self.truncated:
            record["truncated"] = True
        return record | {"predictions": [asdict(c) for c in self.classes]}


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What a network holds at one place for one input, float32 (C,) or (C, H, W), or the error that took its place.

    `path` and `truncated` are as in `Prediction`.
    """

    path: str
    values: np.ndarray[Any, np.dtype[np.float32]] | None = None
    error: InputError | None = None
    truncated: bool = False


BARS = 5


@dataclass(frozen=True)
class Classifier:
    """A network with its preprocessing and its class names, ready for photos. Made by `dla.load`.

    `sha256` is the weight file's.
    """

    engine: Engine
    preprocessing: Preprocessing
    classes: tuple[ClassName, ...]
    config: ModelConfig
    origin: str
    sha256: str
    notes: tuple[str, ...] = ()

    @overload
    def predict(
        self, images: str | os.PathLike[str] | bytes, topk: int = PredictOptions.topk, **options: Any
    ) -> Prediction: ...
    @overload
    def predict(
        self, images: Iterable[PhotoInput], topk: int = PredictOptions.topk, **options: Any
    ) -> Iterator[Prediction]: ...
    def predict(  # type: ignore[misc]  # the overloads leave the options to this signature
        self,
        images: PhotoInput | Iterable[PhotoInput],
        topk: int = PredictOptions.topk,
        *,
        batch_size: int = BatchOptions.batch_size,
        workers: int | None = BatchOptions.workers,
        strict: bool = False,
        allow_truncated: bool = ReadOptions.allow_truncated,
        max_pixels: int = ReadOptions.max_pixels,
        pictures: str | os.PathLike[str] | None = None,
    ) -> Prediction | Iterator[Prediction]:
        """The `topk` likeliest classes of one photo, or of each of several.

        Args:
            images: a path, encoded bytes, an open binary file, a PIL image, an (H, W, 3) array or a (3, H, W) tensor
                gives one `Prediction`; a list or any other iterable of these gives a generator of them, in order,
                which reads ahead of the network but holds only a few photos at a time.
            topk: classes a photo; more than there are means all.
            batch_size: photos that the network takes at once.
            workers: threads that read and resize; None: one per core; 0 does it in this thread.
            strict: raise at the first input that cannot be read, after the records of those before it, instead of
                giving a record with `error`.
            allow_truncated: classify what is there of a file that ends early.
            max_pixels: refuse larger photos by their header.
            pictures: a folder, made if need be, for a PNG of each answered photo above a bar chart of its top-5.

        Raises:
            UsageError: a number out of range, something that is no image, `pictures` that is a file, or a network
                that does not classify.
            ImageError: with `strict`, the first input that cannot be read.
        """
        check_classifies(self.config, self.origin)
        PredictOptions(topk)  # in its range
        folder = None if pictures is None else Path(pictures)
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise UsageError(f"pictures is {folder}, but there is a file of that name. Give a folder") from None
        options = ReadOptions(self.preprocessing.exif, max_pixels, allow_truncated)
        reader = PhotoReader((self.preprocessing,), options, strict, None if folder is None else thumbnail_for_chart)
        batch = BatchOptions(batch_size, workers)
        pipeline = InputPipeline(batch.batch_size, batch.threads, 1 if strict else self.engine.max_concurrent)

        def record(p: PreparedInput, probabilities_K: Array | None) -> Prediction:
            if probabilities_K is None:
                return Prediction(p.name, error=p.error)
            if folder is not None and p.kept is not None:
                best = Prediction(p.name, self._best(probabilities_K, BARS))
                picture = folder / _picture_name(p.name)
                with errors_name(picture):
                    draw_prediction(p.kept, best).save(picture)
            return Prediction(p.name, self._best(probabilities_K, topk), truncated=p.truncated)

        return pipeline.of_photos(images, reader, self.probabilities, record)

    @overload
    def features(self, images: str | os.PathLike[str] | bytes, at: str = PRE_LOGITS, **options: Any) -> Features: ...
    @overload
    def features(self, images: Iterable[PhotoInput], at: str = PRE_LOGITS, **options: Any) -> Iterator[Features]: ...
    def features(  # type: ignore[misc]
        self,
        images: PhotoInput | Iterable[PhotoInput],
        at: str = PRE_LOGITS,
        *,
        batch_size: int = BatchOptions.batch_size,
        workers: int | None = BatchOptions.workers,
        strict: bool = False,
        allow_truncated: bool = ReadOptions.allow_truncated,
        max_pixels: int = ReadOptions.max_pixels,
    ) -> Features | Iterator[Features]:
        """What the network holds at one place of one photo, or of each of several; nothing after it is computed.

        Args:
            images: as in `predict`: one input gives one `Features`, several a generator of them.
            at: "pre_logits", what the classifier is given, (C,); "level0" to "level5", a map (C, H, W); or a node, tree
                or block by its name, such as "level4.tree1", a map too (`dla info MODEL --nodes` lists the nodes).

        The other arguments and errors are `predict`'s; and

        Raises:
            UnknownNameError: the network has no such place.
        """
        at_place = self.engine.features_at(at)
        options = ReadOptions(self.preprocessing.exif, max_pixels, allow_truncated)
        reader = PhotoReader((self.preprocessing,), options, strict)
        batch = BatchOptions(batch_size, workers)
        pipeline = InputPipeline(batch.batch_size, batch.threads, 1 if strict else self.engine.max_concurrent)

        def record(p: PreparedInput, values: Array | None) -> Features:
            return Features(p.name, values, p.error, p.truncated)

        return pipeline.of_photos(images, reader, at_place, record)

    def features_shape(self, at: str = PRE_LOGITS) -> tuple[int, ...]:
        """The shape of each photo's features at a place: (C,) or (C, H, W).

        Raises:
            UnknownNameError: the network has no such place.
        """
        black_1HW3 = np.zeros((1, *self.preprocessing.size, 3), np.uint8)
        shape: tuple[int, ...] = self.engine.features_at(at)(black_1HW3).shape
        return shape[1:]

    def probabilities(self, pixels_NHW3: Array) -> Array:
        """uint8 photos, prepared -> float32 probabilities (N, K) at the model's temperature."""
        return apply_temperature(self.engine.probabilities(pixels_NHW3), self.config.temperature)

    def _best(self, probabilities_K: Array, topk: int) -> tuple[ClassScore, ...]:
        order = np.argsort(-probabilities_K, kind="stable")[:topk]
        return tuple(
            ClassScore(rank, int(k), self.classes[k].class_id, self.classes[k].label, float(probabilities_K[k]))
            for rank, k in enumerate(order, 1)
        )


def _picture_name(name: str) -> str:
    """The photo's own name, and what tells it from others of that name in other folders."""
    stem = os.fsencode(Path(name).stem)[:200]  # the whole has to fit into 255 bytes
    return f"{os.fsdecode(stem)}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}.png"


def load(
    source: str = DEFAULT_MODEL,
    *,
    device: str = EngineOptions.device,
    cache_dir: str | None = EngineOptions.cache_dir,
    engine: str = EngineOptions.engine,
    precision: PrecisionChoice = EngineOptions.precision,
    threads: int | None = EngineOptions.threads,
    photos: int | None = EngineOptions.photos,
    progress: Progress = NO_PROGRESS,
) -> Classifier:
    """A network with everything it needs to classify photos.

    Args:
        source: `dla60`, `dla60.in1k`, `hf-hub:owner/name[@revision]`, `local-dir:PATH`, a path to a model folder
            or to a .safetensors or .pth file, or `shipped:NAME`; without it, the network that comes along.
        device: "auto", "cpu", "cuda", "mps", ...; all but the CPU are PyTorch's.
        cache_dir: where files from the hub are kept, in place of its usual cache.
        engine: "openvino", "onnx", "torch", or "auto": PyTorch on a GPU, if there is one; else the fastest one here, as
            far as that was measured for this network, and OpenVINO where it was not.
        precision: "fp32"; "bf16" where the machine has instructions for it, or "int8" where there is such a model
            (`dla export` makes it): faster, and a little different; "auto" is int8 where that was checked on a CPU
            with these instructions, else fp32.
        threads: those that compute; None: one per core.
        photos: how many there will be, if that is known. A single one is answered soonest; for many, "auto" may take a
            few seconds to measure which engine is fastest, and remembers it.
        progress: told of the bytes that the hub sends.

    Raises:
        UnknownNameError: no network, file or engine is called so.
        UsageError: the network takes another number of channels than a photo has, or the options cannot be met.
        UnavailableError: the weights cannot be had; the message says where it looked. Or the engine is not installed,
            or there is no int8 model.
        DamagedError: the weights are not what they should be.
    """
    options = EngineOptions(device, cache_dir, engine, precision, threads, photos)
    made, model = open_engine(source, options, progress)
    names = class_names(model.config)
    return Classifier(made, model.preprocessing, names, model.config, model.origin, model.digest, model.notes)


def check_classifies(config: ModelConfig, origin: str) -> None:
    """Raise a UsageError for a network that gives no probabilities of classes; features it does give."""
    if not config.num_classes:
        raise UsageError(f"{origin} has no classes, so it cannot classify. Try: dla features")
    if config.model_args.get("global_pool") == "":
        raise UsageError(f"{origin} has no pooling, so it cannot classify. Try: dla features --at level5")


def class_names(config: ModelConfig) -> tuple[ClassName, ...]:
    """The classes of a network, by its own record; a network of 1000 classes without one is ImageNet-1k's."""
    if config.label_names is None or not config.label_descriptions:
        from dla.images.labels import imagenet_classes  # here, because a network mostly has its own names
    if config.label_names is None:
        if config.num_classes == len(imagenet_classes()):
            return imagenet_classes()
        return tuple(ClassName(f"class_{k}", f"class_{k}", "") for k in range(config.num_classes))
    described = config.label_descriptions or {c.class_id: c.label for c in imagenet_classes()}
    return tuple(ClassName(n, described.get(n, n), described.get(n, n)) for n in config.label_names)


WIDTH, MOST_HEIGHT = 480, 960
ROW = 30
MARGIN = 12
INK, FAINT, BAR, PAPER = "#1b1f24", "#59636e", "#0969da", "#ffffff"


def thumbnail_for_chart(photo: Image.Image) -> Image.Image:
    """The photo as large as `draw_prediction` shows it, which needs no more of it: RGB."""
    scale = min(WIDTH / photo.width, MOST_HEIGHT / photo.height)
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    return photo.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def draw_prediction(photo: Image.Image, prediction: Prediction) -> Image.Image:
    """The photo, scaled to a fixed width, and below it a bar a class, as long as its probability."""
    image = thumbnail_for_chart(photo)
    page = Image.new("RGB", (WIDTH, image.height + 2 * MARGIN + ROW * len(prediction.classes)), PAPER)
    page.paste(image, ((WIDTH - image.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(15)
    for i, c in enumerate(prediction.classes):
        top = image.height + MARGIN + i * ROW
        draw.text((MARGIN, top), c.label, fill=INK, font=font)
        draw.text((WIDTH - MARGIN, top), f"{100 * c.probability:.1f} %", fill=FAINT, font=font, anchor="ra")
        line = (MARGIN, top + 21, WIDTH - MARGIN, top + 24)
        draw.rounded_rectangle(line, 2, fill="#eaeef2")
        length = (line[2] - line[0]) * c.probability
        draw.rounded_rectangle((line[0], line[1], line[0] + max(3, length), line[3]), 2, fill=BAR)
    return page
