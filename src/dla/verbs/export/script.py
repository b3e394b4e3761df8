"""`use.py`: a few lines that answer one photo from the exported file, without dla."""

from __future__ import annotations

from dla.images.prepare import Preprocessing
from dla.verbs.export.forms import Name

__all__ = ["script"]

_IMPORTS = {
    "onnx": "import onnxruntime\nfrom PIL import Image, ImageOps",
    "openvino": "from PIL import Image, ImageOps\n\n"
    'sys.modules["openvino.tools.ovc"] = None  # a converter: it would tell its makers, and nothing here needs it\n'
    "import openvino",
    "pt2": "import torch\nfrom PIL import Image, ImageOps",
}

_OPEN = {
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


def script(form: Name, preprocessing: Preprocessing, takes_photos: bool) -> str:
    """The text of `use.py` beside a file of that form."""
    opened = "Image.open(sys.argv[1])"
    if preprocessing.exif == "apply":
        opened = f"ImageOps.exif_transpose({opened})"
    imports = _IMPORTS[form] if preprocessing.exif == "apply" else _IMPORTS[form].replace("Image, ImageOps", "Image")
    prepare = "" if takes_photos else f"{_prepare(preprocessing)}\n"
    return f'''\
"""The five likeliest classes of a photo: python use.py PHOTO"""

import json
import sys
from pathlib import Path

import numpy as np
{imports}

{_OPEN[form]}
photo = {opened}
if photo.mode.startswith("I;16"):
    photo = Image.fromarray(((np.asarray(photo, np.uint32) + 128) // 257).astype(np.uint8))
if photo.has_transparency_data:
    photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo.convert("RGBA"))
photo = photo.convert("RGB")
{prepare}pixels_1HW3 = np.array(photo)[None]
probabilities_K = {_RUN[form]}
for k in np.argsort(-probabilities_K, kind="stable")[:5]:
    print(f"{{100 * probabilities_K[k]:6.1f}} %  {{labels[k]}}")
'''


def _prepare(p: Preprocessing) -> str:
    """`Preprocessing.pixels` in Pillow's words, for this preprocessing alone."""
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
    if not p.may_be_short:
        return "\n".join([
            *lines,
            f"left, top = round((photo.width - {width}) / 2), round((photo.height - {height}) / 2)",
            f"photo = photo.crop((left, top, left + {width}, top + {height}))",
        ])  # fmt: skip
    return "\n".join([
        *lines,
        f"spare = photo.width - {width}, photo.height - {height}",
        "place = [-round(s / 2) if s >= 0 else -s // 2 for s in spare]",
        f'whole = Image.new("RGB", ({width}, {height}), {p.fill})',
        "whole.paste(photo, place)",
        "photo = whole",
    ])  # fmt: skip
