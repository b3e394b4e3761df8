"""`dla features`."""

from __future__ import annotations

from dla.cli.common import (
    Counter,
    add_input_flags,
    add_run_flags,
    check_file,
    count_photos,
    find_photos,
    load_classifier,
    log,
    reading,
    show_progress,
)
from dla.cli.parser import Parser
from dla.errors import UsageError
from dla.models.registry import PRE_LOGITS

DESCRIPTION = """\
Write what the network holds of each photo at one place, as arrays: one row an input, in order, with its
path, and why there are no features where there are none. A run that is stopped leaves no FILE.

Exit code 0: all answered; 1: some were not; 2: wrong usage or nothing to do; 3: the weights cannot be had."""

EXAMPLE = """\
  dla features cat.jpg holiday/ --output features.npz
  dla features holiday/ --model dla34 --at level4.tree1 --output maps.parquet"""


def build_parser() -> Parser:
    parser = Parser("features", DESCRIPTION, EXAMPLE, "IMAGE... --output FILE [options]", config="--config")
    add_input_flags(parser)
    parser.flag("--at", default=PRE_LOGITS, metavar="NODE", help="pre_logits: what the classifier is given; "
                "level0 to level5; or a node, see: dla info MODEL --nodes")  # fmt: skip
    parser.flag("-o", "--output", metavar="FILE", help="the file to write, .npz or .parquet")
    add_run_flags(parser)
    return parser


def run(argv: list[str]) -> int:
    parser = build_parser()
    args = parser.read(argv)
    if args.print_config:
        parser.print_options(args)
        return 0
    from dla.inference.feature_files import check_output, open_features

    if args.output is None:
        raise UsageError("--output is missing. Give a file that ends in .npz or .parquet")
    check_output(args.output)
    check_file("--output", args.output)
    finder, photos = find_photos(args, "take features of", "features")
    classifier = load_classifier(args, args.model, count_photos(args, 10_000))
    shape = classifier.features_shape(args.at)
    if args.verbose:
        log(args, f"dla: {args.at}: {' x '.join(map(str, shape))} numbers a photo")
    about = {"at": args.at, "model": classifier.origin, "weights_sha256": classifier.sha256}
    counter = Counter(args, finder)
    with open_features(args.output, shape, about) as writer, show_progress(args.quiet) as progress:
        progress.start("computing", counter.left())
        for features in classifier.features(photos, args.at, **reading(args)):
            writer.write(features)
            counter.add(features, progress)
    return counter.finish()
