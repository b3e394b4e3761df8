"""The export of a classifier to a file: open, write, compare, describe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dla.catalog import ModelInfo, info_of
from dla.engines.base import Engine
from dla.engines.graph import Network
from dla.errors import OnlyTorchError, UsageError
from dla.exporting.dense_targets import DenseSource
from dla.exporting.readme import readme, usage_script
from dla.exporting.targets import TARGETS, ExportSource, RunFile
from dla.exporting.verify import (
    AGREEMENT,
    BATCHES,
    DIFFERENCE,
    LEVEL,
    ExportReport,
    FileComparison,
    SampleImages,
    compare,
)
from dla.images.preprocessing import Preprocessing
from dla.inference.classifier import check_classifies
from dla.inference.int8_store import find_quantized, not_quantized_error
from dla.inference.traced_model import TracedModel, for_photos, open_traced
from dla.metrics.calibration import apply_temperature
from dla.options import TargetName
from dla.types import Array, Progress
from dla.version import __version__
from dla.weights.load import LoadedModel, N, load_model
from dla.weights.spec import ModelFiles

if TYPE_CHECKING:
    from dla.engines.quantized import QuantizedModel as QuantizedModel


class ClassifierFile:
    """The export of a classifier."""

    def __init__(self, to: TargetName, source: ExportSource, info: ModelInfo) -> None:
        self.to, self.source, self.info = to, source, info

    @classmethod
    def open(cls, to: TargetName, files: ModelFiles, takes_photos: bool, stored_int8: bool) -> Self:
        """Open the network that `files` hold; with `stored_int8` also its stored int8 model.

        Raises:
            UsageError: it has a part that only PyTorch runs, or does not classify.
        """
        loaded = load_model(files)
        check_classifies(loaded.config, loaded.origin)
        network, net, opened, info, quantized = open_for_export(files, loaded, stored_int8)
        preprocessing, temperature = opened.preprocessing, opened.config.temperature
        about = about_model(
            opened, info, preprocessing=about_preprocessing(preprocessing, takes_photos), temperature=temperature
        )
        source = ExportSource(
            network.at_temperature(temperature), net, temperature, preprocessing, takes_photos, about, quantized
        )
        return cls(to, source, info)

    def with_int8(self, quantized: QuantizedModel) -> None:
        """Export this int8 model."""
        self.source = replace(self.source, quantized=quantized)

    def write(self, folder: Path) -> None:
        """Write the file into a folder."""
        target = TARGETS[self.to]
        target.write(self.source, folder / target.file)

    def compare(self, folder: Path, images: SampleImages, progress: Progress) -> ExportReport:
        """Compare the file in a folder with PyTorch, or with the int8 model in dla."""
        target, source = TARGETS[self.to], self.source
        engine, reference = reference_engine(source)

        def expect(pixels_NHW3: Array) -> Array:
            return apply_temperature(engine.probabilities(pixels_NHW3), source.temperature)

        result = FileComparison(source.about["class_ids"], source.takes_photos)
        run: RunFile = target.open(folder / target.file, source.takes_photos)
        other_size = target.any_size or source.above_stride
        compare(run, expect, source.preprocessing, images, result, other_size=other_size, progress=progress)
        inside: dict[str, Any] = {"max_pixel_difference": None, "photo_disagreements": None}
        if source.takes_photos:
            inside = {
                "max_pixel_difference": max(result.pixel_differences),
                "photo_disagreements": tuple(result.photo_disagreements),
            }
        return ExportReport(
            **report_fields(self.to, source, self.info, images, reference),
            images=result.images, batch_sizes=BATCHES,
            max_difference=max(result.differences), disagreements=tuple(result.disagreements), **inside,
            passed=result.passed,
        )  # fmt: skip

    def failed(self, report: ExportReport) -> str:
        """Return why the file was not kept."""
        count, same = report.images, report.images - len(report.disagreements)
        measured = f"on the same pixels first class {same} of {count}, probabilities within {report.max_difference:.1e}"
        allowed = f"all, {DIFFERENCE:g}"
        if report.photo_disagreements is not None:
            measured += (
                f", from photos first class {count - len(report.photo_disagreements)} of {count}, pixels within "
            )
            measured += str(report.max_pixel_difference)
            allowed += f", {100 * AGREEMENT:g} %, {LEVEL}"
        return f"{not_the_same(report.format, report.precision)}: {measured} (allowed: {allowed})"

    def script(self) -> str:
        """Return the text of use.py."""
        return usage_script(self.to, self.source.preprocessing, self.source.takes_photos)

    def card(self, report: ExportReport) -> str:
        """Return the text of README.md."""
        return readme(self.to, self.source, self.info, report)


def report_fields(
    to: TargetName, source: ExportSource | DenseSource, info: ModelInfo, images: SampleImages, reference: str
) -> dict[str, Any]:
    """Return the fields of a report that every network has."""
    target, quantized = TARGETS[to], source.quantized
    return {
        "model": info.origin or info.model,
        "sha256": source.about["weights_sha256"],
        "format": target.title,
        "file": target.file,
        "runtime": target.runtime,
        "reference": reference,
        "photos": len(images.read),
        "unreadable": images.unreadable,
        "precision": "fp32" if quantized is None else "int8",
        "gates": () if quantized is None else tuple(gate.sentence() for gate in quantized.gates),
    }


def not_the_same(format_: str, precision: str) -> str:
    """Return the beginning of the message about a file that is not kept."""
    reference = "PyTorch" if precision == "fp32" else "the int8 model"
    return f"the {format_} file does not compute the same as {reference}, so it was removed"


def open_for_export(
    files: ModelFiles, loaded: LoadedModel[N], stored_int8: bool
) -> tuple[Network, N, TracedModel, ModelInfo, QuantizedModel | None]:
    """Open a loaded network as operations and in PyTorch, with its description, and its stored int8 model on request.

    Raises:
        UsageError: it has a part that only PyTorch runs.
        UnavailableError: it has no int8 model.
    """
    net, opened = for_photos(loaded)
    try:
        network, _ = open_traced(files, loaded=loaded)
    except OnlyTorchError as error:
        raise UsageError(f"{opened.origin} has a part that only PyTorch runs, so it cannot be exported") from error
    quantized = find_quantized(network, opened) if stored_int8 else None
    if stored_int8 and quantized is None:
        raise not_quantized_error(files.name)
    return network, net, opened, info_of(loaded), quantized


def about_model(opened: TracedModel, known: ModelInfo, **more: Any) -> dict[str, Any]:
    """Return what a file says of its network; `more` are facts of its kind."""
    config = opened.config
    return {
        "architecture": config.architecture,
        "weights": opened.origin,
        "weights_sha256": opened.digest,
        "class_ids": [class_id for class_id, _ in known.classes],
        "labels": [label for _, label in known.classes],
        "license": known.license or "",
        "dataset": known.dataset or "",
        "dla": __version__,
        **more,
    }


def about_preprocessing(preprocessing: Preprocessing, takes_photos: bool, **more: Any) -> dict[str, Any]:
    """Return what a file says of its preprocessing."""
    return {**preprocessing.to_config(), "exif": preprocessing.exif, "inside": takes_photos, **more}


def reference_engine(source: ExportSource | DenseSource) -> tuple[Engine, str]:
    """Return the engine that the file is compared with, PyTorch or the int8 model in dla, and its name."""
    if source.quantized is not None:
        from dla.engines.openvino import OpenvinoEngine

        return OpenvinoEngine(source.network, "int8", quantized=source.quantized.model()), f"dla {__version__} in int8"
    import torch

    from dla.engines.torch import TorchEngine

    return TorchEngine(source.model, *source.preprocessing.scale_shift(), "cpu"), f"torch {torch.__version__}"
