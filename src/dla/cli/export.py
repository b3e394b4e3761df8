"""`dla export`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, get_args

from dla.cli.common import show_progress
from dla.cli.parser import Parser
from dla.errors import UsageError
from dla.options import ExportOptions, TargetName
from dla.text_table import text_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dla.exporting.export import Exported


DESCRIPTION = """\
Write a network as one file for other programs. MODEL is whatever --model takes elsewhere: a network's
name, a model folder, a .safetensors or .pth file, shipped:NAME.

  onnx       model.onnx, for ONNX Runtime and whatever else reads ONNX
  openvino   model.xml and model.bin, for OpenVINO
  pt2        model.pt2, for PyTorch without dla; it takes prepared pixels

Photos of any size go in as uint8 RGB, probabilities come out. DIR also gets use.py, which answers a
photo without dla, and a report: the file is kept only if it answers as PyTorch does.

Exit code 2: DIR is not empty; 3: MODEL or a package cannot be had; 4: the file answers otherwise, or
the int8 model is too much worse than fp32."""

EXAMPLE = """\
  dla export runs/mine/best -o out/ --to onnx
  dla export dla60 -o out/ --to openvino --photos holiday/
  dla export runs/mine/best -o small/ --to openvino --precision int8 --calibrate photos/
  python out/use.py cat.jpg"""


def build_parser() -> Parser:
    parser = Parser("export", DESCRIPTION, EXAMPLE, "MODEL -o DIR --to KIND [options]")
    parser.flag("model", metavar="MODEL", help="the network")
    parser.flag("-o", "--output", metavar="DIR", help="where it goes: a new or empty folder")
    parser.flag("--to", type=TargetName | None, help="the kind of file")
    parser.flag("--no-preprocessing", action="store_true", help="have the file take pixels as the network sees them, "
                "resized and cropped")  # fmt: skip
    parser.options(ExportOptions, precision=None)
    parser.flag("--calibrate", metavar="DATA", help="make the int8 model from these photos and check it on others; 550 "
                "or more, labels if there are any (default: the stored int8 model)")  # fmt: skip
    parser.flag("--photos", metavar="DIR", help="compare the answers on these photos (default: some that come along)")
    parser.flag("-q", "--quiet", action="store_true", help="no progress")
    return parser


def run(argv: list[str]) -> int:
    args = build_parser().read(argv)
    if args.output is None:
        raise UsageError("--output is missing. Give a new or empty folder")
    if args.to is None:
        raise UsageError(f"--to is missing. Allowed: {', '.join(get_args(TargetName))}")

    from dla.exporting.export import export

    with show_progress(args.quiet) as progress:
        made = export(
            args.model,
            args.output,
            args.to,
            preprocessing=not args.no_preprocessing,
            precision=args.precision,
            calibrate=args.calibrate,
            photos=args.photos,
            progress=progress,
        )
    if made.report.unreadable:
        print(f"dla: {made.report.unreadable} photos of {args.photos} cannot be read", file=sys.stderr)
    print("\n".join(_lines(made)))
    return 0


def _lines(made: Exported) -> Iterator[str]:
    report, script = made.report, made.folder / "use.py"
    disagreements = report.photo_disagreements or ()
    batches = ", ".join(map(str, report.batch_sizes))
    compared = (f"compared on {report.images} images at batch {batches}: same first class for "
                f"{report.images - len(disagreements)}, largest difference {report.max_difference:.0e}")  # fmt: skip
    rows = [(str(made.file), compared), (str(script), f"answers a photo without dla: python {script} PHOTO")]
    yield from text_table(rows, "<<")
    for d in disagreements:
        yield f"other first class: {d.image}, {d.actual} for {d.expected}, by {d.margin:.0e}"
