"""Decode every photo once and report what would harm a training run: unreadable files, the same photo in two
splits or under two labels, classes without photos. With --task segment or edges it checks photos with masks or
annotators' boundary maps: missing and unequal ones, unknown ids, the pixels of each class. The data is not changed.

Exit code 0: ready for training; 2: wrong usage, or no classes; 3: the data is missing; 4: there are problems
that would harm a training run.

example:
  dla data check photos/
  dla data check photos.csv --format json
  dla data check streets/ --task segment
"""

from __future__ import annotations

import json

from dla.cli.common import show_progress
from dla.cli.parser import Parser, about
from dla.data.sources import DataOptions
from dla.errors import UnknownNameError, UsageError
from dla.options import TaskName

SUBCOMMANDS = {"check": "find problems in photos before training"}

HELP = f"""\
usage: dla data COMMAND DATA [options]

Work with training photos.

commands:
{chr(10).join(f"  {name:<10}{what}" for name, what in SUBCOMMANDS.items())}

example:
  dla data check photos/
"""


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if argv[0] not in SUBCOMMANDS:
        raise UnknownNameError("command of dla data", argv[0], SUBCOMMANDS, see="dla data --help")
    return _check(argv[1:])


def build_subparser(name: str) -> Parser:
    """Build the parser of `dla data NAME`, of which there is one."""
    parser = Parser(f"data {name}", *about(__doc__), "DATA [options]")
    parser.flag(
        "data",
        metavar="DATA",
        help="a folder with one subfolder per class, or with train/ and val/; or a table, an archive or an address",
    )
    parser.flag("--task", type=TaskName, default="classify", help="what the photos are for: a class each, masks, or "
                "boundaries")  # fmt: skip
    parser.output_format()
    parser.options(DataOptions, image_column="C", label_column="C", split_column="C")
    parser.flag("--workers", type=int, metavar="N", help="processes that decode photos (default: one per core)")
    parser.flag("-q", "--quiet", action="store_true", help="print only results")
    return parser


def _check(argv: list[str]) -> int:
    args = build_subparser("check").read(argv)
    if args.workers is not None and args.workers < 0:
        raise UsageError(f"--workers is {args.workers}. Allowed: 0 or more")

    from dla.data.check import DataReport, check_data
    from dla.data.check_text import report_lines
    from dla.data.pair_check import PairReport, check_pairs

    columns = DataOptions(**{key: args[key] for key in ("image_column", "label_column", "split_column")})
    with show_progress(args.quiet) as progress:
        report: DataReport | PairReport
        if args.task == "classify":
            report = check_data(args.data, columns, workers=args.workers, progress=progress)
        else:
            report = check_pairs(args.data, args.task, columns, workers=args.workers, progress=progress)
    print(json.dumps(report.to_dict(), indent=1) if args.format == "json" else "\n".join(report_lines(report)))
    return 0 if report.passed else 4
