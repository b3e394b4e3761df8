"""Assign a class to each pixel of photos. Each input gets one record, in order: the share and the bounding box of each
class that it has, or an error. With --output, DIR gets a mask and an overlay of each photo.

Exit code 0: all inputs were segmented, or all but --max-failed; 1: more failed; 2: wrong usage, no inputs, or DIR holds
an earlier run; 3: the weights are missing or damaged.

example:
  dla segment street.jpg --output masks/
  dla segment drive/ --format jsonl
  dla segment drive/ --model my-run/best -o masks/ --coco masks.json
  dla segment drive/ -o voc/ --layout voc    # to correct them in CVAT
  dla segment drive/ -o masks/ --resume    # continue after Ctrl-C
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dla.cli.common import RunCounter, check_file
from dla.cli.dense import PhotoFiles, add_dense_flags, answer_photos, check_output
from dla.cli.parser import Parser, about
from dla.errors import UsageError
from dla.storage.files import check_new

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from dla.inference.result_files import RecordWriter
    from dla.inference.segmenter import Segmentation, Segmenter


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("segment", *about(__doc__), "IMAGE... [options]", config="--config")
    add_dense_flags(parser, "segment", "write NAME.mask.png, which holds class indices, and NAME.overlay.png for each "
                    "photo, and records.jsonl, into this folder")  # fmt: skip
    parser.flag("--probabilities", action="store_true", help="also write the probability of each class at each pixel, "
                "as NAME.npz in float16")  # fmt: skip
    parser.flag("--layout", type=Literal["files", "voc"], default="files", help="voc: photos and masks in --output as "
                "PASCAL VOC has them, without overlays; CVAT and dla train read it")  # fmt: skip
    parser.flag("--coco", metavar="FILE", help="also write all masks as COCO's JSON, run-length encoded")
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    parser = build_parser()
    args = parser.read(argv)
    if args.print_config:
        parser.print_options(args)
        return 0

    def outputs(network: Segmenter) -> tuple[RecordWriter[Segmentation], PhotoFiles]:
        from dla.inference.segment_files import MaskFiles, SegmentWriter, VocFiles

        folder, classes = Path(args.output or ""), network.classes
        voc = args.layout == "voc"
        files = VocFiles(folder, classes, network.palette) if voc else MaskFiles(folder, classes)
        return SegmentWriter(sys.stdout, args.format, classes), files

    options = {"probabilities": args.probabilities}
    with RunCounter(args, "segment") as counter:
        _check(args)
        answer_photos(counter, options, outputs, ("probabilities", "layout"))
    return counter.exit_code


def _check(args: Namespace) -> None:
    voc = args.layout == "voc"
    check_output(args, ("probabilities", *["layout"] * voc))
    if voc and args.probabilities:
        raise UsageError("--layout voc has no place for --probabilities. Give one of them")
    if args.coco is None:
        return
    check_file("--coco", args.coco)
    if not (args.resume or args.force):
        check_new(args.coco)
