"""Dense networks without a network: the logits of a pixel are a function of the photo's pixels, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dla.images.preprocessing import Preprocessing
from dla.inference.edge_detector import EdgeDetector
from dla.inference.segmenter import Segmenter
from dla.types import ClassName
from dla.weights.model_folder import ModelConfig

Logits = Callable[[np.ndarray], np.ndarray]  # uint8 (1, H, W, 3) to (1, K, H, W)


class FlatEngine:
    """An engine that computes `logits`."""

    name = "flat"

    def __init__(self, logits: Logits) -> None:
        self.logits = logits

    def features_at(self, node: str) -> Logits:
        assert node == "logits"
        return self.logits


def by_colour(pixels_1HW3: np.ndarray) -> np.ndarray:
    """The brightest channel is the class."""
    return np.moveaxis(pixels_1HW3, 3, 1).astype(np.float32) / 32


def segmenter(class_ids: Sequence[str], logits: Logits = by_colour, origin: str = "flat", **dla: Any) -> Segmenter:
    """A segmentation network of these classes."""
    classes = tuple(ClassName(name, f"a {name}", name) for name in class_ids)
    config = ModelConfig("flat", len(classes), tuple(class_ids), dla={"task": "segment", **dla})
    return Segmenter(FlatEngine(logits), Preprocessing(), classes, config, origin, "0" * 64)  # type: ignore[arg-type]


def edge_detector(logits: Logits, origin: str = "flat") -> EdgeDetector:
    """A boundary network."""
    config = ModelConfig("flat", 1, ("boundary",), dla={"task": "edges"})
    classes = (ClassName("boundary", "boundary", "boundary"),)
    return EdgeDetector(FlatEngine(logits), Preprocessing(), classes, config, origin, "0" * 64)  # type: ignore[arg-type]
