"""How often a classifier is right."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["topk_accuracy"]

Array = np.ndarray[Any, np.dtype[Any]]


def topk_accuracy(scores_NK: Array, targets_N: Array, k: int) -> float:
    """The share of rows whose target is among the k highest scores (0 to 1). Ties count for the earlier class."""
    own_N1 = np.take_along_axis(scores_NK, targets_N[:, None], 1)
    higher_N = (scores_NK > own_N1).sum(1)
    earlier_N = ((scores_NK == own_N1) & (np.arange(scores_NK.shape[1]) < targets_N[:, None])).sum(1)
    return float((higher_N + earlier_N < k).mean())
