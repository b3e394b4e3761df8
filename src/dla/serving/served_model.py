"""A model as the service runs it: what can be asked of it, warmed up before the first photo."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dla.catalog import info_of_network
from dla.errors import InputError, UsageError
from dla.inference.classifier import Classifier, Prediction, check_classifies
from dla.inference.dense_model import DenseModel
from dla.inference.pipeline import PhotoInput, PhotoReader, PreparedInput
from dla.inference.segment_files import mask_png
from dla.inference.segmenter import Segmentation
from dla.models.registry import PRE_LOGITS
from dla.options import ReadOptions, ServeOptions
from dla.serving.answers import to_json
from dla.serving.queue import Job, Work
from dla.types import Array
from dla.weights.spec import open_files

if TYPE_CHECKING:
    from dla.inference.edge_detector import Boundaries  # needs SciPy

FEATURES_SCHEMA = "dla.features/1"
Network = Classifier | DenseModel
JSON, NPY, PNG = "application/json", "application/x-npy", "image/png"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer for one photo: the bytes of its record, or why it has none, as in the record."""

    body: bytes
    error: InputError | None = None
    media_type: str = JSON


class BatchWork(Work):
    """Photos of one size, computed together."""

    decodes = True

    def __init__(self, reader: PhotoReader, compute: Callable[[Array], Array], most: int) -> None:
        self.reader, self.pixels, self.most = reader, compute, most

    def read(self, name: str, photo: PhotoInput) -> PreparedInput:
        """Prepare a photo for the network."""
        return self.reader((name, photo))

    def compute(self, jobs: Sequence[Job]) -> Sequence[Any]:
        """Return a row for each photo."""
        return list(self.pixels(np.stack([job.prepared.views[0] for job in jobs if job.prepared is not None])))


class PhotoWork(Work):
    """One photo at a time, read and answered by the network itself."""

    def __init__(self, ask: Callable[[PhotoInput], Any]) -> None:
        self.ask = ask

    def compute(self, jobs: Sequence[Job]) -> Sequence[Any]:
        """Return the record of the photo."""
        return [self.ask(job.photo) for job in jobs]


class ServedModel:
    """A loaded network, with everything that answers about it, so that one answer never mixes two models."""

    def __init__(self, network: Network, options: ServeOptions, info: Mapping[str, Any]) -> None:
        self.network, self.options, self.info = network, options, info
        self.config, self.task = network.config, network.config.task
        self.feature_works: dict[str, BatchWork] = {}

    @cached_property
    def doors(self) -> tuple[str, ...]:
        """The names below /v1/ that this model answers."""
        if not isinstance(self.network, Classifier):
            return (self.task,)
        can_classify = bool(self.config.num_classes) and self.config.model_args.get("global_pool") != ""
        return ("predict",) * can_classify + ("features",) + ("explain",) * can_classify

    @cached_property
    def limits(self) -> ReadOptions:
        """How photos are read."""
        largest = int(self.options.max_megapixels * 1e6)
        return ReadOptions(self.network.preprocessing.exif, largest, max_bytes=self.options.max_body * 2**20)

    @property
    def reading(self) -> dict[str, Any]:
        """The same as arguments of a network."""
        return {"workers": 0, "max_pixels": self.limits.max_pixels, "max_bytes": self.limits.max_bytes}

    @cached_property
    def reader(self) -> PhotoReader:
        """What prepares photos."""
        return PhotoReader((self.network.preprocessing,), self.limits)

    @cached_property
    def prediction(self) -> BatchWork:
        """The work of `predict`."""
        network = self.network
        assert isinstance(network, Classifier)
        check_classifies(network.config, network.origin)
        return BatchWork(self.reader, network.probabilities, self.options.max_batch)

    def features(self, at: str) -> BatchWork:
        """Return the work of `features` at a node.

        Raises:
            UsageError: the network has no such node.
        """
        if at not in self.feature_works:
            compute = self.network.engine.features_at(at)
            self.feature_works[at] = BatchWork(self.reader, compute, self.options.max_batch)
        return self.feature_works[at]

    def warm_up(self) -> None:
        """Compile for one photo and for many, so that the first request is as fast as the others."""
        if isinstance(self.network, Classifier):
            compute = self.network.probabilities if "predict" in self.doors else self.features(PRE_LOGITS).pixels
            for count in sorted({1, self.options.max_batch}):
                compute(np.zeros((count, *self.network.preprocessing.size, 3), np.uint8))
        else:
            side = self.network.trained_side or 256
            self.ask_dense(Image.new("RGB", (side, side)))

    def ask_dense(self, photo: PhotoInput, **options: Any) -> Segmentation | Boundaries:
        """Return the record of a segmentation or boundary network."""
        network: Any = self.network
        record: Segmentation | Boundaries = network(photo, **options, **self.reading)
        return record


