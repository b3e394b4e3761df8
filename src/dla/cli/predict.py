"""Classify photos. Each input gets one record, in order: its most likely classes, or an error.

Exit code 0: all inputs were classified, or all but --max-failed; 1: more failed; 2: wrong usage, no inputs, or
the output exists; 3: the weights are missing or damaged.

example:
  dla predict cat.jpg holiday/ 'more/**/*.png'
  dla predict holiday/ --pictures seen/
  find . -name '*.jpg' | dla predict - --model dla60 --format jsonl --output out.jsonl
  dla predict holiday/ --output out.jsonl --resume    # continue after Ctrl-C
  dla predict new/ -o out.jsonl --max-failed 1% --summary run.json    # every night
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TextIO, cast, get_args

from dla.cli.common import (
    MANY,
    RunCounter,
    add_input_flags,
    add_record_flags,
    add_run_flags,
    check_outside_inputs,
    count_photos,
    find_photos,
    input_options,
    load_classifier,
    log,
    show_progress,
    wants_bar,
)
from dla.cli.parser import Parser, about
from dla.errors import UsageError
from dla.images.find import PHOTO_SUFFIXES
from dla.options import PredictOptions, ResultFormat
from dla.storage.files import check_new
from dla.types import DEFAULT_MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jsonargparse import Namespace

    from dla.inference.classifier import Classifier
    from dla.inference.result_files import FinishedResults

UNSURE = 0.3  # a best class below this probability is hardly an answer


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("predict", *about(__doc__), "IMAGE... [options]", config="--config")
    add_input_flags(parser)
    parser.options(PredictOptions, topk="K")
    parser.flag(
        "--format", type=ResultFormat | None, help="output format (default: by the suffix of --output, else table)"
    )
    parser.flag("-o", "--output", metavar="FILE", help="write to this file instead of standard output")
    parser.flag("--resume", action="store_true", help="continue an interrupted run with the same model, settings and "
                "inputs, whose --output is jsonl or csv")  # fmt: skip
    add_record_flags(parser)
    parser.flag("--pictures", metavar="DIR", help="also save each classified photo here, with a bar chart of its "
                "top-5, as NAME-HASH.png; the hash is of its path, because folders may have equal names")  # fmt: skip
    parser.flag("--fail-fast", action="store_true", help="stop at the first input that cannot be classified")
    add_run_flags(parser)
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    parser = build_parser()
    args = parser.read(argv)
    if args.print_config:
        parser.print_options(args)
        return 0
    with RunCounter(args, "predict") as counter:
        result_format = _format(args)
        if args.pictures is not None:
            check_outside_inputs("--pictures", args.pictures, args.images)
        finder, photos = find_photos(args, "classify", "predict")
        from dla.inference.result_files import RESUMABLE, PredictionWriter, engine_of

        if args.resume and args.engine == "auto":
            args.engine = engine_of(args.output)
        expected = count_photos(args, MANY)
        classifier = load_classifier(args, args.model, expected)
        options = input_options(args) | {"strict": args.fail_fast, "pictures": args.pictures}
        classifier.predict((), args.topk, **options)  # check the options before a file is emptied
        if args.output is not None:
            resumable = "; --resume continues it" if result_format in RESUMABLE else ""
            counter.kept = f" They are in {args.output}{resumable}"
        unsure = Counter[bool]()
        with _results(args, result_format, classifier, photos) as (file, before, left):
            counter.begin(finder, None if expected == MANY else expected, before.count, before.errors)
            writer = PredictionWriter(file, result_format, args.topk, resumed=before.size > 0)
            with writer, show_progress(args.quiet, bar=wants_bar(args)) as progress:
                progress.start("predicting", counter.left())
                for prediction in classifier.predict(left, args.topk, **options):
                    writer.write(prediction)
                    counter.add(prediction, progress)
                    unsure.update(c.probability < UNSURE for c in prediction.classes[:1])
        if args.pictures is not None:
            log(args, f"dla: the pictures are in {args.pictures}")
        if args.model == DEFAULT_MODEL and unsure[True] > unsure[False]:
            log(args, f"dla: the best class of most photos is below {100 * UNSURE:.0f} %: they may be of none of the "
                      f"{len(classifier.classes)} classes of {DEFAULT_MODEL}. --model dla60 knows 1,000; dla train "
                      "makes your own.")  # fmt: skip
    return counter.exit_code


def _format(args: Namespace) -> ResultFormat:
    suffix = os.path.splitext(args.output or "")[1].lower()
    if suffix in PHOTO_SUFFIXES:
        raise UsageError(f"--output {args.output} has the suffix of a photo. Give a file such as out.jsonl")
    by_suffix = suffix[1:] if suffix[1:] in get_args(ResultFormat) else "table"
    result_format = cast(ResultFormat, args.format or by_suffix)
    from dla.inference.result_files import RESUMABLE

    if args.resume and args.force:
        raise UsageError("--resume continues --output, and --force replaces it. Give one of them")
    if args.resume and (args.output is None or result_format not in RESUMABLE):
        what = f"{result_format} in {args.output}" if args.output else "standard output"
        raise UsageError(f"--resume cannot continue {what}. Give --output a file such as out.jsonl or out.csv")
    if args.output is not None and not (args.resume or args.force):
        check_new(args.output, resumable=result_format in RESUMABLE)
    return result_format


def _results(
    args: Namespace, result_format: ResultFormat, classifier: Classifier, photos: Iterator[str]
) -> AbstractContextManager[tuple[TextIO, FinishedResults, Iterator[str]]]:
    from dla.inference.result_files import FinishedResults, open_results

    if args.output is None:
        return nullcontext((sys.stdout, FinishedResults(), photos))
    names = ("topk", "batch_size", "allow_truncated", "max_megapixels", "max_megabytes")
    settings = {name: args[name] for name in names}
    return open_results(args.output, result_format, classifier, settings, photos, resume=args.resume, force=args.force)
