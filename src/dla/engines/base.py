"""What every engine offers."""

from __future__ import annotations

from collections.abc import Callable
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

    def features_at(self, at: str) -> Callable[[Array], Array]:
        """What turns uint8 photos (N, H, W, 3) into the float32 features at a place of the network, (N, C[, H, W]).

        Raises:
            UnknownNameError: the network has no such place (`dla.nets.taps.cut_at` says which there are).
        """
        ...
