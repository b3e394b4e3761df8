"""Types and constants that every package may use."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from typing import Any

    import numpy as np

__all__ = ["DEFAULT_MODEL", "Array"]


Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
DEFAULT_MODEL = "shipped:tiny200"  # what classifies where no network is named

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
