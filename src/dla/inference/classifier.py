"""Classify photos or extract their features: one record per input, in input order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dla.engines.base import Engine
from dla.errors import InputError, UsageError
from dla.images.preprocessing import Preprocessing
from dla.inference.open_engine import open_engine
from dla.inference.pipeline import InputPipeline, PhotoInput, PhotoReader, PreparedInput
from dla.metrics.calibration import apply_temperature
from dla.models.registry import PRE_LOGITS
from dla.options import BatchOptions, EngineOptions, ExplainOptions, PrecisionChoice, PredictOptions, ReadOptions
from dla.storage.files import errors_name
from dla.types import DEFAULT_MODEL, NO_PROGRESS, Array, ClassName, Progress
from dla.weights.model_folder import ModelConfig, check_task

if TYPE_CHECKING:
    from dla.inference.edge_detector import EdgeDetector
    from dla.inference.explain import Activations, Explainer, Explanation
    from dla.inference.segmenter import Segmenter

PREDICT_SCHEMA = "dla.predict/1"


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One predicted class. `probability` is from 0 to 1; `index` is the position in the network's output."""

    rank: int
    index: int
    class_id: str
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one input: classes by descending probability, or the error.

    `path` is the path as passed, or a name such as "input 3" for an input without one. `truncated` means that the file
    ended early and only the part before its end was classified.
    """

    path: str
    classes: tuple[ClassScore, ...] = ()
    error: InputError | None = None
    truncated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the record as in JSON (docs/formats.md)."""
        record: dict[str, Any] = {"schema": PREDICT_SCHEMA, "path": self.path}
        if self.error is not None:
            return record | {"error": asdict(self.error)}
        if self.truncated:
            record["truncated"] = True
        return record | {"predictions": [asdict(c) for c in self.classes]}


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """The features of one input at one node of a network, float32 (C,) or (C, H, W), or the error.

    `path` and `truncated` are as in `Prediction`.
    """

    path: str
    values: np.ndarray[Any, np.dtype[np.float32]] | None = None
    error: InputError | None = None
    truncated: bool = False


BARS = 5


