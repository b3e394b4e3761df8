"""Dense models whose answer for a pixel is known: it depends on that pixel alone. They take no time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dla.images.preprocessing import Preprocessing
from dla.inference.edge_detector import EdgeDetector
from dla.inference.segmenter import Segmenter
from dla.types import ClassName
from dla.weights.model_folder import ModelConfig

RED, GREEN, BLUE = (220, 30, 30), (30, 200, 40), (40, 50, 230)
NAMES = ("red", "green", "blue")


class PixelEngine:
    """An engine whose logits are a function of the channels, (H, W, 3) to (K, H, W)."""

    name = "pixels"
    max_concurrent = 1

    def __init__(self, logits: Callable[[np.ndarray], np.ndarray]) -> None:
        self.logits = logits

    def own_process(self) -> None:
        pass

    def probabilities(self, pixels_NHW3: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def features_at(self, at: str) -> Callable[[np.ndarray], np.ndarray]:
        assert at == "logits"
        return lambda pixels_1HW3: self.logits(pixels_1HW3[0].astype(np.float32))[None]


def segmenter(classes: int = 3, **dla: object) -> Segmenter:
    """The class of a pixel is its strongest channel. Of more than 3 classes, the others are nowhere."""
    names = (*NAMES, *(f"class_{k}" for k in range(3, classes)))

    def logits(pixels_HW3: np.ndarray) -> np.ndarray:
        whole = np.full((classes, *pixels_HW3.shape[:2]), -9, np.float32)
        whole[:3] = pixels_HW3.transpose(2, 0, 1) / 25
        return whole

    config = ModelConfig("dla34_half", classes, names, dla={"task": "segment", **dla})
    named = tuple(ClassName(name, name, "") for name in names)
    return Segmenter(PixelEngine(logits), Preprocessing(), named, config, "pixels", "0" * 64)


def edge_detector(**dla: object) -> EdgeDetector:
    """The logit of a pixel is its brightness, from -5 to 5."""
    engine = PixelEngine(lambda pixels_HW3: pixels_HW3.mean(2)[None] / 25.5 - 5)
    config = ModelConfig("dla34_half", 1, dla={"task": "edges", **dla})
    return EdgeDetector(engine, Preprocessing(), (ClassName("boundary", "boundary", ""),), config, "pixels", "0" * 64)
