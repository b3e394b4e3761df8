"""Fold the student into an ordinary dla34_half with 1,000 classes, choose its bias and temperature, and measure it.

    python tools/wide1000/finish.py student.safetensors --sources sources.json --photos union.parquet --output FOLDER

The bias (less k times the logarithm of how probable the network finds each class on training photos) and the
temperature are chosen on the odd half of the 1,300 ImageNet validation photos. The other tests are measured once:
EliSchwartz's 1,000 photos and the even half. The teacher's figures are printed for comparison.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from pack import files_of, read
from PIL import Image
from safetensors.torch import load_file
from student import TEACHER, Teacher
from torch import Tensor

import dla
from dla.images.labels import imagenet_classes
from dla.images.preprocessing import Preprocessing
from dla.metrics.calibration import fit_temperature
from dla.metrics.classification import evaluate
from dla.weights.load import load_model
from dla.weights.model_folder import half_precision, write_folder

SIDE, FACTORS = 128, (0.0, 0.5, 0.75, 1.0, 1.25, 1.5)
PREPROCESSING = Preprocessing(size=(SIDE, SIDE), crop_pct=1.0)


def folded(state: dict[str, Tensor], classifier: torch.nn.Linear) -> dict[str, Tensor]:
    """Return the student's state dict with its linear layer and the teacher's classifier multiplied into `fc`."""
    linear_w, linear_b = (state[f"linear.{part}"].double() for part in ("weight", "bias"))
    w, b = classifier.weight.detach().double(), classifier.bias.detach().double()
    network = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
    network = {k: v.float() if v.is_floating_point() else v for k, v in network.items()}
    return network | {"fc.weight": (w @ linear_w).float()[:, :, None, None], "fc.bias": (w @ linear_b + b).float()}


def logits(model: Any, encoded: list[bytes]) -> Tensor:
    """Return the logits (N, 1000) of encoded photos with dla's own preprocessing."""
    mean, std = (torch.tensor(v)[:, None, None] * 255 for v in (PREPROCESSING.mean, PREPROCESSING.std))
    found = []
    with torch.inference_mode():
        for start in range(0, len(encoded), 100):
            images = [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded[start : start + 100]]
            pixels = torch.from_numpy(np.stack([PREPROCESSING.pixels(image) for image in images]))
            found.append(model((pixels.permute(0, 3, 1, 2).float() - mean) / std))
    return torch.cat(found)


def of_teacher(teacher: Teacher, encoded: list[bytes]) -> Tensor:
    whole = dataclasses.replace(PREPROCESSING, size=(TEACHER, TEACHER))
    found = []
    with torch.inference_mode():
        for start in range(0, len(encoded), 50):
            images = [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded[start : start + 50]]
            pixels = torch.from_numpy(np.stack([whole.pixels(image) for image in images])).permute(0, 3, 1, 2)
            found.append(teacher.network._fc(teacher(pixels.float())))
    return torch.cat(found)


def tests(places: dict[str, str]) -> dict[str, tuple[list[bytes], np.ndarray]]:
    """Return the encoded photos and class indices of each test set."""
    index = {c.class_id: i for i, c in enumerate(imagenet_classes())}
    samples = list(read(places["samples"], files_of(places["samples"])))
    found = {"samples": ([d for _, d in samples], np.array([index[Path(n).name.split("_")[0]] for n, _ in samples]))}
    listed = dict(read(places["val1300"], ["ILSVRC2012_VAL_SET/dataset.txt"]))
    lines = next(iter(listed.values())).decode().split("\n")
    label = {Path(p).name: int(k) for p, _, k in (line.partition(",") for line in lines if "," in line)}
    val = sorted((Path(n).name, d) for n, d in read(places["val1300"], files_of(places["val1300"])))
    for part, name in ((0, "val1300, even half"), (1, "val1300, odd half")):
        rows = val[part::2]
        found[name] = ([d for _, d in rows], np.array([label[n] for n, _ in rows]))
    return found


def told(logits_NK: Tensor, targets_N: np.ndarray) -> str:
    names = [c.class_id for c in imagenet_classes()]
    e = evaluate(logits_NK.float().numpy(), targets_N, names)
    one, five = e.top1_interval, e.top5_interval
    return (f"top-1 {e.top1:.1%} ({one.low:.1%} to {one.high:.1%}), top-5 {e.top5:.1%} ({five.low:.1%} to "
            f"{five.high:.1%}), {e.count} photos")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True, help="training photos, for the bias")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--odd-only", action="store_true", help="measure nothing but the odd half")
    args = parser.parse_args()
    torch.set_num_threads(2)
    teacher = Teacher().eval()
    model = dla.create_model("dla34_half", num_classes=1000)
    model.load_state_dict(folded(load_file(args.student), teacher.network._fc))
    model.eval()
    parts = tests(json.loads(args.sources.read_text())["tests"])
    odd, odd_N = parts.pop("val1300, odd half")
    seen = pq.read_table(args.photos, columns=["image"])["image"].slice(0, 8000).to_pylist()
    prior_K = logits(model, seen).softmax(1).mean(0).clamp(min=1e-6).log()
    odd_NK = logits(model, odd)
    right = {k: float(((odd_NK - k * prior_K).argmax(1).numpy() == odd_N).mean()) for k in FACTORS}
    factor = max(right, key=lambda k: right[k])
    print("bias, odd half:", {k: f"{v:.1%}" for k, v in right.items()}, "->", factor)
    with torch.no_grad():
        model.fc.bias -= factor * prior_K
    model.load_state_dict(half_precision(model.state_dict()))
    odd_NK = logits(model, odd)
    temperature = fit_temperature(odd_NK.numpy(), odd_N)
    print(f"odd half: {told(odd_NK, odd_N)}; temperature {temperature:.3f}")
    if not args.odd_only:
        for name, (photos, targets_N) in parts.items():
            print(f"{name}: {told(logits(model, photos), targets_N)}")
            print(f"{name}, teacher: {told(of_teacher(teacher, photos), targets_N)}")
    config = load_model("shipped:tiny200").config
    sys.exit(write(args.output, model, config, temperature))


def write(folder: Path, model: Any, config: Any, temperature: float) -> None:
    """Write the model folder; its licence statement is added by hand before it ships."""
    classes = imagenet_classes()
    config = dataclasses.replace(config, architecture="dla34_half", num_classes=1000,
                                 label_names=tuple(c.class_id for c in classes))  # fmt: skip
    write_folder(folder, half_precision(model.state_dict()), config)
    print(folder, temperature)


if __name__ == "__main__":
    main()
