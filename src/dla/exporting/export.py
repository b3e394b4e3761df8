"""A network as one file for other programs, kept only if it answers as PyTorch does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dla.catalog import ModelInfo, info_of
from dla.engines.base import Engine
from dla.engines.cpu import cores
from dla.errors import CheckError, DlaError, OnlyTorchError, UnavailableError, UnknownNameError, UsageError
from dla.exporting.readme import readme, usage_script
from dla.exporting.targets import TARGETS, ExportSource, RunFile, Target, TargetName
from dla.exporting.verify import (
    AGREEMENT,
    BATCHES,
    DIFFERENCE,
    LEVEL,
    ExportReport,
    FileComparison,
    SampleImage,
    SampleImages,
    compare,
)
from dla.images.decode import ReadOptions
from dla.inference.classifier import check_classifies
from dla.inference.int8_store import find_quantized, not_quantized_error
from dla.inference.traced_model import for_photos, open_traced
from dla.metrics.calibration import apply_temperature
from dla.storage.files import open_folder_aside, write_files
from dla.types import Array
from dla.version import __version__
from dla.weights.load import load_model
from dla.weights.model_files import ModelFiles, open_files

if TYPE_CHECKING:
    from dla.engines.quantized import QuantizedModel as Int8Form

__all__ = ["Exported", "export"]


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote: its folder, the file in it that is the network, and how that was checked."""

    folder: Path
    file: Path
    report: ExportReport


Log = Callable[[str], None]
WatchProgress = Callable[[Iterator[SampleImage], int], Iterator[SampleImage]]
REPORT, SCRIPT, CARD = "report.json", "use.py", "README.md"


