"""Measure the accuracy and calibration of a classifier on labelled photos, or compare several. The results are
those of what dla predict predicts for the same files.

Exit code 0: all photos were read; 1: some were not, and are left out; 2: wrong usage, or a class that the
model does not have; 3: the data or the model is missing or damaged.

example:
  dla validate flowers/val --model runs/flowers/best
  dla validate flowers/ --model runs/a/best --model runs/b/best --report compared.html
  dla validate flowers/ --model runs/flowers/best --calibrate    # fit the temperature
  dla validate imagenet/val --model dla60 --preset imagenet --format json
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Literal

from dla.cli.common import (
    add_run_flags,
    add_verbose_flag,
    check_file,
    check_photo_limits,
    input_options,
    load_classifier,
    log,
    show_progress,
)
from dla.cli.parser import MODEL_HELP, Parser, about, default_model
from dla.data.sources import DataOptions
from dla.errors import UsageError
from dla.options import EvalOptions
from dla.storage.files import write_file
from dla.types import DEFAULT_MODEL

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from dla.evaluation.result import Validation, Validations
    from dla.training.distributed import Ranks


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("validate", *about(__doc__), "DATA [options]")
    parser.flag("data", metavar="DATA", help="a folder with one subfolder per class, or a table (docs/data.md); of "
                "several splits, val is taken")  # fmt: skip
    parser.flag("-q", "--quiet", action="store_true", help="print only results")
    add_verbose_flag(parser)
    parser.flag("--model", action="append", metavar="MODEL", help=f"{MODEL_HELP}; repeat it to compare several "
                f"(default: {DEFAULT_MODEL})")  # fmt: skip
    parser.flag("--format", type=Literal["table", "json"] | None, help="output format (default: by the suffix of "
                "--output, else table)")  # fmt: skip
    parser.flag("-o", "--output", metavar="FILE", help="write to this file instead of standard output")
    parser.flag("--report", metavar="FILE", help="also write an HTML report")
    parser.flag("--calibrate", action="store_true", help="fit a temperature to these photos and save it in the model "
                "folder, for dla predict to use")  # fmt: skip
    parser.options(EvalOptions, tta=None, preset=None)
    parser.options(DataOptions, image_column="C", label_column="C", split_column="C")
    add_run_flags(parser)
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    args = build_parser().read(argv)
    output_format = _format(args)
    check_photo_limits(args)
    _check_files(args)

    from dla.training.distributed import Ranks

    ranks = Ranks.from_env()
    args.quiet = args.quiet or not ranks.is_main
    result, seconds = _validate(args, ranks)
    models = _models(result)
    if ranks.is_main:
        _write(args, f"{json.dumps(result.to_dict())}\n" if output_format == "json" else _table(result))
        if args.report is not None:
            from dla.evaluation.html import write_report

            write_report(args.report, result)
    for message in dict.fromkeys(note for m in models for note in m.notes):
        log(args, f"dla: {message}")
    for unreadable in models[0].unreadable:
        log(args, f"dla: {unreadable.message}")
    total = models[0].evaluation.count + len(models[0].unreadable)
    left_out = f": {len(models[0].unreadable):,} could not be read and are left out" if models[0].unreadable else ""
    log(args, f"{total:,} photos{left_out}. {seconds:.1f} s, {len(models) * total / max(seconds, 1e-9):.0f} photos/s.")
    return 1 if models[0].unreadable else 0


def _format(args: Namespace) -> str:
    """Return the output format: the flag, or by the suffix of --output."""
    return str(args.format or ("json" if (args.output or "").lower().endswith(".json") else "table"))


def _validate(args: Namespace, ranks: Ranks) -> tuple[Validation | Validations, float]:
    from dla.engines.torch import pick_device
    from dla.evaluation.evaluate import validate

    args.device = str(ranks.device(pick_device(args.device)))
    names = args.model or [default_model()]
    classifiers = [load_classifier(args, name) for name in names]
    began = time.monotonic()
    with show_progress(args.quiet) as progress:
        options = {name: args[name] for name in ("device", "preset", "tta", "calibrate")} | input_options(args)
        columns = DataOptions(**{name: args[name] for name in ("image_column", "label_column", "split_column")})
        models = classifiers if len(names) > 1 else classifiers[0]
        result = validate(args.data, models, columns=columns, progress=progress, **options)
    return result, time.monotonic() - began


def _check_files(args: Namespace) -> None:
    """Check the output files before reading photos."""
    for flag, path in (("--output", args.output), ("--report", args.report)):
        if path is not None:
            check_file(flag, path)
    if args.report is not None:
        from dla.html_report.page import check_can_write

        check_can_write()
        if args.output is not None and os.path.realpath(args.output) == os.path.realpath(args.report):
            raise UsageError(f"--output and --report are both {args.report}. Give two files")


def _write(args: Namespace, text: str) -> None:
    if args.output is not None:
        write_file(args.output, text.encode(errors="surrogateescape"))
        return
    print(text, end="")


def _models(result: Validation | Validations) -> tuple[Validation, ...]:
    from dla.evaluation.result import Validations

    return result.models if isinstance(result, Validations) else (result,)


def _table(result: Validation | Validations) -> str:
    from dla.evaluation.result import Validations
    from dla.evaluation.text import several_as_text, single_as_text

    return several_as_text(result) if isinstance(result, Validations) else single_as_text(result)
