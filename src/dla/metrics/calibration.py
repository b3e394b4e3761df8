"""Whether probabilities can be taken at their word, and one number that mends them (Guo et al. 2017).

N photos, K classes; logits are scores whose softmax gives the probabilities, so logarithms of probabilities too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dla.errors import UsageError
from dla.types import Array

__all__ = ["TEMPERATURES", "Bin", "Calibration", "apply_temperature", "fit_temperature", "reliability"]


BINS = 15
TEMPERATURES = 0.05, 20.0
CHUNK = 512  # rows in double precision at once


@dataclass(frozen=True, slots=True)
class Bin:
    """Photos whose first class has a probability in (low, high]: how many, its mean, and how often it is right.

    `confidence` and `accuracy` are None where there are none.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """`error` is the mean over the photos of their bin's |accuracy - confidence|: the expected calibration error."""

    error: float
    bins: tuple[Bin, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"error": self.error, "bins": [asdict(b) for b in self.bins]}


def reliability(confidence_N: Array, right_N: Array, bins: int = BINS) -> Calibration:
    """How the probability of the first class (0 to 1) compares with how often it is right, in bins of equal width."""
    edges = np.linspace(0, 1, bins + 1)
    place_N = np.clip(np.searchsorted(edges, confidence_N, side="left") - 1, 0, bins - 1)
    counts, confident, right = (
        np.bincount(place_N, weights, minlength=bins) for weights in (None, confidence_N, right_N.astype(float))
    )
    error = float(np.abs(right - confident).sum() / len(confidence_N))
    return Calibration(error, tuple(
        Bin(float(edges[b]), float(edges[b + 1]), int(n), float(confident[b] / n) if n else None,
            float(right[b] / n) if n else None)
        for b, n in enumerate(counts)
    ))  # fmt: skip


def apply_temperature(probabilities_NK: Array, temperature: float) -> Array:
    """The probabilities that logits divided by `temperature` give: softmax(logits / temperature) (Guo et al. 2017).

    This is what a temperature means everywhere. Where probabilities come out of a graph that is a file of its own, the
    graph divides its logits: `dla.engines.graph.Network.at_temperature`, `dla.engines.quantized.QuantizedModel.model`
    and the program in `dla.exporting.targets`. The order of the classes stays.
    """
    if temperature == 1:
        return probabilities_NK
    # the largest is divided away first, or a cold temperature would leave nothing of small ones
    relative_NK = probabilities_NK / probabilities_NK.max(1, keepdims=True)
    raised_NK = relative_NK ** np.float32(1 / temperature)
    return raised_NK / raised_NK.sum(1, keepdims=True)  # type: ignore[no-any-return]


def fit_temperature(logits_NK: Array, targets_N: Array) -> float:
    """The temperature whose probabilities have the least log loss on these photos.

    The loss is convex in 1 / temperature, so the zero of its slope is found by Newton's steps inside a bracket.

    Raises:
        UsageError: no temperature in `TEMPERATURES` is the best, as where every photo is right.
    """
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if _slope(logits_NK, targets_N, low)[0] >= 0 or _slope(logits_NK, targets_N, high)[0] <= 0:
        raise UsageError(
            f"no temperature from {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g} fits these {len(targets_N):,} photos "
            "best: all are right, or the network knows nothing of them. Take more photos, which it was not trained on"
        )
    inverse = 1.0
    for _ in range(100):
        slope, curvature = _slope(logits_NK, targets_N, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - inverse) <= 1e-12 * inverse:
            break
        inverse = following
    return float(1 / inverse)


def _slope(logits_NK: Array, targets_N: Array, inverse: float) -> tuple[float, float]:
    """First and second derivative of the mean log loss of `logits * inverse` by `inverse`."""
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
