"""`dla data check`."""

from __future__ import annotations

import json

from dla.cli.common import show_progress
from dla.cli.parser import Parser
from dla.errors import UnknownNameError, UsageError

SUBVERBS = {"check": "look at every photo, and tell what would hurt a training run"}

HELP = f"""\
usage: dla data VERB DATA [options]

Photos of your own, before they are trained on.

verbs:
{chr(10).join(f"  {verb:<10}{what}" for verb, what in SUBVERBS.items())}

example:
  dla data check photos/
"""

DESCRIPTION = """\
Decode every photo once and tell what would hurt a training run: unreadable files, the same picture in
two splits or under two labels, classes without photos. Nothing is written into the data.
Exit code 0: fit for training; 4: something would hurt a run; 2, 3: there are no classes, or no data."""

EXAMPLE = """\
  dla data check photos/
  dla data check photos.csv --format json"""


def run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if words else 2
    if words[0] not in SUBVERBS:
        raise UnknownNameError("verb of dla data", words[0], SUBVERBS, see="dla data --help")
    return _check(words[1:])


def _check(words: list[str]) -> int:
    parser = Parser("data check", DESCRIPTION, EXAMPLE, "DATA [options]")
    parser.flag("data", help="a folder with a folder a class, or with train/ and val/; a .csv, .tsv or .parquet file")
    parser.flag("--format", choices=("table", "json"), default="table", help="table or json (default: table)")
    parser.flag("--image-column", metavar="C", help="a table's column of files or photos (default: path; in parquet "
                "image)")  # fmt: skip
    parser.flag("--label-column", metavar="C", help="its column of classes (default: label; in parquet synset where "
                "there is one)")  # fmt: skip
    parser.flag("--split-column", metavar="C", help="its column of train and val (default: split where there is one)")
    parser.flag("--workers", type=int, metavar="N", help="processes that decode photos (default: one a core)")
    parser.flag("-q", "--quiet", action="store_true", help="no progress")
    args = parser.parse_args(words)
    if args.workers is not None and args.workers < 0:
        raise UsageError(f"--workers is {args.workers}: at least 0")

    from dla.data.check import check_data, data_lines
    from dla.data.sources import DataOptions

    columns = {key: args[key] for key in ("image_column", "label_column", "split_column")}
    with show_progress(args.quiet) as progress:
        report = check_data(args.data, DataOptions(**columns), workers=args.workers, progress=progress)
    print(json.dumps(report.to_dict(), indent=1) if args.format == "json" else "\n".join(data_lines(report)))
    return 0 if report.passed else 4
