"""Calibration of probabilities, and temperature scaling (Guo et al. 2017).

N is the number of photos, K of classes. Logits are any scores whose softmax gives the probabilities, such as their
logarithms.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dla.errors import UsageError
from dla.types import Array

BINS = 15
TEMPERATURES = 0.05, 20.0
CHUNK = 512  # rows in double precision at once


@dataclass(frozen=True, slots=True)
class Bin:
    """The photos whose top-1 probability is in (low, high]: their count, mean confidence and accuracy (0 to 1).

    `confidence` and `accuracy` are None for an empty bin.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """The bins of a reliability diagram, and `error`, the expected calibration error.

    It is the mean of the bins' |accuracy - confidence|, weighted by their number of photos.
    """

    error: float
    bins: tuple[Bin, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as JSON values (docs/formats.md)."""
        return {"error": self.error, "bins": [asdict(b) for b in self.bins]}


def reliability(confidence_N: Array, right_N: Array, bins: int = BINS) -> Calibration:
    """Compare top-1 probabilities (0 to 1) with accuracy, in bins of equal width."""
    edges = np.linspace(0, 1, bins + 1)
    bin_N = np.clip(np.searchsorted(edges, confidence_N, side="left") - 1, 0, bins - 1)
    counts, confident, right = (
        np.bincount(bin_N, weights, minlength=bins) for weights in (None, confidence_N, right_N.astype(float))
    )
    error = float(np.abs(right - confident).sum() / len(confidence_N))
    return Calibration(error, tuple(
        Bin(float(edges[b]), float(edges[b + 1]), int(n), float(confident[b] / n) if n else None,
            float(right[b] / n) if n else None)
        for b, n in enumerate(counts)
    ))  # fmt: skip


def apply_temperature(probabilities_NK: Array, temperature: float) -> Array:
    """Return softmax(logits / temperature) from the probabilities softmax(logits) (Guo et al. 2017).

    A graph that is exported with its softmax divides its logits itself: `dla.engines.graph.Network.at_temperature`,
    `dla.engines.quantized.QuantizedModel.model` and the program in `dla.exporting.targets`. The ranking of the classes
    does not change.
    """
    if temperature == 1:
        return probabilities_NK
    # dividing by the largest first keeps small probabilities from underflowing at a low temperature
    relative_NK = probabilities_NK / probabilities_NK.max(1, keepdims=True)
    raised_NK = relative_NK ** np.float32(1 / temperature)
    return raised_NK / raised_NK.sum(1, keepdims=True)  # type: ignore[no-any-return]


def fit_temperature(logits_NK: Array, targets_N: Array) -> float:
    """Return the temperature with the lowest log loss on these photos.

    The loss is convex in 1 / temperature, so the zero of its slope is found by Newton's method inside a bracket.

    Raises:
        UsageError: the minimum is outside of `TEMPERATURES`, for example because every photo is classified correctly.
    """
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if _slope(logits_NK, targets_N, low)[0] >= 0 or _slope(logits_NK, targets_N, high)[0] <= 0:
        raise UsageError(
            f"no temperature from {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g} fits these {len(targets_N):,} photos "
            "best: all are classified correctly, or no better than by chance. Use more photos that the network was "
            "not trained on"
        )
    inverse = 1.0
    for _ in range(100):
        slope, curvature = _slope(logits_NK, targets_N, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else low
        updated = step if low < step < high else (low + high) / 2
        if abs(updated - inverse) <= 1e-12 * inverse:
            break
        inverse = updated
    return float(1 / inverse)


def _slope(logits_NK: Array, targets_N: Array, inverse: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean log loss of `logits * inverse` with respect to `inverse`."""
    slope, curvature = 0.0, 0.0
    for start in range(0, len(targets_N), CHUNK):
        z_nK = logits_NK[start : start + CHUNK].astype(np.float64)
        own_n = np.take_along_axis(z_nK, targets_N[start : start + CHUNK, None], 1)[:, 0]
        p_nK = np.exp((z_nK - z_nK.max(1, keepdims=True)) * inverse)
        p_nK /= p_nK.sum(1, keepdims=True)
        mean_n = (p_nK * z_nK).sum(1)
        slope += float((mean_n - own_n).sum())
        curvature += float((p_nK * (z_nK - mean_n[:, None]) ** 2).sum())
    return slope / len(targets_N), curvature / len(targets_N)