@dataclass(frozen=True)
class Classifier:
    """A network with its preprocessing and class names, ready for photos. Returned by `dla.load`.

    `sha256` is the hash of the weight file.
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
        max_bytes: int = ReadOptions.max_bytes,
        pictures: str | os.PathLike[str] | None = None,
    ) -> Prediction | Iterator[Prediction]:
        """Return the `topk` most probable classes of one photo, or of each of several.

        Args:
            images: a path, encoded bytes, an open binary file, a PIL image, an (H, W, 3) array or a (3, H, W) tensor
                returns one `Prediction`. A list or another iterable of these returns a generator of predictions in the
                same order, which reads ahead of the network but holds only a few photos at a time.
            topk: classes per photo, at most all classes of the network.
            batch_size: photos per batch.
            workers: threads that read and resize photos; None: one per core; 0: the calling thread.
            strict: raise at the first input that cannot be read, after the records before it, instead of returning a
                record with `error`.
            allow_truncated: classify the readable part of a file that ends early.
            max_pixels: refuse photos with more pixels, by the size in their header.
            max_bytes: refuse larger files, before they are read.
            pictures: a folder, created if needed, for a PNG of each classified photo with a bar chart of its top-5.

        Raises:
            UsageError: a number is out of range, an input is not an image, `pictures` is a file, or the network does
                not classify.
            ImageError: with `strict`, an input cannot be read.
        """
        check_classifies(self.config, self.origin)
        PredictOptions(topk)  # checks the range
        folder = None if pictures is None else Path(pictures)
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise UsageError(f"pictures is {folder}, but there is a file of that name. Give a folder") from None
        options = ReadOptions(self.preprocessing.exif, max_pixels, allow_truncated, max_bytes)
        reader = PhotoReader((self.preprocessing,), options, strict, None if folder is None else thumbnail_for_chart)
        batch = BatchOptions(batch_size, workers)
        pipeline = InputPipeline(batch.batch_size, batch.threads, 1 if strict else self.engine.max_concurrent)

        def record(p: PreparedInput, probabilities_K: Array | None) -> Prediction:
            if probabilities_K is None:
                return Prediction(p.name, error=p.error)
            if folder is not None and p.kept is not None:
                best = Prediction(p.name, self.best_classes(probabilities_K, BARS))
                picture = folder / f"{output_name(p.name)}.png"
                with errors_name(picture):
                    draw_prediction(p.kept, best).save(picture)
            return Prediction(p.name, self.best_classes(probabilities_K, topk), truncated=p.truncated)

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
        max_bytes: int = ReadOptions.max_bytes,
    ) -> Features | Iterator[Features]:
        """Return the features of one photo, or of each of several, at a feature node. Nothing after it is computed.

        Args:
            images: as in `predict`: one input returns one `Features`, several a generator of them.
            at: "pre_logits", the input of the classifier, (C,); "level0" to "level5", a map (C, H, W); or the name of a
                node, tree or block, such as "level4.tree1", also a map (`dla info MODEL --nodes` lists the nodes).
            batch_size, workers, strict, allow_truncated, max_pixels, max_bytes: as in `predict`.

        Raises:
            UnknownNameError: the network has no such node.
            UsageError: a number is out of range, or an input is not an image.
            ImageError: with `strict`, an input cannot be read.
        """
        compute = self.engine.features_at(at)
        options = ReadOptions(self.preprocessing.exif, max_pixels, allow_truncated, max_bytes)
        reader = PhotoReader((self.preprocessing,), options, strict)
        batch = BatchOptions(batch_size, workers)
        pipeline = InputPipeline(batch.batch_size, batch.threads, 1 if strict else self.engine.max_concurrent)

        def record(p: PreparedInput, values: Array | None) -> Features:
            return Features(p.name, values, p.error, p.truncated)

        return pipeline.of_photos(images, reader, compute, record)

    def features_shape(self, at: str = PRE_LOGITS) -> tuple[int, ...]:
        """Return the shape of a photo's features at a node: (C,) or (C, H, W).

        Raises:
            UnknownNameError: the network has no such node.
        """
        black_1HW3 = np.zeros((1, *self.preprocessing.size, 3), np.uint8)
        shape: tuple[int, ...] = self.engine.features_at(at)(black_1HW3).shape
        return shape[1:]

    @cached_property
    def explainer(self) -> Explainer:
        """What explains this network's predictions."""
        from dla.inference.explain import Explainer  # here, because few runs explain

        check_classifies(self.config, self.origin)
        return Explainer(self.engine, self.preprocessing, self.classes, self.config)

    @overload
    def explain(
        self, images: str | os.PathLike[str] | bytes, class_id: str | None = ..., **options: Any
    ) -> Explanation: ...
    @overload
    def explain(
        self, images: Iterable[PhotoInput], class_id: str | None = ..., **options: Any
    ) -> Iterator[Explanation]: ...
    def explain(
        self,
        images: PhotoInput | Iterable[PhotoInput],
        class_id: str | None = ExplainOptions.class_id,
        *,
        against: str | None = ExplainOptions.against,
        at: str = ExplainOptions.at,
        **options: Any,
    ) -> Explanation | Iterator[Explanation]:
        """Return which places of a photo speak for a class, of one photo or of each of several.

        Args:
            images: as in `predict`: one input returns one `Explanation`, several a generator of them.
            class_id: the class, by id or unique label; None: the most probable one.
            against: explain why the class rather than this one.
            at: "level5", or another level or node, which is explained by Grad-CAM.
            options: `workers`, `strict`, `allow_truncated`, `max_pixels` and `max_bytes`, as in `predict`.

        Raises:
            UnknownNameError: the network has no such class or node.
            UsageError, ImageError: several classes have this label; and as `predict`.
        """
        return self.explainer.explain(images, ExplainOptions(class_id, against, at), options)

    def activations(
        self, images: PhotoInput | Iterable[PhotoInput], **options: Any
    ) -> Activations | Iterator[Activations]:
        """Return the mean activation of every level and node, from one forward pass in PyTorch; else as `explain`."""
        return self.explainer.activations(images, options)

    def probabilities(self, pixels_NHW3: Array) -> Array:
        """Return float32 probabilities (N, K), at the model's temperature, for preprocessed uint8 photos."""
        return apply_temperature(self.engine.probabilities(pixels_NHW3), self.config.temperature)

    def best_classes(self, probabilities_K: Array, topk: int) -> tuple[ClassScore, ...]:
        """Return the `topk` classes with the highest of these probabilities, best first."""
        order = np.argsort(-probabilities_K, kind="stable")[:topk]
        return tuple(
            ClassScore(rank, int(k), self.classes[k].class_id, self.classes[k].label, float(probabilities_K[k]))
            for rank, k in enumerate(order, 1)
        )


def output_name(name: str) -> str:
    """Return a photo's file name, without ending and with a hash of its path: other folders may have equal names."""
    stem = os.fsencode(Path(name).stem)[:200]  # file names are limited to 255 bytes
    return f"{os.fsdecode(stem)}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


