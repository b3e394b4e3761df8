"""Small model folders that give each photo another answer: drawn weights, and statistics of real photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import dla
from dla.models.dense import Dense
from dla.weights.model_folder import ModelConfig, write_folder
from support.photos import crops

SIDE = 32
SPREAD = 1.5  # of the scores


def write_small(
    folder: Path,
    class_ids: Sequence[str],
    seed: int = 0,
    labels: dict[str, str] | None = None,
    architecture: str = "dla46_c",
) -> Path:
    """A network for photos of 32 pixels."""
    torch.manual_seed(seed)
    model = dla.create_model(architecture, num_classes=len(class_ids))
    preprocessing = dla.Preprocessing((SIDE, SIDE), 1.0)
    scale, shift = preprocessing.scale_shift()
    pixels = np.stack([preprocessing.pixels(photo) * scale + shift for photo in crops(24, seed=9)])
    x_N3HW = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        for _ in range(20):  # the running statistics come near those of these photos
            model(x_N3HW)
        model.fc.weight.mul_(SPREAD / model.eval()(x_N3HW).std())
    config = ModelConfig(
        architecture, len(class_ids), tuple(class_ids), labels, pretrained_cfg=preprocessing.to_config(),
        dla={"task": "classify"},
    )  # fmt: skip
    write_folder(folder, model.state_dict(), config)
    return folder


def write_dense(folder: Path, class_ids: Sequence[str], **ours: object) -> Path:
    """A segmentation network over a dla34_half with drawn weights; of one class, a boundary network."""
    torch.manual_seed(0)
    task = "segment" if len(class_ids) > 1 else "edges"
    model = Dense.over(dla.create_model("dla34_half", num_classes=0), len(class_ids), 8)
    dla_fields = {"task": task, "down_ratio": 8, **ours}
    config = ModelConfig("dla34_half", len(class_ids), tuple(class_ids), dla=dla_fields)
    write_folder(folder, model.state_dict(), config)
    return folder
