"""The export of a segmentation or boundary network to a file: open, write, compare, describe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dla.catalog import ModelInfo
from dla.engines.dense_files import DenseFile
from dla.exporting.classifier_file import (
    about_model,
    about_preprocessing,
    not_the_same,
    open_for_export,
    reference_engine,
    report_fields,
)
from dla.exporting.dense_readme import dense_readme, dense_script
from dla.exporting.dense_targets import ABOVE_STRIDE, DENSE_TARGETS, DenseSource
from dla.exporting.dense_verify import (
    BATCH,
    LOGITS_DIFFERENCE,
    SAME_PIXELS,
    DenseExportReport,
    agreement,
    compare_dense,
)
from dla.exporting.targets import TARGETS
from dla.exporting.verify import LEVEL, SampleImages
from dla.models.registry import LOGITS
from dla.options import TargetName
from dla.types import Progress
from dla.weights.load import load_dense
from dla.weights.spec import ModelFiles

if TYPE_CHECKING:
    from dla.engines.quantized import QuantizedModel as QuantizedModel


class DenseNetworkFile:
    """The export of a segmentation or boundary network. Its methods are those of `ClassifierFile`."""

    def __init__(self, to: TargetName, source: DenseSource, info: ModelInfo) -> None:
        self.to, self.source, self.info = to, source, info

    @classmethod
    def open(cls, to: TargetName, files: ModelFiles, takes_photos: bool, stored_int8: bool) -> Self:
        """Open the network that `files` hold; with `stored_int8` also its stored int8 model."""
        network, net, opened, info, quantized = open_for_export(files, load_dense(files), stored_int8)
        config, preprocessing = opened.config, opened.preprocessing
        short_side = config.dla.get("short_side")
        about = about_model(
            opened,
            info,
            task=config.task,
            preprocessing=about_preprocessing(preprocessing, takes_photos, short_side=short_side),
            palette=config.dla.get("palette"),
            threshold=config.dla.get("threshold"),
        )
        inside = short_side if takes_photos else None
        file = DenseFile(config.task, config.num_classes, inside, preprocessing.interpolation)
        return cls(to, DenseSource(network, net, preprocessing, file, takes_photos, about, quantized), info)

    def with_int8(self, quantized: QuantizedModel) -> None:
        """Export this int8 model."""
        self.source = replace(self.source, quantized=quantized)

    def write(self, folder: Path) -> None:
        """Write the file into a folder."""
        DENSE_TARGETS[self.to].write(self.source, folder / TARGETS[self.to].file)

    def compare(self, folder: Path, images: SampleImages, progress: Progress) -> DenseExportReport:
        """Compare the file in a folder with PyTorch, or with the int8 model in dla."""
        source = self.source
        engine, reference = reference_engine(source)
        least = 1 if TARGETS[self.to].any_size else ABOVE_STRIDE
        run = DENSE_TARGETS[self.to].open(folder / TARGETS[self.to].file, source.file)
        found = compare_dense(
            run, engine.features_at(LOGITS), source.preprocessing, source.file, images, least, progress
        )
        scaled = source.file.short_side is not None
        fields = report_fields(self.to, source, self.info, images, reference)
        return DenseExportReport(
            **fields,
            task=source.file.task, images=found.images, batch_sizes=(1, BATCH), max_difference=max(found.differences),
            same_pixels=found.same / found.pixels,
            max_pixel_difference=max(found.pixel_differences) if scaled else None,
            from_photos=found.same_from_photo / found.pixels if scaled else None,
            passed=found.passed(fields["precision"]),
        )  # fmt: skip

    def failed(self, report: DenseExportReport) -> str:
        """Return why the file was not kept."""
        measured = f"from the same pixels {100 * report.same_pixels:.3f} % of the answers are equal and logits within "
        measured += f"{report.max_difference:.1e} of the largest"
        allowed = f"{100 * SAME_PIXELS:g} %, {LOGITS_DIFFERENCE:g}"
        if report.from_photos is not None:
            measured += f", from photos {100 * report.from_photos:.3f} %, pixels within {report.max_pixel_difference}"
            allowed += f", {100 * agreement(report.precision):g} %, {LEVEL}"
        return f"{not_the_same(report.format, report.precision)}: {measured} (allowed: {allowed})"

    def script(self) -> str:
        """Return the text of use.py."""
        return dense_script(self.to, self.source)

    def card(self, report: DenseExportReport) -> str:
        """Return the text of README.md."""
        return dense_readme(self.to, self.source, self.info, report)
