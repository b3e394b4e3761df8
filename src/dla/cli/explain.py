"""Show which places of photos speak for a class. Each input gets one record, in order: the class, its map and the place
that speaks most for it, or an error. With --output, DIR gets NAME.explain.png for each photo, the map over the photo.

For a network that pools by the mean, the map of level5 is exact: its mean plus a constant is the class's score. Other
maps, and those of other networks, are Grad-CAM's, computed in PyTorch.

Exit code 0: all inputs were explained, or all but --max-failed; 1: more failed; 2: wrong usage, no inputs, or DIR holds
an earlier run; 3: the weights are missing or damaged.

example:
  dla explain cat.jpg --output why/
  dla explain cat.jpg --class tabby --against 'Egyptian cat' -o why/
  dla explain holiday/ --model my-run/best --at level4 --format jsonl
  dla explain holiday/ -o why/ --resume    # continue after Ctrl-C
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dla.cli.common import (
    MANY,
    RunCounter,
    add_input_flags,
    add_record_flags,
    add_run_flags,
    count_photos,
    find_photos,
    load_classifier,
    log,
    reading_options,
    show_progress,
    wants_bar,
)
from dla.cli.dense import add_output_flags, check_output, pinned_engine, stored
from dla.cli.parser import Parser, about
from dla.options import ExplainOptions

if TYPE_CHECKING:
    from jsonargparse import Namespace


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("explain", *about(__doc__), "IMAGE... [options]", config="--config")
    add_input_flags(parser)
    parser.flag("--class", type=str | None, metavar="C", help="class to explain, by its id, or by its label if no "
                "other class has it (default: each photo's most probable one)")  # fmt: skip
    parser.options(ExplainOptions, against="D", at="NODE")
    add_output_flags(parser, "write NAME.explain.png for each photo, and records.jsonl, into this folder")
    add_record_flags(parser, "replace the files of an earlier run in --output")
    add_run_flags(parser, batches=False)
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    parser = build_parser()
    args = parser.read(argv)
    if args.print_config:
        parser.print_options(args)
        return 0
    with RunCounter(args, "explain") as counter:
        check_output(args)
        _explain_photos(args, counter)
    return counter.exit_code


def _explain_photos(args: Namespace, counter: RunCounter) -> None:
    finder, photos = find_photos(args, "explain", "explain")
    pinned_engine(args)
    expected = count_photos(args, MANY)
    classifier = load_classifier(args, args.model, expected)
    settings = {name: args[name] for name in ("class", "against", "at")}
    options = {"class_id": args["class"], "against": args.against, "at": args.at} | reading_options(args)
    classifier.explain((), **options)  # checks the options before a file is emptied
    if classifier.explainer.engine is not classifier.engine:
        log(args, "dla: an int8 model gives no maps, so the same network explains in fp32")
    from dla.inference.explain_files import ExplanationWriter, HeatMapFiles

    limits = {name: args[name] for name in ("allow_truncated", "max_megapixels", "max_megabytes")}
    files = HeatMapFiles(Path(args.output or ""))
    with stored(args, "explain", classifier, settings | limits, photos, files) as (store, before, left):
        if args.output is not None:
            counter.kept = f" Their files are in {args.output}; --resume continues the run"
        counter.begin(finder, None if expected == MANY else expected, before.count, before.errors)
        writer = ExplanationWriter(sys.stdout, args.format)
        with writer, show_progress(args.quiet, bar=wants_bar(args)) as progress:
            progress.start("explaining", counter.left())
            for record in classifier.explain(left, **options):
                store(record)
                writer.write(record)
                counter.add(record, progress)
