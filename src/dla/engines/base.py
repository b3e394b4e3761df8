"""What every engine offers."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

__all__ = ["Array", "Engine"]

Array = np.ndarray[Any, np.dtype[Any]]


class Engine(Protocol):
    """A network ready to answer. It normalises the pixels itself, so that every engine is given the same ones."""

    @property
    def name(self) -> str:
        """What runs, and on what: "PyTorch on cpu"."""
        ...

    def probabilities(self, pixels_NHW3: Array) -> Array:
        """uint8 photos of one size -> float32 probabilities (N, K), each row summing to 1."""
        ...
