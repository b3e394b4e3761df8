"""Export a network to one file for other programs, written only if it computes the same as PyTorch."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from dla.catalog import ModelInfo, info_of
from dla.engines.base import Engine
from dla.engines.quantized import QuantizedModel
from dla.errors import CheckError, DlaError, OnlyTorchError, UnavailableError, UnknownNameError, UsageError, pip_line
from dla.exporting import verify
from dla.exporting.readme import readme, usage_script
from dla.exporting.targets import TARGETS, ExportSource, RunFile, Target
from dla.exporting.verify import ExportReport, FileComparison, SampleImages, compare
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


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export: the folder, the network's file in it, and the report of its check."""

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
    """Write a network to one file in a folder, with `use.py`, an example that runs it, `README.md` and `report.json`.

    The file is compared with PyTorch before it is kept. On the same pixels every first class is the same, and no
    probability differs by more than 1e-4; preprocessed photos differ by at most 1 level per pixel, and 99.5 % of their
    first classes are the same. `out` is written completely or not at all.

    Args:
        model: as in `dla.load`.
        out: a new or empty folder.
        to: "onnx", "openvino" or "pt2", the format of `torch.export`.
        preprocessing: include the preprocessing, so that the file takes photos, uint8 (N, H, W, 3) of any size. A
            "pt2" file never includes it: it takes preprocessed pixels.
        precision: "int8", for "openvino" only, exports the network's int8 model, whose results differ a little. The
            file is then compared with that model in dla; its gate compares it with fp32.
        calibrate: photos to make and check the int8 model with (`dla.inference.calibrate_int8.make_quantized`); it is
            also stored for `load(precision="int8")`. Without it, the stored int8 model is exported.
        photos: a folder of photos to compare with, ideally similar to those it will classify; by default photos of the
            package. If there are fewer than 60, crops of them make up the number.
        progress: receives the photos of the calibration and the images of the comparison.

    Raises:
        UsageError: int8 for another format than "openvino", too few photos to calibrate, a folder `out` that is not
            empty, a network that does not classify, or one with a part that only PyTorch runs.
        CheckError: the file does not compute the same as PyTorch; it is removed, and the report is next to `out`. Or
            the int8 model did not pass its gate.
        UnknownNameError, UnavailableError, DamagedError: as `dla.load`; or a package is not installed.
        DlaError: `out` cannot be written.
    """
    if to not in TARGETS:
        raise UnknownNameError("export target", to, TARGETS, see=", ".join(TARGETS))
    folder, target = Path(os.path.expanduser(out)), TARGETS[to]
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    _check_precision(to, precision, calibrate)
    _check_packages(to, preprocessing, calibrate is not None)
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
                report_file = folder.with_name(f"{folder.name}.{REPORT}")
                write_files({report_file: text.encode()})
                raise CheckError(_failed(report, report_file))
            (aside / REPORT).write_text(text, encoding="utf-8")
            (aside / SCRIPT).write_text(usage_script(to, source.preprocessing, source.takes_photos), encoding="utf-8")
            (aside / CARD).write_text(readme(to, source, info, report), encoding="utf-8")
            _check_empty(folder)  # again: minutes have passed since the first check
    except OSError as error:
        raise DlaError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return Exported(folder, folder / target.file, report)


def _check_packages(to: TargetName, preprocessing: bool, calibrate: bool) -> None:
    needed = [*TARGETS[to].packages, *(["nncf"] if calibrate else [])]
    if to == "openvino" and preprocessing:
        needed.append("onnx")
    missing = [package for package in needed if find_spec(package) is None]
    if missing:
        otherwise = ", or use --no-preprocessing" if to == "openvino" and missing == ["onnx"] else ""
        raise UnavailableError(f"--to {to} needs {' and '.join(missing)}: {pip_line('export')}{otherwise}")


def _check_precision(to: TargetName, precision: str, calibrate: object) -> None:
    if precision not in ("fp32", "int8"):
        raise UsageError(f"precision is {precision!r}. Allowed: fp32, int8")
    if precision == "int8" and to != "openvino":
        raise UsageError(f"int8 is exported for OpenVINO, not as {to}. Try --to openvino")
    if precision == "fp32" and calibrate is not None:
        raise UsageError("--calibrate is for int8. Give --precision int8 too")


