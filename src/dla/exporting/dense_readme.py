"""Build README.md and use.py of an exported segmentation or boundary network."""

from __future__ import annotations

from dla.catalog import ModelInfo
from dla.drawing.palette import class_palette
from dla.engines.dense_files import BYTE_CLASSES
from dla.exporting.dense_targets import ABOVE_STRIDE, DenseSource
from dla.exporting.dense_verify import LOGITS_DIFFERENCE, MOST_SIDE, SAME_PIXELS, DenseExportReport, agreement
from dla.exporting.readme import IMPORTS, OPEN, READ_PHOTO, int8_precision
from dla.exporting.targets import TARGETS
from dla.exporting.verify import LEVEL
from dla.options import TargetName
from dla.version import __version__

_RUN = {
    "onnx": 'network.run(None, {"pixels": pixels_1HW3})[0][0]',
    "openvino": "network(pixels_1HW3)[0][0]",
    "pt2": "network(torch.from_numpy(pixels_1HW3))[0][0].detach().numpy()",
}


def dense_readme(name: TargetName, source: DenseSource, info: ModelInfo, report: DenseExportReport) -> str:
    """Return the text of README.md."""
    target, p, file = TARGETS[name], source.preprocessing, source.file
    facts = {
        "network": f"{info.architecture}, {info.params / 1e6:.1f} M parameters",
        "weights": f"{report.model}, SHA-256 `{report.sha256}`",
        "licence": info.license or "not stated",
        "restrictions": info.restrictions,
        "trained on": info.dataset,
        "takes": f"`pixels`, uint8 (N, H, W, 3): {_takes(name, source)}",
        "gives": _gives(name, source),
        "preprocessing": f"{p.interpolation}, EXIF orientation: {p.exif}",
        "precision": int8_precision(source.quantized),
        "runs in": target.runs_in,
        "needs": f"`{target.packages[0]}`; `use.py` also numpy and pillow",
    }
    lines = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value)
    what = "the class" if file.task == "segment" else "the probability of a boundary"
    gates = "".join(f"\n\nCompared with fp32: {gate}." for gate in report.gates)
    return f"""\
# {info.model} for {target.title}

Written by dla {__version__}. `python use.py PHOTO OUT.png` writes {what} of each pixel of a photo to a PNG file. Class
ids, colours and most of the facts below are also in `{report.file}`.

| | |
| --- | --- |
{lines}

## Checked

{_checked(report)}{gates}
"""


def _takes(name: TargetName, source: DenseSource) -> str:
    short = source.about["preprocessing"]["short_side"]
    if source.file.short_side is not None:
        return f"RGB photos of any one size. They are scaled to a short side of {short} pixels inside"
    if short is None:
        return (
            f"RGB photos of any one size{'' if TARGETS[name].any_size else f' from {ABOVE_STRIDE}x{ABOVE_STRIDE} on'}"
        )
    return f"RGB photos of one size, scaled to a short side of {short} pixels, as `use.py` does"


def _gives(name: TargetName, source: DenseSource) -> str:
    what = "the number of the class of each pixel" if source.file.task == "segment" else "of each pixel, 0 to 1"
    kind = "float32" if source.file.task == "edges" else "uint8" if source.file.classes <= BYTE_CLASSES else "int64"
    also = "; and `logits`" if name == "pt2" else ""
    return f"`{source.file.answer}`, {kind} (N, H, W): {what}, at the size of the input{also}"


def _checked(report: DenseExportReport) -> str:
    text = f"""\
{report.runtime} compared with {report.reference} on {report.images} images made from {report.photos} photos, none
larger than {MOST_SIDE} pixels, in batches of {" and ".join(map(str, report.batch_sizes))}.

| | measured | required |
| --- | --- | --- |
| same answer from the same pixels | {100 * report.same_pixels:.4f} % of all pixels | {100 * SAME_PIXELS:g} % |
| difference of a logit, from the same pixels | {report.max_difference:.1e} of the largest | {LOGITS_DIFFERENCE:g} |"""
    if report.from_photos is None:
        return text
    least = 100 * agreement(report.precision)
    return f"""{text}
| largest difference of a scaled pixel | {report.max_pixel_difference} of 255 | {LEVEL} |
| same answer from the photo | {100 * report.from_photos:.4f} % of all pixels | {least:g} % |"""


def dense_script(to: TargetName, source: DenseSource) -> str:
    """Return the text of `use.py` for a file of format `to`."""
    exif = source.preprocessing.exif == "apply"
    imports = IMPORTS[to] if exif else IMPORTS[to].replace("Image, ImageOps", "Image")
    opened = "ImageOps.exif_transpose(Image.open(sys.argv[1]))" if exif else "Image.open(sys.argv[1])"
    short = source.about["preprocessing"]["short_side"]
    scaling = "" if source.file.short_side is not None or short is None else _scale(source, short)
    segment = source.file.task == "segment"
    write = _WRITE_EDGES if not segment else _write_mask(source)
    what = "the class" if segment else "the probability of a boundary (255 is 1)"
    return f'''\
"""Write {what} of each pixel of a photo to a PNG file: python use.py PHOTO OUT.png"""

import json
import sys
from pathlib import Path

import numpy as np
{imports}

{OPEN[to]}
photo = {opened}
{READ_PHOTO}
size = photo.size
{scaling}pixels_1HW3 = np.array(photo)[None]
answer_HW = {_RUN[to]}
{write}'''


def _scale(source: DenseSource, short: int) -> str:
    filter_ = f"Image.Resampling.{source.preprocessing.interpolation.upper()}"
    return f"photo = photo.resize([max(1, round(side * {short} / min(size))) for side in size], {filter_})\n"


def _write_mask(source: DenseSource) -> str:
    kind, palette = "np.uint16", ""
    if source.file.classes <= BYTE_CLASSES:
        levels = class_palette(source.file.classes, source.about["palette"]).ravel().tolist()
        kind, palette = "np.uint8", f"mask.putpalette({levels})\n"
    return f"""\
mask = Image.fromarray(answer_HW.astype({kind})).resize(size, Image.Resampling.NEAREST)
{palette}mask.save(sys.argv[2])
counts = np.bincount(answer_HW.ravel(), minlength=len(labels))
for k in np.argsort(-counts, kind="stable"):
    if counts[k]:
        print(f"{{100 * counts[k] / answer_HW.size:6.2f}} %  {{labels[k]}}")
"""


_WRITE_EDGES = """\
levels = Image.fromarray((255 * answer_HW).round().astype(np.uint8))
levels.resize(size, Image.Resampling.BILINEAR).save(sys.argv[2])
"""
