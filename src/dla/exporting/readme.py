"""Build an exported folder's README.md, which documents the file's inputs, outputs and check, and its `use.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dla.catalog import ModelInfo
from dla.exporting.targets import TARGETS, ExportSource
from dla.exporting.verify import AGREEMENT, DIFFERENCE, LEVEL, ExportReport
from dla.images.preprocessing import Preprocessing
from dla.options import TargetName
from dla.version import __version__

if TYPE_CHECKING:
    from dla.engines.quantized import QuantizedModel


def readme(name: TargetName, source: ExportSource, info: ModelInfo, report: ExportReport) -> str:
    """Return the text of README.md."""
    target, p = TARGETS[name], source.preprocessing
    size = f"{p.size[0]}x{p.size[1]}"
    if source.takes_photos:
        takes = "`pixels`, uint8 (N, H, W, 3): RGB photos of any one size. They are resized and cropped inside"
    else:
        free = " N, H and W are free" if target.any_size else " N is free"
        free += ", so are H and W above the network's stride." if source.above_stride and not target.any_size else "."
        takes = f"`pixels`, uint8 (N, {p.size[0]}, {p.size[1]}, 3): RGB, resized and cropped as `use.py` does.{free}"
    facts = {
        "network": f"{info.architecture}, {info.params / 1e6:.1f} M parameters, {info.macs / 1e9:.2f} GMACs",
        "weights": f"{report.model}, SHA-256 `{report.sha256}`",
        "licence": info.license or "not stated",
        "restrictions": info.restrictions,
        "trained on": info.dataset,
        "takes": takes,
        "gives": f"`probabilities`, float32 (N, {info.num_classes}), each row summing to 1",
        "preprocessing": f"{size}, {p.crop_mode} crop of {p.crop_pct:g}, {p.interpolation}, EXIF orientation: {p.exif}",
        "precision": int8_precision(source.quantized),
        "temperature": f"{source.temperature:g}" if source.temperature != 1 else None,
        "runs in": target.runs_in,
        "needs": f"`{target.packages[0]}`; `use.py` also numpy and pillow",
    }
    gates = "".join(f"\n\nCompared with fp32: {gate}." for gate in report.gates)
    lines = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value)
    return f"""\
# {info.model} for {target.title}

Written by dla {__version__}. `python use.py PHOTO` prints the five most probable classes of a photo. Labels, class ids
and most of the facts below are also in `{report.file}`.

| | |
| --- | --- |
{lines}

## Checked

{_checked(report)}{gates}
"""


def _checked(report: ExportReport) -> str:
    count, same = report.images, report.images - len(report.disagreements)
    text = f"""\
{report.runtime} compared with {report.reference} on {count} images made from {report.photos} photos, in batches of
{", ".join(map(str, report.batch_sizes))}.

| | measured | allowed |
| --- | --- | --- |
| same first class on the same pixels | {same} of {count} | all |
| largest difference of a probability on the same pixels | {report.max_difference:.1e} | {DIFFERENCE:g} |"""
    if report.max_pixel_difference is None or report.photo_disagreements is None:
        return text
    listed = "".join(
        f"\n\n{d.image}: {d.actual} instead of {d.expected}, which was more probable by {d.margin:.1e}."
        for d in report.photo_disagreements
    )
    same_photos = f"{count - len(report.photo_disagreements)} of {count}"
    return f"""{text}
| largest difference of a preprocessed pixel | {report.max_pixel_difference} of 255 | {LEVEL} |
| same first class from the photo | {same_photos} | {100 * AGREEMENT:g} % |{listed}"""


def int8_precision(quantized: QuantizedModel | None) -> str | None:
    """Return what an int8 model computes in int8; None without one."""
    if quantized is None:
        return None
    controlled = quantized.calibration["accuracy_control"]
    exact = "the first layer, the last and those that int8 hurts" if controlled else "the first layer and the last"
    return f"int8; {exact} in fp32"


IMPORTS = {
    "onnx": "import onnxruntime\nfrom PIL import Image, ImageOps",
    "openvino": "from PIL import Image, ImageOps\n\n"
    'sys.modules["openvino.tools.ovc"] = None  # the converter, which sends telemetry and is not needed here\n'
    "import openvino",
    "pt2": "import torch\nfrom PIL import Image, ImageOps",
}

OPEN = {
    "onnx": """\
network = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"), providers=["CPUExecutionProvider"])
labels = json.loads(network.get_modelmeta().custom_metadata_map["labels"])""",
    "openvino": """\
model = openvino.Core().read_model(Path(__file__).with_name("model.xml"))
labels = json.loads(model.get_rt_info(["dla", "labels"]).value)
network = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})""",
    "pt2": """\
about = {"about.json": ""}
network = torch.export.load(Path(__file__).with_name("model.pt2"), extra_files=about).module()
labels = json.loads(about["about.json"])["labels"]""",
}

_RUN = {
    "onnx": 'network.run(None, {"pixels": pixels_1HW3})[0][0]',
    "openvino": "network(pixels_1HW3)[0][0]",
    "pt2": "network(torch.from_numpy(pixels_1HW3))[0].detach().numpy()",
}


READ_PHOTO = """\
if photo.mode.startswith("I;16"):
    photo = Image.fromarray(((np.asarray(photo, np.uint32) + 128) // 257).astype(np.uint8))
if photo.has_transparency_data:
    photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo.convert("RGBA"))
photo = photo.convert("RGB")"""


def usage_script(to: TargetName, preprocessing: Preprocessing, takes_photos: bool) -> str:
    """Return the text of `use.py` for a file of format `to`."""
    opened = "Image.open(sys.argv[1])"
    if preprocessing.exif == "apply":
        opened = f"ImageOps.exif_transpose({opened})"
    imports = IMPORTS[to] if preprocessing.exif == "apply" else IMPORTS[to].replace("Image, ImageOps", "Image")
    prepare = "" if takes_photos else f"{_prepare(preprocessing)}\n"
    return f'''\
"""Print the five most probable classes of a photo: python use.py PHOTO"""

import json
import sys
from pathlib import Path

import numpy as np
{imports}

{OPEN[to]}
photo = {opened}
{READ_PHOTO}
{prepare}pixels_1HW3 = np.array(photo)[None]
probabilities_K = {_RUN[to]}
for k in np.argsort(-probabilities_K, kind="stable")[:5]:
    print(f"{{100 * probabilities_K[k]:6.1f}} %  {{labels[k]}}")
'''


def _prepare(p: Preprocessing) -> str:
    """Return the Pillow code that does what `Preprocessing.pixels` does for this preprocessing."""
    (to_height, to_width), (height, width) = p.target, p.size
    filter_ = f"Image.Resampling.{p.interpolation.upper()}"
    if p.crop_mode == "squash":
        lines = [f"photo = photo.resize(({to_width}, {to_height}), {filter_})"]
    elif p.crop_mode == "center" and to_height == to_width:
        sides = f"[{to_height} * side // min(photo.size) for side in photo.size]"
        lines = [f"photo = photo.resize({sides}, {filter_})"]
    else:
        take = "max" if p.crop_mode == "border" else "min"
        lines = [
            f"ratio = {take}(photo.width / {to_width}, photo.height / {to_height})",
            f"photo = photo.resize([max(1, round(side / ratio)) for side in photo.size], {filter_})",
        ]
    if p.may_be_short:
        lines += [
            f"spare = photo.width - {width}, photo.height - {height}",
            "place = [-round(s / 2) if s >= 0 else -s // 2 for s in spare]",
            f'whole = Image.new("RGB", ({width}, {height}), {p.fill})',
            "whole.paste(photo, place)",
            "photo = whole",
        ]
    else:
        lines += [
            f"left, top = round((photo.width - {width}) / 2), round((photo.height - {height}) / 2)",
            f"photo = photo.crop((left, top, left + {width}, top + {height}))",
        ]
    return "\n".join(lines)