def _made_int8(files: ModelFiles, calibrate: str | os.PathLike[str], progress: Progress) -> QuantizedModel:
    from dla.inference.calibrate_int8 import make_quantized

    result = make_quantized(files, calibrate, progress=progress)
    progress.log(f"int8: {result.gate.sentence()}")
    place = "not stored, as neither the model's folder nor the cache can be written"
    if result.stored_in:
        place = f"stored in {result.stored_in}"
    progress.log(f"int8: passed, and {place} for --precision int8")
    return result.quantized


def _check_out(folder: Path) -> None:
    _check_empty(folder)
    above = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not above.is_dir():
        raise UsageError(f"{above} is a file, so nothing can be written to {folder}. Give a new or empty folder")


def _check_empty(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} exists and is not empty, so it is left alone. Give a new or empty folder")


def _open(files: ModelFiles, takes_photos: bool, stored_int8: bool) -> tuple[ExportSource, ModelInfo]:
    """Open the network and its description; with `stored_int8` also its stored int8 model."""
    loaded = load_model(files)
    net, opened = for_photos(loaded)
    config = opened.config
    check_classifies(config, opened.origin)
    try:
        network, _ = open_traced(files, loaded=loaded)
    except OnlyTorchError as error:
        raise UsageError(f"{opened.origin} has a part that only PyTorch runs, so it cannot be exported") from error
    known, p = info_of(loaded), opened.preprocessing
    about = {
        "architecture": config.architecture,
        "weights": opened.origin,
        "weights_sha256": opened.digest,
        "class_ids": [class_id for class_id, _ in known.classes],
        "labels": [label for _, label in known.classes],
        "preprocessing": {**p.to_config(), "exif": p.exif, "inside": takes_photos},
        "temperature": config.temperature,
        "license": known.license or "",
        "dataset": known.dataset or "",
        "dla": __version__,
    }
    quantized = find_quantized(network, opened) if stored_int8 else None
    if stored_int8 and quantized is None:
        raise not_quantized_error(files.name)
    network = network.at_temperature(config.temperature)
    return ExportSource(network, net, config.temperature, p, takes_photos, about, quantized), known


def _compared(
    target: Target, file: Path, source: ExportSource, info: ModelInfo, images: SampleImages, progress: Progress
) -> ExportReport:
    engine, reference = _reference(source)

    def expect(pixels_NHW3: Array) -> Array:
        return apply_temperature(engine.probabilities(pixels_NHW3), source.temperature)

    result = FileComparison(source.about["class_ids"], source.takes_photos)
    run: RunFile = target.open(file, source.takes_photos)
    other_size = target.any_size or source.above_stride
    compare(run, expect, source.preprocessing, images, result, other_size=other_size, progress=progress)
    return ExportReport(
        model=info.origin or info.model, sha256=source.about["weights_sha256"], format=target.title, file=target.file,
        runtime=target.runtime, reference=reference, photos=len(images.read),
        unreadable=images.unreadable, images=result.images, batch_sizes=verify.BATCHES,
        max_difference=max(result.differences), disagreements=tuple(result.disagreements),
        max_pixel_difference=max(result.pixel_differences, default=None),
        photo_disagreements=tuple(result.photo_disagreements) if source.takes_photos else None,
        passed=result.passed,
        precision="fp32" if source.quantized is None else "int8",
        gates=() if source.quantized is None else tuple(gate.sentence() for gate in source.quantized.gates),
    )  # fmt: skip


def _reference(source: ExportSource) -> tuple[Engine, str]:
    """Return the engine that the file is compared with, PyTorch or the int8 model in dla, and its name."""
    if source.quantized is not None:
        from dla.engines.openvino import OpenvinoEngine

        return OpenvinoEngine(source.network, "int8", quantized=source.quantized.model()), f"dla {__version__} in int8"
    import torch

    from dla.engines.torch import TorchEngine

    return TorchEngine(source.model, *source.preprocessing.scale_shift(), "cpu"), f"torch {torch.__version__}"


def _failed(report: ExportReport, report_file: Path) -> str:
    count, same = report.images, report.images - len(report.disagreements)
    measured = f"on the same pixels first class {same} of {count}, probabilities within {report.max_difference:.1e}"
    allowed = f"all, {verify.DIFFERENCE:g}"
    if report.photo_disagreements is not None:
        measured += f", from photos first class {count - len(report.photo_disagreements)} of {count}, pixels within "
        measured += str(report.max_pixel_difference)
        allowed += f", {100 * verify.AGREEMENT:g} %, {verify.LEVEL}"
    reference = "PyTorch" if report.precision == "fp32" else "the int8 model"
    what = f"the {report.format} file does not compute the same as {reference}, so it was removed"
    return f"{what}: {measured} (allowed: {allowed}). Report: {report_file}"
