"""Measure a network on labelled photos, or compare several: the accuracy and calibration of a classifier, the mean
IoU of a segmentation network on photos with masks, the ODS of a boundary network on photos with annotators' maps.
The results are those of what dla predict, dla segment and dla edges answer for the same files.

Exit code 0: all photos were read; 1: some were not, and are left out; 2: wrong usage, or a class that the
model does not have; 3: the data or the model is missing or damaged, or the data has no masks.

example:
  dla validate flowers/val --model runs/flowers/best
  dla validate flowers/ --model runs/a/best --model runs/b/best --report compared.html
  dla validate flowers/ --model runs/flowers/best --calibrate    # fit the temperature
  dla validate imagenet/val --model dla60 --preset imagenet --format json
  dla validate streets/ --model runs/streets/best --scales 0.75,1,1.25 --flip
  dla validate bsds/ --maps other/maps --no-nms
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from dla.cli.common import (
    add_run_flags,
    add_verbose_flag,
    check_file,
    check_photo_limits,
    input_options,
    load_classifier,
    load_network,
    log,
    reading_options,
    show_progress,
)
from dla.cli.parser import MODEL_HELP, Parser, about, default_model
from dla.data.sources import DataOptions
from dla.errors import UsageError
from dla.options import BoundaryOptions, EvalOptions, TaskName
from dla.storage.files import write_file
from dla.types import DEFAULT_MODEL

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from dla.data.dataset import Unreadable
    from dla.training.distributed import Ranks
    from dla.types import Progress

DEFAULT_MODELS = {"classify": DEFAULT_MODEL, "segment": "shipped:camvid", "edges": "shipped:bsds"}
# The options of one task alone, with their defaults.
OWN_OPTIONS: dict[str, dict[str, Any]] = {
    "classify": {"calibrate": False, "tta": EvalOptions.tta, "preset": EvalOptions.preset},
    "segment": {"scales": None, "flip": False},
    "edges": {"maps": None, "annotators": False, "no_nms": False, "thresholds": BoundaryOptions.thresholds,
              "tolerance": BoundaryOptions.tolerance, "nms_m": BoundaryOptions.nms_m},
}  # fmt: skip


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("validate", *about(__doc__), "DATA [options]")
    parser.flag("data", metavar="DATA", help="a folder with one subfolder per class, a table, an archive, or photos "
                "with masks or boundary maps (docs/data.md); of several splits, val is taken")  # fmt: skip
    parser.flag("-q", "--quiet", action="store_true", help="print only results")
    add_verbose_flag(parser)
    parser.flag("--model", action="append", metavar="MODEL", help=f"{MODEL_HELP}; repeat it to compare several "
                f"(default: {DEFAULT_MODEL}, or the built-in network of --task)")  # fmt: skip
    parser.flag("--task", type=TaskName | None, help="what the photos are labelled with: a class each, masks, or "
                "boundaries (default: the model's task)")  # fmt: skip
    parser.flag("--format", type=Literal["table", "json"] | None, help="output format (default: by the suffix of "
                "--output, else table)")  # fmt: skip
    parser.flag("-o", "--output", metavar="FILE", help="write to this file instead of standard output")
    parser.flag("--report", metavar="FILE", help="also write an HTML report")
    parser.flag("--calibrate", action="store_true", help="fit a temperature to these photos and save it in the model "
                "folder, for dla predict to use")  # fmt: skip
    parser.options(EvalOptions, tta=None, preset=None)
    parser.flag("--scales", metavar="X,X", help="masks: further figures, of the mean over these magnifications, such "
                "as 0.75,1,1.25")  # fmt: skip
    parser.flag("--flip", action="store_true", help="masks: further figures, of the mean with the mirror image")
    parser.options(BoundaryOptions, thresholds="N", tolerance="X", nms_m="X")
    parser.flag("--no-nms", action="store_true", help="boundaries: no non-maximum suppression, for maps that had it")
    parser.flag("--maps", metavar="DIR", help="boundaries: score these maps of another program, <photo>.png of 8 bits, "
                "in place of a model")  # fmt: skip
    parser.flag("--annotators", action="store_true", help="boundaries: score each annotator against the others")
    parser.options(DataOptions, image_column="C", label_column="C", split_column="C")
    add_run_flags(parser)
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    args = build_parser().read(argv)
    args.format = args.format or ("json" if (args.output or "").lower().endswith(".json") else "table")
    check_photo_limits(args)
    _check_files(args)
    if args.maps is not None or args.annotators:
        args.task = _edges_without_model(args)
    if args.task is None and args.model is None:
        from dla.data.pairs import check_not_pairs

        check_not_pairs(args.data)
    if args.task is not None:
        _check_options(args, args.task)

    from dla.training.distributed import Ranks

    ranks = Ranks.from_env()
    args.quiet = args.quiet or not ranks.is_main
    networks = _load(args, ranks) if args.maps is None and not args.annotators else []
    task = networks[0].config.task if networks else "edges"
    _check_options(args, task)
    began = time.monotonic()
    with show_progress(args.quiet) as progress:
        found = {"classify": _classifiers, "segment": _segmenters, "edges": _boundaries}[task](args, networks, progress)
    seconds = time.monotonic() - began
    if ranks.is_main:
        _write(args, f"{json.dumps(found.result.to_dict())}\n" if args.format == "json" else found.text())
        if args.report is not None:
            found.write_report(args.report, found.result)
    for message in dict.fromkeys(found.notes):
        log(args, f"dla: {message}")
    for unreadable in found.unreadable:
        log(args, f"dla: {unreadable.message}")
    total = found.count + len(found.unreadable)
    left_out = f": {len(found.unreadable):,} could not be read and are left out" if found.unreadable else ""
    rate = max(1, len(networks)) * total / max(seconds, 1e-9)
    what = "annotators' maps" if args.annotators else "photos"
    log(args, f"{total:,} {what}{left_out}. {seconds:.1f} s, {rate:.{0 if rate >= 10 else 1}f} {what}/s.")
    return 1 if found.unreadable else 0


@dataclass(frozen=True)
class _Found:
    """What a validation found, and how it is shown."""

    result: Any
    text: Callable[[], str]
    write_report: Callable[[str, Any], None]
    count: int
    unreadable: Sequence[Unreadable]
    notes: Sequence[str]


def _edges_without_model(args: Namespace) -> str:
    """Return the task "edges", of --maps and --annotators.

    Raises:
        UsageError: they are given together, or with a model or another task.
    """
    flag = "--annotators" if args.annotators else "--maps"
    if args.annotators and args.maps is not None:
        raise UsageError("--maps and --annotators are both given. Give one of them")
    if args.model:
        raise UsageError(f"{flag} takes the place of a model. Leave out --model")
    if args.task not in (None, "edges"):
        raise UsageError(f"{flag} is for boundaries, not for --task {args.task}")
    return "edges"


def _check_options(args: Namespace, task: str) -> None:
    """Raise a UsageError for an option of another task."""
    what = {"classify": "classifiers", "segment": "segmentation", "edges": "boundaries"}
    for other, options in OWN_OPTIONS.items():
        for name, default in options.items():
            if other != task and args[name] != default:
                raise UsageError(
                    f"--{name.replace('_', '-')} is for {what[other]}, and this is a validation of {what[task]}"
                )


def _load(args: Namespace, ranks: Ranks) -> list[Any]:
    """Load the models, all of the task of the first."""
    from dla.engines.torch import pick_device

    args.device = str(ranks.device(pick_device(args.device)))
    names, networks, task = args.model or [DEFAULT_MODELS[args.task or "classify"]], [], args.task
    if not args.model and task in (None, "classify"):
        names = [default_model()]
    for name in names:
        if task == "classify" or (task is None and name == DEFAULT_MODEL):
            networks.append(load_classifier(args, name))
        else:
            networks.append(load_network(args, name, task))
        task = networks[0].config.task
    return networks


def _classifiers(args: Namespace, networks: list[Any], progress: Progress) -> _Found:
    from dla.evaluation.evaluate import validate
    from dla.evaluation.html import write_report
    from dla.evaluation.result import Validations
    from dla.evaluation.text import several_as_text, single_as_text

    result = validate(
        args.data,
        networks if len(networks) > 1 else networks[0],
        device=args.device,
        preset=args.preset,
        tta=args.tta,
        calibrate=args.calibrate,
        columns=_columns(args),
        progress=progress,
        **input_options(args),
    )
    models = result.models if isinstance(result, Validations) else (result,)

    def text() -> str:
        return several_as_text(result) if isinstance(result, Validations) else single_as_text(result)

    notes = [note for one in models for note in one.notes]
    return _Found(result, text, write_report, models[0].evaluation.count, models[0].unreadable, notes)


def _segmenters(args: Namespace, networks: list[Any], progress: Progress) -> _Found:
    from dla.evaluation.dense_html import write_segmentation_report
    from dla.evaluation.dense_text import segmentation_text
    from dla.evaluation.segment import Views, validate_segmentation

    result = validate_segmentation(
        args.data, networks, views=Views(_scales(args.scales), args.flip), columns=_columns(args), progress=progress,
        **_reading(args),
    )  # fmt: skip
    count = result.models[0].evaluation.photos
    return _Found(result, partial(segmentation_text, result), write_segmentation_report, count, result.unreadable,
                  result.notes)  # fmt: skip


def _boundaries(args: Namespace, networks: list[Any], progress: Progress) -> _Found:
    from dla.evaluation import edges
    from dla.evaluation.dense_html import write_boundaries_report
    from dla.evaluation.dense_text import boundaries_text

    options = BoundaryOptions(args.thresholds, args.tolerance, not args.no_nms, args.nms_m)
    settings: dict[str, Any] = {"options": options, "workers": args.workers, "progress": progress}
    if args.maps is not None:
        result = edges.validate_maps(args.data, args.maps, **settings)
    elif args.annotators:
        result = edges.validate_annotators(args.data, **settings)
    else:
        result = edges.validate_boundaries(args.data, networks, **(settings | _reading(args)))
    return _Found(result, partial(boundaries_text, result), write_boundaries_report, len(result.sources[0].pairs),
                  result.unreadable, result.notes)  # fmt: skip


def _reading(args: Namespace) -> dict[str, Any]:
    """Return how photos are read; dense networks see one at a time, so there is no batch size."""
    return {"workers": args.workers} | reading_options(args)


def _columns(args: Namespace) -> DataOptions:
    return DataOptions(image_column=args.image_column, label_column=args.label_column, split_column=args.split_column)


def _scales(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in (text or "1").split(","))
    except ValueError:
        raise UsageError(f"--scales is {text}. Allowed: numbers with commas, such as 0.75,1,1.25") from None


def _check_files(args: Namespace) -> None:
    """Check the output files before reading photos."""
    for flag, path in (("--output", args.output), ("--report", args.report)):
        if path is not None:
            check_file(flag, path)
    if args.report is not None:
        from dla.html_report.page import check_can_write

        check_can_write()
        if args.output is not None and os.path.realpath(args.output) == os.path.realpath(args.report):
            raise UsageError(f"--output and --report are both {args.output}. Give two files")


def _write(args: Namespace, text: str) -> None:
    if args.output is not None:
        write_file(args.output, text.encode(errors="surrogateescape"))
        return
    print(text, end="")
