"""The losses of dense networks, over the pixels of each photo.

N photos, K classes, H x W pixels. Targets are uint8 class ids, 255 where a pixel is ignored; for boundaries 1 and 0.
Each photo's loss stands for itself, so that a batch has the same loss however it is parted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dla.data.pair_split import IGNORED
from dla.training.augment import BatchAugment
from dla.training.recipe import LossConfig
from dla.training.task import Batch
from dla.types import Array

MOST_WEIGHT = 8.0  # of a class, over the mean of a pixel


@dataclass(frozen=True)
class PixelLabels:
    """Targets (N, H, W) and the weights of their pixels (N, H, W), 0 where they are ignored."""

    targets_NHW: Tensor
    weights_NHW: Tensor

    def part(self, start: int, stop: int) -> PixelLabels:
        """Return the labels of photos `start` to `stop` (exclusive)."""
        return PixelLabels(self.targets_NHW[start:stop], self.weights_NHW[start:stop])


@dataclass(frozen=True)
class PixelObjective:
    """The loss of a dense network, and the colour augmentation of its photos.

    weigh: takes targets (N, H, W) and whether they are known, and returns the weights of their pixels (N, H, W).
    """

    loss_config: LossConfig
    augment: BatchAugment
    weigh: Callable[[Tensor, Tensor], Tensor]

    def prepare(self, pixels_N3HW: Tensor, batch: Batch) -> tuple[Tensor, PixelLabels]:
        """Return the augmented pixels (0 to 255) and the labels of a batch."""
        targets_NHW = torch.from_numpy(batch.targets_N).to(pixels_N3HW.device).long()
        if self.augment.enabled:
            augmented, _ = self.augment(pixels_N3HW.div_(255))
            pixels_N3HW = augmented.mul(255)
        known_NHW = targets_NHW != IGNORED
        targets_NHW = targets_NHW.where(known_NHW, targets_NHW.new_zeros(()))
        return pixels_N3HW, PixelLabels(targets_NHW, self.weigh(targets_NHW, known_NHW) * known_NHW)

    def weights(self, labels: PixelLabels) -> Tensor:
        """Return each photo's weight (N,), the mean of its pixels'."""
        return labels.weights_NHW.mean((1, 2))

    def loss(self, output: Any, labels: PixelLabels, mean_weight: float | None) -> Tensor:
        """Return the mean loss of logits (N, K, H, W), or of a pair with those of the auxiliary classifier."""
        logits, *auxiliary = output if isinstance(output, tuple) else (output,)
        weight = max(mean_weight or 0.0, torch.finfo(torch.float32).tiny)
        loss = self._of_pixels(logits.float(), labels).mean() / weight
        if self.loss_config.lovasz:
            loss = loss + self.loss_config.lovasz * lovasz_softmax(logits.float(), labels)
        for other in auxiliary:
            loss = loss + self.loss_config.auxiliary * self._of_pixels(other.float(), labels).mean() / weight
        return loss

    def _of_pixels(self, logits_NKHW: Tensor, labels: PixelLabels) -> Tensor:
        """Return each photo's weighted loss (N,), the mean of its pixels'."""
        if logits_NKHW.shape[1] == 1:
            targets_NHW = labels.targets_NHW.float()
            loss_NHW = F.binary_cross_entropy_with_logits(logits_NKHW[:, 0], targets_NHW, reduction="none")
        else:
            smoothing = self.loss_config.label_smoothing
            loss_NHW = F.cross_entropy(logits_NKHW, labels.targets_NHW, reduction="none", label_smoothing=smoothing)
        loss_NP = (loss_NHW * labels.weights_NHW).flatten(1)
        if self.loss_config.ohem == 1:
            return loss_NP.mean(1)
        kept = max(1, round(self.loss_config.ohem * loss_NP.shape[1]))
        return loss_NP.topk(kept, 1, sorted=False).values.mean(1)

    def accuracy(self, output: Any, labels: PixelLabels) -> float:
        """Return the share of the pixels that are right, of those that are not ignored."""
        logits = output[0] if isinstance(output, tuple) else output
        answers_NHW = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(1)
        known_NHW = labels.weights_NHW > 0
        right = (answers_NHW == labels.targets_NHW) & known_NHW
        return float(right.sum() / known_NHW.sum().clamp(min=1))


def class_weights(config: LossConfig, shares_K: Array) -> Tensor:
    """Return the weights (K,) of classes with these shares of the pixels; their mean over the pixels is 1.

    A class without pixels has weight 0. None is above 8 times that of the mean pixel.
    """
    shares = torch.from_numpy(shares_K).float()
    if isinstance(config.class_weights, tuple):
        return torch.tensor(config.class_weights)
    if config.class_weights == "none":
        return torch.ones_like(shares)
    power = -0.5 if config.class_weights == "sqrt" else -1.0
    weights = shares.clamp(min=1e-9).pow(power) * (shares > 0)
    for _ in range(8):  # a limit on some raises the others
        weights = (weights / (weights * shares).sum()).clamp(max=MOST_WEIGHT)
    return weights


def balanced_sides(targets_NHW: Tensor, known_NHW: Tensor) -> Tensor:
    """Return weights (N, H, W) by which boundaries and the rest of each photo count the same (HED)."""
    positive = ((targets_NHW == 1) & known_NHW).sum((1, 2), keepdim=True)
    total = known_NHW.sum((1, 2), keepdim=True).clamp(min=1)
    share = positive / total
    return torch.where(targets_NHW == 1, 1 - share, share)


def lovasz_softmax(logits_NKHW: Tensor, labels: PixelLabels) -> Tensor:
    """Return the Lovasz-softmax loss (Berman et al. 2018, algorithm 1): the mean over photos of that over classes.

    The classes are those that the photo has.
    """
    known_N1P = (labels.weights_NHW > 0).flatten(1)[:, None]
    truth_NPK = F.one_hot(labels.targets_NHW.flatten(1), logits_NKHW.shape[1])
    truth_NKP = truth_NPK.movedim(2, 1) * known_N1P
    errors_NKP = (truth_NKP - logits_NKHW.softmax(1).flatten(2)).abs()
    # ignored pixels come last, where they change no other pixel's step
    errors_NKP, order_NKP = errors_NKP.where(known_N1P, errors_NKP.new_tensor(-1.0)).sort(2, descending=True)
    losses_NK = (errors_NKP.relu() * _jaccard_steps(truth_NKP.gather(2, order_NKP))).sum(2)
    has_NK = truth_NKP.any(2)
    return ((losses_NK * has_NK).sum(1) / has_NK.sum(1).clamp(min=1)).mean()


def _jaccard_steps(truth_NKP: Tensor) -> Tensor:
    """Return the gradient of the Jaccard loss of sets that grow along pixels sorted by their error."""
    total_NK1, seen_NKP = truth_NKP.sum(2, keepdim=True), truth_NKP.cumsum(2)
    size_P = torch.arange(1, truth_NKP.shape[2] + 1, device=truth_NKP.device)
    jaccard_NKP = 1 - (total_NK1 - seen_NKP) / (total_NK1 + size_P - seen_NKP)
    return jaccard_NKP.diff(dim=2, prepend=jaccard_NKP.new_zeros(1, 1, 1).expand(*jaccard_NKP.shape[:2], 1))
