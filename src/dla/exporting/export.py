"""A network as one file for other programs, kept only if it answers as PyTorch does."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dla.catalog import ModelInfo, info_of
from dla.engines.base import Engine
from dla.errors import CheckError, DlaError, OnlyTorchError, UnavailableError, UnknownNameError, UsageError
from dla.exporting.readme import readme, usage_script
from dla.exporting.targets import TARGETS, ExportSource, RunFile, Target
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
from dla.inference.classifier import check_classifies
from dla.inference.int8_store import find_quantized, not_quantized_error
from dla.inference.traced_model import for_photos, open_traced
from dla.metrics.calibration import apply_temperature
from dla.options import ExportOptions, ReadOptions, TargetName
from dla.storage.files import open_folder_aside, write_files
from dla.types import NO_PROGRESS, Array, Progress
from dla.version import __version__
from dla.weights.load import load_model
from dla.weights.spec import ModelFiles, open_files

if TYPE_CHECKING:
    from dla.engines.quantized import QuantizedModel as QuantizedModel

__all__ = ["Exported", "export"]


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote: its folder, the file in it that is the network, and how that was checked."""

    folder: Path
    file: Path
    report: ExportReport


REPORT, SCRIPT, CARD = "report.json", "use.py", "README.md"


def export(
    model: str,
    out: str | os.PathLike[str],
    to: TargetName,
    *,
    preprocessing: bool = True,
    precision: Literal["fp32", "int8"] = ExportOptions.precision,
    calibrate: str | os.PathLike[str] | None = None,
    photos: str | os.PathLike[str] | None = None,
    progress: Progress = NO_PROGRESS,
) -> Exported:
    """Write a network as one file, with `use.py`, which uses it, `README.md` and `report.json`.

    The file is compared with PyTorch before it is kept: on the same pixels every first class is the same, and no
    probability differs by more than 1e-4; of photos, pixels differ by at most 1 level and 99.5 % of the first classes
    are the same. `out` is written whole or not at all.

    Args:
        model: as in `dla.load`.
        out: a new or empty folder.
        to: "onnx", "openvino" or "pt2", what `torch.export` writes.
        preprocessing: have the file take photos, uint8 (N, H, W, 3) of any size. A "pt2" file never does: like one
            without this, it takes pixels as the network sees them.
        precision: "int8" is for "openvino": the network's int8 model, which answers a little differently. What is
            compared with the file then is that model in dla; how good it is beside fp32 its gate says.
        calibrate: photos to make the int8 model from, and to put it through its gate
            (`dla.inference.calibrate_int8.make_quantized`); it is kept for `load(precision="int8")` too. Without it
            the stored int8 model is exported.
        photos: a folder of photos to compare with, at best as it will be used on; by default some that come along.
            Where there are fewer than 60, parts of them make up the number.
        progress: told of the photos that make the int8 model and of the images that are compared.

    Raises:
        UsageError: int8 in another format than "openvino", or too few photos to calibrate; `out` is not empty, the
            network gives no probabilities, or it has a part that only PyTorch runs.
        CheckError: the file does not answer as PyTorch does: it is gone, and the report lies beside `out`. Or the int8
            model did not pass its gate.
        UnknownNameError, UnavailableError, DamagedError: as `dla.load`; or a package is not installed.
        DlaError: `out` cannot be written.
    """
    folder, target = Path(os.path.expanduser(out)), _target(to)
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    _check_precision(to, precision, calibrate)
    _check_out(folder)
    files = open_files(model)
    source, info = _open(files, preprocessing and target.takes_photos, precision == "int8" and calibrate is None)
    images = SampleImages(photos, ReadOptions(source.preprocessing.exif))
    if calibrate is not None:
        source = replace(source, quantized=_made_int8(files, calibrate, progress))
    try:
        with open_folder_aside(folder, last=REPORT) as aside:
            target.write(source, aside / target.file)
            report = _compared(target, aside / target.file, source, info, images, progress)
            text = json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n"
            if not report.passed:
                kept = folder.with_name(f"{folder.name}.{REPORT}")
                write_files({kept: text.encode()})
                raise CheckError(_failed(report, kept))
            (aside / REPORT).write_text(text, encoding="utf-8")
            (aside / SCRIPT).write_text(usage_script(to, source.preprocessing, source.takes_photos), encoding="utf-8")
            (aside / CARD).write_text(readme(to, source, info, report), encoding="utf-8")
            _check_empty(folder)  # minutes have passed since it was looked at
    except OSError as error:
        raise DlaError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return Exported(folder, folder / target.file, report)


