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
)
from dla.cli.dense import add_output_flags, check_output, pinned_engine, write_answers
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
    found = find_photos(args, "explain", "explain")
    pinned_engine(args)
    expected = count_photos(args, MANY)
    classifier = load_classifier(args, args.model, expected)
    options = {"class_id": args["class"], "against": args.against, "at": args.at} | reading_options(args)
    classifier.explain((), **options)  # checks the options before a file is emptied
    if classifier.explainer.engine is not classifier.engine:
        log(args, "dla: an int8 model gives no maps, so the same network explains in fp32")
    from dla.inference.explain_files import ExplanationWriter, HeatMapFiles

    writers = ExplanationWriter(sys.stdout, args.format), HeatMapFiles(Path(args.output or ""))
    write_answers(
        counter, found, expected, classifier, ("class", "against", "at"), writers,
        lambda left: classifier.explain(left, **options), "explaining",
    )  # fmt: skip
