"""`dla validate`."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Literal

from dla.cli.common import (
    add_run_flags,
    add_verbose_flag,
    check_file,
    check_megapixels,
    load_classifier,
    log,
    reading,
    show_progress,
)
from dla.cli.parser import MODEL_HELP, Parser, default_model
from dla.data.sources import DataOptions
from dla.errors import UsageError
from dla.options import EvalOptions
from dla.storage.files import write_file
from dla.types import DEFAULT_MODEL

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from dla.evaluation.result import Validation, Validations
    from dla.training.distributed import Ranks


DESCRIPTION = """\
Tell how good a classifier is on photos whose classes are known, and whether one is better than another. The figures
are those of what dla predict says of the same files.

Exit code 0: all photos were read; 1: some were not, and are in no figure; 2: wrong usage, or
a class that the model does not know; 3: the data or the model cannot be had."""

EXAMPLE = """\
  dla validate flowers/val --model runs/flowers/best
  dla validate flowers/ --model runs/a/best --model runs/b/best --report compared.html
  dla validate flowers/ --model runs/flowers/best --calibrate    # its probabilities, made honest
  dla validate imagenet/val --model dla60 --preset imagenet --format json"""


def build_parser() -> Parser:
    parser = Parser("validate", DESCRIPTION, EXAMPLE, "DATA [options]")
    parser.flag("data", metavar="DATA", help="a folder with a folder a class, or a table (docs/data.md); of several "
                "splits, val is taken")  # fmt: skip
    parser.flag("-q", "--quiet", action="store_true", help="no messages, only results")
    add_verbose_flag(parser)
    parser.flag("--model", action="append", metavar="M", help=f"{MODEL_HELP}; several are compared (default: "
                f"{DEFAULT_MODEL})")  # fmt: skip
    parser.flag("--format", type=Literal["table", "json"] | None, help="what to write (default: by the ending of "
                "--output, else table)")  # fmt: skip
    parser.flag("-o", "--output", metavar="FILE", help="write the result there instead of to standard output")
    parser.flag("--report", metavar="FILE", help="also write a page about it, one HTML file")
    parser.flag("--calibrate", action="store_true", help="fit a temperature to these photos and save it into the model "
                "folder; dla predict then uses it")  # fmt: skip
    parser.options(EvalOptions, tta=None, preset=None)
    parser.options(DataOptions, image_column="C", label_column="C", split_column="C")
    add_run_flags(parser)
    return parser


def run(argv: list[str]) -> int:
    args = build_parser().read(argv)
    form = _format(args)
    check_megapixels(args)
    _check_files(args)

    from dla.training.distributed import Ranks

    ranks = Ranks.from_env()
    args.quiet = args.quiet or not ranks.is_main
    found, seconds = _validate(args, ranks)
    models = _models(found)
    if ranks.is_main:
        _write(args, f"{json.dumps(found.to_dict())}\n" if form == "json" else _table(found))
        if args.report is not None:
            from dla.evaluation.html import write_report

            write_report(args.report, found)
    for message in dict.fromkeys(note for m in models for note in m.notes):
        log(args, f"dla: {message}")
    for unreadable in models[0].unreadable:
        log(args, f"dla: {unreadable.message}")
    total = models[0].evaluation.count + len(models[0].unreadable)
    left_out = f": {len(models[0].unreadable):,} could not be read and are in no figure" if models[0].unreadable else ""
    log(args, f"{total:,} photos{left_out}. {seconds:.1f} s, {len(models) * total / max(seconds, 1e-9):.0f} photos/s.")
    return 1 if models[0].unreadable else 0


def _format(args: Namespace) -> str:
    """What is asked for, or what the ending of the output says."""
    return str(args.format or ("json" if (args.output or "").lower().endswith(".json") else "table"))


def _validate(args: Namespace, ranks: Ranks) -> tuple[Validation | Validations, float]:
    from dla.engines.torch import pick_device
    from dla.evaluation.evaluate import validate

    args.device = str(ranks.device(pick_device(args.device)))
    named = args.model or [default_model()]
    classifiers = [load_classifier(args, name) for name in named]
    began = time.monotonic()
    with show_progress(args.quiet) as progress:
        found = validate(
            args.data,
            classifiers if len(named) > 1 else classifiers[0],
            device=args.device,
            preset=args.preset,
            tta=args.tta,
            calibrate=args.calibrate,
            columns=DataOptions(
                image_column=args.image_column, label_column=args.label_column, split_column=args.split_column
            ),
            progress=progress,
            **reading(args),
        )
    return found, time.monotonic() - began


def _check_files(args: Namespace) -> None:
    """What cannot be written is told before the photos are looked at."""
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


def _models(found: Validation | Validations) -> tuple[Validation, ...]:
    from dla.evaluation.result import Validations

    return found.models if isinstance(found, Validations) else (found,)


def _table(found: Validation | Validations) -> str:
    from dla.evaluation.result import Validations
    from dla.evaluation.text import several_as_text, single_as_text

    return several_as_text(found) if isinstance(found, Validations) else single_as_text(found)