def _target(name: TargetName) -> Target:
    if name not in TARGETS:
        raise UnknownNameError("export target", name, TARGETS, see=", ".join(TARGETS))
    target = TARGETS[name]
    missing = [package for package in target.packages if find_spec(package) is None]
    if missing:
        raise UnavailableError(f"--to {name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    return target


def _check_precision(to: TargetName, precision: str, calibrate: object) -> None:
    if precision not in ("fp32", "int8"):
        raise UsageError(f"precision is {precision!r}. Allowed: fp32, int8")
    if precision == "int8" and to != "openvino":
        raise UsageError(f"int8 is exported for OpenVINO, not as {to}. Try --to openvino")
    if precision == "fp32" and calibrate is not None:
        raise UsageError("--calibrate is for int8. Give --precision int8 too")


def _made_int8(files: ModelFiles, calibrate: str | os.PathLike[str], progress: Progress) -> QuantizedModel:
    from dla.inference.calibrate_int8 import make_quantized

    made = make_quantized(files, calibrate, progress=progress)
    progress.log(f"int8: {made.gate.sentence()}")
    kept = (
        f"kept in {made.kept}" if made.kept else "not kept, as neither the model's folder nor the cache can be written"
    )
    progress.log(f"int8: passed, and {kept} for --precision int8")
    return made.quantized


def _check_out(folder: Path) -> None:
    _check_empty(folder)
    above = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not above.is_dir():
        raise UsageError(f"{above} is a file, so that nothing can be written to {folder}. Give a new or empty folder")


def _check_empty(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is there and not empty, so it is left alone. Give a new or empty folder")


def _open(files: ModelFiles, takes_photos: bool, kept_int8: bool) -> tuple[ExportSource, ModelInfo]:
    """The network and what is known about it; with `kept_int8` the int8 model that is kept of it, too."""
    loaded = load_model(files)
    net, opened = for_photos(loaded)
    config = opened.config
    check_classifies(config, opened.origin)
    try:
        network, _ = open_traced(files, loaded=loaded)
    except OnlyTorchError as error:
        raise UsageError(f"{opened.origin} has a part that only PyTorch runs, so it cannot be exported") from error
    known = info_of(loaded)
    about = {
        "architecture": config.architecture,
        "weights": opened.origin,
        "weights_sha256": opened.digest,
        "class_ids": [class_id for class_id, _ in known.classes],
        "labels": [label for _, label in known.classes],
        "preprocessing": {
            **opened.preprocessing.to_config(),
            "exif": opened.preprocessing.exif,
            "inside": takes_photos,
        },
        "temperature": config.temperature,
        "license": known.license or "",
        "dataset": known.dataset or "",
        "dla": __version__,
    }
    quantized = find_quantized(network, opened) if kept_int8 else None
    if kept_int8 and quantized is None:
        raise not_quantized_error(files.name)
    network = network.at_temperature(config.temperature)
    return ExportSource(network, net, config.temperature, opened.preprocessing, takes_photos, about, quantized), known


def _compared(
    target: Target, file: Path, source: ExportSource, info: ModelInfo, images: SampleImages, progress: Progress
) -> ExportReport:
    engine, reference = _reference(source)

    def expect(pixels_NHW3: Array) -> Array:
        return apply_temperature(engine.probabilities(pixels_NHW3), source.temperature)

    found = FileComparison(source.about["class_ids"], source.takes_photos)
    run: RunFile = target.open(file, source.takes_photos)
    other_size = target.any_size or source.above_stride
    compare(run, expect, source.preprocessing, images, found, other_size=other_size, progress=progress)
    inside: dict[str, Any] = {"max_pixel_difference": None, "photo_disagreements": None}
    if source.takes_photos:
        inside = {
            "max_pixel_difference": max(found.pixel_differences),
            "photo_disagreements": tuple(found.photo_disagreements),
        }
    return ExportReport(
        model=info.origin or info.model, sha256=source.about["weights_sha256"], format=target.title, file=target.file,
        runtime=target.runtime, reference=reference, photos=len(images.read),
        unreadable=images.unreadable, images=found.images, batch_sizes=BATCHES,
        max_difference=max(found.differences), disagreements=tuple(found.disagreements), **inside, passed=found.passed,
        precision="fp32" if source.quantized is None else "int8",
        gates=() if source.quantized is None else tuple(gate.sentence() for gate in source.quantized.gates),
    )  # fmt: skip


def _reference(source: ExportSource) -> tuple[Engine, str]:
    """What the file is compared with: PyTorch, or the int8 model as dla runs it."""
    if source.quantized is not None:
        from dla.engines.openvino import OpenvinoEngine

        return OpenvinoEngine(source.network, "int8", quantized=source.quantized.model()), f"dla {__version__} in int8"
    import torch

    from dla.engines.torch import TorchEngine

    return TorchEngine(source.model, *source.preprocessing.scale_shift(), "cpu"), f"torch {torch.__version__}"


def _failed(report: ExportReport, kept: Path) -> str:
    count, same = report.images, report.images - len(report.disagreements)
    found = f"on the same pixels first class {same} of {count}, probabilities within {report.max_difference:.1e}"
    allowed = f"all, {DIFFERENCE:g}"
    if report.photo_disagreements is not None:
        found += f", from photos first class {count - len(report.photo_disagreements)} of {count}, pixels within "
        found += str(report.max_pixel_difference)
        allowed += f", {100 * AGREEMENT:g} %, {LEVEL}"
    reference = "PyTorch" if report.precision == "fp32" else "the int8 model"
    what = f"the {report.format} file does not answer as {reference} does, so it was not kept"
    return f"{what}: {found} (allowed: {allowed}). Report: {kept}"