def prediction_answer(network: Classifier, topk: int, p: PreparedInput, row: Array | None) -> Answer:
    """Return the record of `dla predict`."""
    classes = () if row is None else network.best_classes(row, topk)
    return Answer(to_json(Prediction(p.name, classes, p.error, p.truncated).to_dict()), p.error)


def features_answer(at: str, media_type: str, p: PreparedInput, values: Array | None) -> Answer:
    """Return features as JSON, or as a file of NumPy's."""
    record: dict[str, Any] = {"schema": FEATURES_SCHEMA, "path": p.name, "at": at}
    if values is None:
        return _failed(record, p.error)
    if media_type == NPY:
        file = io.BytesIO()
        np.save(file, values, allow_pickle=False)
        return Answer(file.getvalue(), media_type=NPY)
    if p.truncated:
        record["truncated"] = True
    return Answer(to_json({**record, "shape": values.shape, "values": values.tolist()}))


def record_answer(media_type: str, p: PreparedInput, record: Any) -> Answer:
    """Return the record of a photo as JSON, or the picture of a mask, of boundaries or of an explanation."""
    if record.error is not None or media_type != PNG:
        return Answer(to_json(record.to_dict()), record.error)
    if isinstance(record, Segmentation):
        assert record.mask is not None
        return Answer(mask_png(record.mask, record.palette), media_type=PNG)
    image = Image.fromarray(record.probability) if hasattr(record, "thin") else record.overlay()
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=4)
    return Answer(file.getvalue(), media_type=PNG)


def _failed(record: dict[str, Any], error: InputError | None) -> Answer:
    assert error is not None
    return Answer(to_json(record | {"error": {"code": error.code, "message": error.message}}), error)


def model_name(source: str) -> str:
    """Return the name of a model in the Open Inference Protocol: that of its folder, file or repository."""
    parsed = open_files(source).source
    if parsed.kind == "hub":
        return source if "/" not in source else parsed.where.partition("/")[2]
    if parsed.name:
        return parsed.name.partition(":")[2]
    path = Path(os.path.abspath(parsed.where))
    return path.stem if parsed.kind == "file" else path.name


def files_of(source: str) -> tuple[tuple[str, int, int, int], ...]:
    """Return name, size, time and number of each file of a model's folder; of one that is on the hub, none."""
    parsed = open_files(source).source
    if parsed.kind == "hub":
        return ()
    where = Path(parsed.where)
    paths = sorted(where.iterdir()) if parsed.kind == "folder" else [where]
    return tuple((path.name, (s := path.stat()).st_size, s.st_mtime_ns, s.st_ino) for path in paths if path.is_file())


def load_served(source: str, load: Callable[[], Network], options: ServeOptions) -> ServedModel:
    """Load a model and warm it up.

    Raises:
        UsageError: its files changed meanwhile, so that they may not belong together.
        DlaError: as `dla.load`.
    """
    before = files_of(source)
    network = load()
    model = ServedModel(network, options, info_of_network(source, network).to_dict())
    model.warm_up()
    if files_of(source) != before:
        raise UsageError(f"the files of {source} changed while they were read. Try again once they are complete")
    return model
