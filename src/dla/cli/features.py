"""Extract features of photos at one node of the network, as arrays. FILE gets one row per input, in order, with
its path, and an error if it has no features. An interrupted run leaves no FILE.

Exit code 0: all inputs have features, or all but --max-failed; 1: more failed; 2: wrong usage, no inputs, or
FILE exists; 3: the weights are missing or damaged.

example:
  dla features cat.jpg holiday/ --output features.npz
  dla features holiday/ --model dla34 --at level4.tree1 --output maps.parquet
"""

from __future__ import annotations

from dla.cli.common import (
    MANY,
    RunCounter,
    add_input_flags,
    add_record_flags,
    add_run_flags,
    check_file,
    count_photos,
    find_photos,
    input_options,
    load_classifier,
    log,
    show_progress,
)
from dla.cli.parser import Parser, about
from dla.models.registry import PRE_LOGITS
from dla.storage.files import check_new


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("features", *about(__doc__), "IMAGE... --output FILE [options]", config="--config")
    add_input_flags(parser)
    parser.flag("--at", default=PRE_LOGITS, metavar="NODE", help="pre_logits, the classifier's input; level0 to "
                "level5; or a node that dla info MODEL --nodes lists")  # fmt: skip
    parser.flag("-o", "--output", metavar="FILE", help="output file, .npz or .parquet")
    add_record_flags(parser)
    add_run_flags(parser)
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    parser = build_parser()
    args = parser.read(argv)
    if args.print_config:
        parser.print_options(args)
        return 0
    with RunCounter(args, "features") as counter:
        from dla.inference.feature_files import check_output, open_features

        if args.output is None:
            raise parser.missing("--output", "Give a file that ends in .npz or .parquet")
        check_output(args.output)
        check_file("--output", args.output)
        if not args.force:
            check_new(args.output)
        finder, photos = find_photos(args, "extract features of", "features")
        expected = count_photos(args, MANY)
        classifier = load_classifier(args, args.model, expected)
        shape = classifier.features_shape(args.at)
        if args.verbose:
            log(args, f"dla: {args.at}: {' x '.join(map(str, shape))} numbers per photo")
        about = {"at": args.at, "model": classifier.origin, "weights_sha256": classifier.sha256}
        counter.kept = f" {args.output} is not written: it needs the whole run"
        with open_features(args.output, shape, about) as writer, show_progress(args.quiet) as progress:
            counter.begin(finder, None if expected == MANY else expected)
            progress.start("computing", counter.left())
            for features in classifier.features(photos, args.at, **input_options(args)):
                writer.write(features)
                counter.add(features, progress)
    return counter.exit_code
