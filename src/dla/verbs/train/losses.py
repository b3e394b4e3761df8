"""What is made small: cross-entropy with the labels, mixed where photos were mixed, and with a teacher.

N photos, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dla.recipes.schema import Distill, Loss

__all__ = ["Criterion", "Labels", "balanced_weights"]


@dataclass(frozen=True)
class Labels:
    """What a batch should be called.

    Photo n is of class targets_N[n]; where photos were mixed, shares_N[n] of it is of class others_N[n].
    `teacher_NK` are a teacher's probabilities, softened by the temperature.
    """

    targets_N: Tensor
    others_N: Tensor | None = None
    shares_N: Tensor | None = None
    teacher_NK: Tensor | None = None

    def part(self, start: int, stop: int) -> Labels:
        """Those of photos `start` to `stop`."""
        fields = (self.targets_N, self.others_N, self.shares_N, self.teacher_NK)
        return Labels(*(None if f is None else f[start:stop] for f in fields))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Criterion:
    """The loss of a recipe; `weights_K` weigh the classes."""

    loss: Loss
    distill: Distill
    weights_K: Tensor | None = None

    def __call__(self, logits_NK: Tensor, labels: Labels) -> Tensor:
        """The mean over the photos."""
        loss = self._of_labels(logits_NK, labels)
        if labels.teacher_NK is None:
            return loss
        share, t = self.distill.weight, self.distill.temperature
        divergence = F.kl_div((logits_NK / t).log_softmax(1), labels.teacher_NK, reduction="batchmean")
        return (1 - share) * loss + share * t * t * divergence

    def _of_labels(self, logits_NK: Tensor, labels: Labels) -> Tensor:
        """Both classes of a mixed photo count by their shares, which is the cross-entropy with its mixed label."""
        smoothing, weights_K = self.loss.label_smoothing, self.weights_K
        own_N, other_N, share_N = labels.targets_N, labels.others_N, labels.shares_N
        if other_N is None or share_N is None:
            return F.cross_entropy(logits_NK, own_N, weights_K, label_smoothing=smoothing)
        of_own_N, of_other_N = (
            F.cross_entropy(logits_NK, t, weights_K, label_smoothing=smoothing, reduction="none")
            for t in (own_N, other_N)
        )
        total = of_own_N.lerp(of_other_N, share_N).sum()
        if weights_K is None:
            return total / len(own_N)
        return total / weights_K[own_N].lerp(weights_K[other_N], share_N).sum()


def balanced_weights(targets_N: Tensor, classes: int) -> Tensor:
    """Weights (K,) by which all classes weigh the same: photos / (classes * photos of the class)."""
    counts_K = torch.bincount(targets_N, minlength=classes)
    return len(targets_N) / (classes * counts_K.clamp(min=1)).float()