def export(
    model: str,
    out: str | os.PathLike[str],
    to: TargetName,
    *,
    preprocessing: bool = True,
    precision: Literal["fp32", "int8"] = "fp32",
    calibrate: str | os.PathLike[str] | None = None,
    photos: str | os.PathLike[str] | None = None,
    watch: WatchProgress = lambda pictures, total: pictures,
    say: Log = lambda sentence: None,
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
        precision: "int8" is for "openvino": the network's int8 form, which answers a little differently. What is
            compared with the file then is that form in dla; how good it is beside fp32 its gate says.
        calibrate: photos to make the int8 form from, and to put it through its gate
            (`dla.inference.calibrate_int8.make_quantized`); it is kept for `load(precision="int8")` too. Without it
            the form that is kept is exported.
        photos: a folder of photos to compare with, at best as it will be used on; by default some that come along.
            Where there are fewer than 60, parts of them make up the number.
        watch: is given the iterator over the pictures and their number and returns it, for a progress bar.
        say: is given sentences about what takes long.

    Raises:
        UsageError: int8 in another form than "openvino", or too few photos to calibrate; `out` is there and not empty,
            the network gives no probabilities, or it has a part that only PyTorch runs.
        CheckError: the file does not answer as PyTorch does: it is gone, and the report lies beside `out`. Or the int8
            form did not pass its gate.
        UnknownNameError, UnavailableError, DamagedError: as `dla.load`; or a package is not installed.
        DlaError: `out` cannot be written.
    """
    folder, form = Path(os.path.expanduser(out)), _form(to)
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    _check_precision(to, precision, calibrate)
    _check_out(folder)
    files = open_files(model)
    source, info = _open(files, preprocessing and form.takes_photos, precision == "int8" and calibrate is None)
    pictures = SampleImages(photos, ReadOptions(source.preprocessing.exif))
    if calibrate is not None:
        source = replace(source, in_int8=_made_int8(files, calibrate, say))
    try:
        with open_folder_aside(folder, last=REPORT) as aside:
            form.write(source, aside / form.file)
            report = _compared(form, aside / form.file, source, info, pictures, watch)
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
    return Exported(folder, folder / form.file, report)


def _form(name: TargetName) -> Target:
    if name not in TARGETS:
        raise UnknownNameError("form", name, TARGETS, see=", ".join(TARGETS))
    form = TARGETS[name]
    missing = [package for package in form.packages if find_spec(package) is None]
    if missing:
        raise UnavailableError(f"--to {name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    return form


def _check_precision(to: TargetName, precision: str, calibrate: object) -> None:
    if precision not in ("fp32", "int8"):
        raise UsageError(f"precision is {precision!r}. Allowed: fp32, int8")
    if precision == "int8" and to != "openvino":
        raise UsageError(f"int8 is exported for OpenVINO, not as {to}. Try --to openvino")
    if precision == "fp32" and calibrate is not None:
        raise UsageError("--calibrate is for int8. Give --precision int8 too")


def _made_int8(files: ModelFiles, calibrate: str | os.PathLike[str], say: Log) -> Int8Form:
    from dla.inference.calibrate_int8 import make_quantized

    made = make_quantized(files, calibrate, workers=cores(), say=say)
    say(f"int8: {made.gate.sentence()}")
    kept = (
        f"kept in {made.kept}" if made.kept else "not kept, as neither the model's folder nor the cache can be written"
    )
    say(f"int8: passed, and {kept} for --precision int8")
    return made.form


def _check_out(folder: Path) -> None:
    _check_empty(folder)
    above = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not above.is_dir():
        raise UsageError(f"{above} is a file, so that nothing can be written to {folder}. Give a new or empty folder")


def _check_empty(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is there and not empty, so it is left alone. Give a new or empty folder")


def _open(files: ModelFiles, takes_photos: bool, kept_int8: bool) -> tuple[ExportSource, ModelInfo]:
    """The network and what is known about it; with `kept_int8` the int8 form that is kept of it, too."""
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
        "licence": known.licence or "",
        "dataset": known.dataset or "",
        "dla": __version__,
    }
    form = find_quantized(network, opened) if kept_int8 else None
    if kept_int8 and form is None:
        raise not_quantized_error(files.name)
    network = network.at_temperature(config.temperature)
    return ExportSource(network, net, config.temperature, opened.preprocessing, takes_photos, about, form), known


def _compared(
    form: Target, file: Path, source: ExportSource, info: ModelInfo, pictures: SampleImages, watch: WatchProgress
) -> ExportReport:
    engine, against = _rival(source)

    def expect(pixels_NHW3: Array) -> Array:
        return apply_temperature(engine.probabilities(pixels_NHW3), source.temperature)

    found = FileComparison(source.about["class_ids"], source.takes_photos)
    run: RunFile = form.open(file, source.takes_photos)
    seen = watch(iter(pictures), len(pictures))
    compare(run, expect, source.preprocessing, seen, found, other_size=form.any_size or source.above_stride)
    inside: dict[str, Any] = {"largest_level": None, "photo_flips": None}
    if source.takes_photos:
        inside = {"largest_level": max(found.levels), "photo_flips": tuple(found.photo_flips)}
    return ExportReport(
        model=info.origin or info.model, sha256=source.about["weights_sha256"], form=form.title, file=form.file,
        runtime=form.runtime, against=against, photos=len(pictures.read),
        unreadable=pictures.unreadable, pictures=found.pictures, batches=BATCHES,
        largest_difference=max(found.differences), same_flips=tuple(found.same_flips), **inside, passed=found.passed,
        precision="fp32" if source.in_int8 is None else "int8",
        gates=() if source.in_int8 is None else tuple(gate.sentence() for gate in source.in_int8.gates),
    )  # fmt: skip


def _rival(source: ExportSource) -> tuple[Engine, str]:
    """What the file is compared with: PyTorch, or the int8 form as dla runs it."""
    if source.in_int8 is not None:
        from dla.engines.openvino import OpenvinoEngine

        return OpenvinoEngine(source.network, "int8", form=source.in_int8.model()), f"dla {__version__} in int8"
    import torch

    from dla.engines.torch import TorchEngine

    return TorchEngine(source.model, *source.preprocessing.scale_shift(), "cpu"), f"torch {torch.__version__}"


def _failed(report: ExportReport, kept: Path) -> str:
    count, same = report.pictures, report.pictures - len(report.same_flips)
    found = f"on the same pixels first class {same} of {count}, probabilities within {report.largest_difference:.1e}"
    allowed = f"all, {DIFFERENCE:g}"
    if report.photo_flips is not None:
        found += f", from photos first class {count - len(report.photo_flips)} of {count}, pixels within "
        found += str(report.largest_level)
        allowed += f", {100 * AGREEMENT:g} %, {LEVEL}"
    rival = "PyTorch" if report.precision == "fp32" else "the int8 form"
    what = f"the {report.form} file does not answer as {rival} does, so it was not kept"
    return f"{what}: {found} (allowed: {allowed}). Report: {kept}"
