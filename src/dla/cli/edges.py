"""Find the boundaries of objects in photos. Each input gets one record, in order: the share of its pixels that is on a
boundary, or an error. With --output, DIR gets three pictures of each photo: NAME.edges.png, the probability of a
boundary at each pixel; NAME.thin.png, the same without the pixels beside the ridges; and NAME.lines.png, what of it
reaches the threshold, one pixel wide.

Exit code 0: all inputs were answered, or all but --max-failed; 1: more failed; 2: wrong usage, no inputs, or DIR holds
an earlier run; 3: the weights are missing or damaged.

example:
  dla edges photo.jpg --output edges/
  dla edges holiday/ -o edges/ --threshold 0.3
  dla edges holiday/ --model my-run/best -o edges/ --resume    # continue after Ctrl-C
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dla.cli.common import RunCounter
from dla.cli.dense import PhotoFiles, add_dense_flags, answer_photos, check_output
from dla.cli.parser import Parser, about
from dla.errors import UnavailableError

if TYPE_CHECKING:
    from dla.inference.dense_model import DenseModel
    from dla.inference.edge_detector import Boundaries
    from dla.inference.result_files import RecordWriter


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("edges", *about(__doc__), "IMAGE... [options]", config="--config")
    add_dense_flags(parser, "edges", "write NAME.edges.png, NAME.thin.png and NAME.lines.png for each photo, and "
                    "records.jsonl, into this folder")  # fmt: skip
    parser.flag("--threshold", type=float | None, metavar="T", help="probability from which a pixel may be on a line "
                "(default: the model's own, which had the best F on its validation photos, else 0.5)")  # fmt: skip
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    parser = build_parser()
    args = parser.read(argv)
    if args.print_config:
        parser.print_options(args)
        return 0

    def outputs(network: DenseModel) -> tuple[RecordWriter[Boundaries], PhotoFiles]:
        from dla.inference.segment_files import EdgeFiles, EdgesWriter

        return EdgesWriter(sys.stdout, args.format), EdgeFiles(Path(args.output or ""))

    with RunCounter(args, "edges") as counter:
        check_output(args)
        if importlib.util.find_spec("scipy") is None:
            raise UnavailableError("dla edges needs SciPy: pip install scipy")
        answer_photos(counter, {"threshold": args.threshold}, outputs, ("threshold",))
    return counter.exit_code
