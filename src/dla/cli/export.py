"""Export a network for other programs.

  onnx       model.onnx, for ONNX Runtime and other ONNX programs
  openvino   model.xml and model.bin, for OpenVINO
  pt2        model.pt2, for PyTorch without dla; takes preprocessed pixels

The exported model takes a uint8 RGB photo of any size and returns probabilities; that of a segmentation network
the class of each pixel, of a boundary network the probability of each. DIR also gets use.py, which does so for
a photo without dla, and a report that compares the export with PyTorch. An export whose results differ is
deleted.

Exit code 2: wrong usage, or DIR is not empty; 3: MODEL or a package is missing; 4: the results differ from
PyTorch's, or the int8 model loses too much accuracy.

example:
  dla export runs/mine/best -o out/ --to onnx
  dla export dla60 -o out/ --to openvino --photos holiday/
  dla export runs/mine/best -o small/ --to openvino --precision int8 --calibrate photos/
  python out/use.py cat.jpg
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, get_args

from dla.cli.common import show_progress
from dla.cli.parser import MODEL_HELP, Parser, about
from dla.options import ExportOptions, TargetName
from dla.text_table import text_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dla.exporting.export import Exported
    from dla.exporting.verify import Disagreement


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("export", *about(__doc__), "MODEL -o DIR --to KIND [options]")
    parser.flag("model", metavar="MODEL", help=MODEL_HELP)
    parser.flag("-o", "--output", metavar="DIR", help="output folder, new or empty")
    parser.flag("--to", type=TargetName | None, help="format of the export")
    parser.flag("--no-preprocessing", action="store_true", help="leave preprocessing out: the model takes resized and "
                "cropped pixels")  # fmt: skip
    parser.options(ExportOptions, precision=None)
    parser.flag("--calibrate", metavar="DATA", help="make the int8 model from these photos, and check it on part of "
                "them; at least 550, labelled if possible; for segmentation and boundaries with masks, as for "
                "dla train (default: use the stored int8 model)")  # fmt: skip
    parser.flag("--photos", metavar="DIR", help="photos to compare the results on (default: built-in photos)")
    parser.flag("-q", "--quiet", action="store_true", help="print only results")
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    parser = build_parser()
    args = parser.read(argv)
    if args.output is None:
        raise parser.missing("--output", "Give a new or empty folder")
    if args.to is None:
        raise parser.missing("--to", f"Allowed: {', '.join(get_args(TargetName))}")

    from dla.exporting.export import export

    with show_progress(args.quiet) as progress:
        options = {name: args[name] for name in ("precision", "calibrate", "photos")}
        options |= {"preprocessing": not args.no_preprocessing, "progress": progress}
        exported = export(args.model, args.output, args.to, **options)
    if exported.report.unreadable:
        print(f"dla: {exported.report.unreadable} photos of {args.photos} cannot be read", file=sys.stderr)
    print("\n".join(_lines(exported)))
    return 0


def _lines(exported: Exported) -> Iterator[str]:
    from dla.exporting.dense_verify import DenseExportReport

    report, script = exported.report, exported.folder / "use.py"
    batches = ", ".join(map(str, report.batch_sizes))
    compared = f"compared on {report.images} images at batch size {batches}: "
    if isinstance(report, DenseExportReport):
        compared += f"same answer for {100 * report.same_pixels:.3f} % of the pixels, logits within "
        compared += f"{report.max_difference:.0e} of the largest"
        usage = f"answers for each pixel without dla: python {script} PHOTO OUT.png"
        disagreements: tuple[Disagreement, ...] = ()
    else:
        disagreements = report.photo_disagreements or ()
        compared += f"same top-1 class for {report.images - len(disagreements)}, largest difference "
        compared += f"{report.max_difference:.0e}"
        usage = f"classifies a photo without dla: python {script} PHOTO"
    yield from text_table([(str(exported.file), compared), (str(script), usage)], "<<")
    for d in disagreements:
        yield f"different top-1 class: {d.image}, {d.actual} instead of {d.expected}, by {d.margin:.0e}"