@overload
def load(source: str = ..., *, task: Literal["segment"], **options: Any) -> Segmenter: ...
@overload
def load(source: str = ..., *, task: Literal["edges"], **options: Any) -> EdgeDetector: ...
@overload
def load(source: str = ..., *, task: Literal["classify"], **options: Any) -> Classifier: ...
@overload
def load(source: str = ..., *, task: str | None = ..., **options: Any) -> Any: ...
def load(  # type: ignore[misc]  # the overloads leave the options to this signature
    source: str = DEFAULT_MODEL,
    *,
    task: str | None = None,
    device: str = EngineOptions.device,
    cache_dir: str | None = EngineOptions.cache_dir,
    engine: str = EngineOptions.engine,
    precision: PrecisionChoice = EngineOptions.precision,
    threads: int | None = EngineOptions.threads,
    photos: int | None = EngineOptions.photos,
    progress: Progress = NO_PROGRESS,
) -> Classifier | Segmenter | EdgeDetector:
    """Load a network with everything it needs for photos: by its task a `Classifier`, `Segmenter` or `EdgeDetector`.

    Args:
        source: `dla60`, `dla60.in1k`, `hf-hub:owner/name[@revision]`, `local-dir:PATH`, a path to a model folder
            or to a .safetensors or .pth file, or `shipped:NAME`; by default the built-in network.
        task: the task that it must be for: "classify", "segment" or "edges"; None: any.
        device: "auto", "cpu", "cuda", "mps", ...; devices other than the CPU need the engine "torch".
        cache_dir: the folder for files from the hub, in place of its default cache.
        engine: "openvino", "onnx", "torch", or "auto": PyTorch on a GPU, if there is one; else the engine that was
            measured as the fastest for this network on this machine; else OpenVINO.
        precision: "fp32"; "bf16" where the machine has instructions for it; "int8" where there is an int8 model (made
            by `dla export`); "auto": int8 if that model passed its check on a CPU with the same instructions, else
            fp32. Reduced precisions are faster, and results differ a little.
        threads: compute threads; None: one per core.
        photos: the expected number of photos, if known. For one photo, "auto" takes the engine with the shortest start;
            for many it may measure for a few seconds which engine is fastest, and caches the result.
        progress: receives the bytes downloaded from the hub.

    Raises:
        UnknownNameError: no network, file or engine has this name.
        UsageError: the network is for another task or does not take 3 channels, or the options do not fit together or
            this machine.
        UnavailableError: the weights are not available (the message says where they were looked for), the engine is
            not installed, or there is no int8 model.
        DamagedError: the weights are damaged or do not fit the network.
    """
    options = EngineOptions(device, cache_dir, engine, precision, threads, photos)
    opened, model = open_engine(source, options, progress)
    config, origin = model.config, model.origin
    if task is not None:
        check_task(config, origin, task)
    kind: type[Classifier | Segmenter | EdgeDetector] = Classifier
    if config.task == "segment":
        from dla.inference.segmenter import Segmenter

        kind = Segmenter
    elif config.task == "edges":
        from dla.inference.edge_detector import EdgeDetector  # needs SciPy

        kind = EdgeDetector
    return kind(opened, model.preprocessing, class_names(config), config, origin, model.digest, model.notes)


def check_classifies(config: ModelConfig, origin: str) -> None:
    """Check that a network classifies.

    Raises:
        UsageError: it has no classes or no pooling, so that it only computes features.
    """
    if not config.num_classes:
        raise UsageError(f"{origin} has no classes, so it cannot classify. Try: dla features")
    if config.model_args.get("global_pool") == "":
        raise UsageError(f"{origin} has no pooling, so it cannot classify. Try: dla features --at level5")


def class_names(config: ModelConfig) -> tuple[ClassName, ...]:
    """Return the classes in output order, from the config; without names there, 1000 classes are ImageNet-1k's."""
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
    """Return the photo in RGB, scaled to the size that `draw_prediction` shows."""
    scale = min(WIDTH / photo.width, MOST_HEIGHT / photo.height)
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    return photo.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def draw_prediction(photo: Image.Image, prediction: Prediction) -> Image.Image:
    """Draw the photo, scaled to a fixed width, above a bar chart of its class probabilities."""
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
        if length >= 1:  # a shorter bar would be a dot that looks like a value
            draw.rounded_rectangle((line[0], line[1], line[0] + length, line[3]), 2, fill=BAR)
    return page
