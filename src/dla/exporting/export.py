"""Export a network to one file for other programs, written only if it computes the same as PyTorch."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from dla.engines.quantized import QuantizedModel
from dla.errors import CheckError, DlaError, UnavailableError, UnknownNameError, UsageError, pip_line
from dla.exporting.classifier_file import ClassifierFile
from dla.exporting.dense_file import DenseNetworkFile
from dla.exporting.dense_verify import DenseExportReport
from dla.exporting.targets import TARGETS
from dla.exporting.verify import ExportReport, SampleImages
from dla.options import ExportOptions, ReadOptions, TargetName
from dla.storage.files import open_folder_aside, write_files
from dla.types import NO_PROGRESS, Progress
from dla.weights.identify import task_of
from dla.weights.spec import ModelFiles, open_files


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export: the folder, the network's file in it, and the report of its check."""

    folder: Path
    file: Path
    report: ExportReport | DenseExportReport


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
        calibrate: photos to make and check the int8 model with (`dla.inference.calibrate_int8.make_quantized`), for a
            dense network with masks or boundaries (`dla.inference.calibrate_dense_int8.make_dense_quantized`); it is
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
    stored_int8 = precision == "int8" and calibrate is None
    kind: Any = ClassifierFile if task_of(files) == "classify" else DenseNetworkFile
    made = kind.open(to, files, preprocessing and target.takes_photos, stored_int8)
    images = SampleImages(photos, ReadOptions(made.source.preprocessing.exif))
    if calibrate is not None:
        made.with_int8(_made_int8(files, calibrate, progress))
    try:
        with open_folder_aside(folder, last=REPORT) as aside:
            made.write(aside)
            report = made.compare(aside, images, progress)
            text = json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n"
            if not report.passed:
                report_file = folder.with_name(f"{folder.name}.{REPORT}")
                write_files({report_file: text.encode()})
                raise CheckError(f"{made.failed(report)}. Report: {report_file}")
            (aside / REPORT).write_text(text, encoding="utf-8")
            (aside / SCRIPT).write_text(made.script(), encoding="utf-8")
            (aside / CARD).write_text(made.card(report), encoding="utf-8")
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
    from dla.inference.calibrate_dense_int8 import make_dense_quantized
    from dla.inference.calibrate_int8 import make_quantized

    make = make_quantized if task_of(files) == "classify" else make_dense_quantized
    result = make(files, calibrate, progress=progress)
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
