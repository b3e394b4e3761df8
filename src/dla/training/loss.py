"""What is made small: cross-entropy with the labels, mixed where photos were mixed, and with a teacher.

N photos, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dla.errors import UnavailableError, UsageError
from dla.images.preprocessing import Preprocessing
from dla.models.fuse import fuse_conv_bn
from dla.models.normalize import Normalize
from dla.training.recipe import DistillConfig, LossConfig
from dla.types import Array
from dla.weights.load import load_model

__all__ = ["Criterion", "Labels", "NetworkTeacher", "ScoresTeacher", "Teacher", "balanced_weights", "open_teacher"]


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

    loss: LossConfig
    distill: DistillConfig
    weights_K: Tensor | None = None

    def __call__(self, logits_NK: Tensor, labels: Labels, mean_weight: float | None = None) -> Tensor:
        """Return the mean over the photos, each weighted by its class.

        `mean_weight` is the mean of `photo_weights` over the whole batch, where this is a part of one: then the mean of
        the parts' losses is the loss of the batch.
        """
        loss = self._of_labels(logits_NK, labels, mean_weight)
        if labels.teacher_NK is None:
            return loss
        share, t = self.distill.weight, self.distill.temperature
        divergence = F.kl_div((logits_NK / t).log_softmax(1), labels.teacher_NK, reduction="batchmean")
        return (1 - share) * loss + share * t * t * divergence

    def photo_weights(self, labels: Labels) -> Tensor | None:
        """Return each photo's weight (N,), that of its class; a mixed photo's is mixed like its label."""
        if self.weights_K is None:
            return None
        own_N = self.weights_K[labels.targets_N]
        if labels.others_N is None or labels.shares_N is None:
            return own_N
        return own_N.lerp(self.weights_K[labels.others_N], labels.shares_N)

    def _of_labels(self, logits_NK: Tensor, labels: Labels, mean_weight: float | None) -> Tensor:
        """A photo's whole loss is weighted by its own class, label smoothing included: PyTorch's `weight` would weight
        the smoothed part of each class by that class, so that rare classes are answered everywhere.
        """
        weights_N = self.photo_weights(labels)
        if weights_N is None and labels.others_N is None:
            return F.cross_entropy(logits_NK, labels.targets_N, label_smoothing=self.loss.label_smoothing)
        loss_N = self._weighted(logits_NK, labels.targets_N)
        if labels.others_N is not None and labels.shares_N is not None:  # the cross-entropy with the mixed label
            loss_N = loss_N.lerp(self._weighted(logits_NK, labels.others_N), labels.shares_N)
        if weights_N is None:
            return loss_N.sum() / len(loss_N)
        return loss_N.sum() / weights_N.sum() if mean_weight is None else loss_N.mean() / mean_weight

    def _weighted(self, logits_NK: Tensor, targets_N: Tensor) -> Tensor:
        loss_N = F.cross_entropy(logits_NK, targets_N, label_smoothing=self.loss.label_smoothing, reduction="none")
        return loss_N if self.weights_K is None else self.weights_K[targets_N] * loss_N


def balanced_weights(targets_N: Tensor, classes: int) -> Tensor:
    """Return weights (K,) by which all classes with photos count the same; a class without photos has weight 0."""
    counts_K = torch.bincount(targets_N, minlength=classes)
    weights_K = len(targets_N) / (counts_K.count_nonzero() * counts_K.clamp(min=1)).float()
    return weights_K * (counts_K > 0)


class Teacher(Protocol):
    """Gives logits (N, K) for a batch: its pixels as the student sees them, 0 to 255, and its rows of the split."""

    sees_mixed: bool

    def __call__(self, pixels_N3HW: Tensor, rows_N: Array) -> Tensor: ...


def open_teacher(
    distill: DistillConfig, class_ids: tuple[str, ...], photos: int, device: torch.device
) -> Teacher | None:
    """The recipe's teacher, if it has one.

    Raises:
        UsageError: it does not know all the classes, or there are not as many scores as photos.
        UnavailableError: it cannot be had.
    """
    if distill.model:
        return NetworkTeacher(distill.model, class_ids, device)
    return ScoresTeacher(distill.scores, (photos, len(class_ids)), device) if distill.scores else None


class NetworkTeacher:
    """A trained network, in evaluation form; its classes are matched by name."""

    sees_mixed = True

    def __init__(self, source: str, class_ids: tuple[str, ...], device: torch.device) -> None:
        opened = load_model(source)
        known = {name: k for k, name in enumerate(opened.config.label_names or ())}
        if missing := [c for c in class_ids if c not in known]:
            raise UsageError(f"the teacher {opened.origin} does not know the class {missing[0]!r}. Try another teacher")
        network: Any = fuse_conv_bn(opened.model).requires_grad_(False)
        self.network = network.to(device=device, memory_format=torch.channels_last)
        self.columns = torch.tensor([known[c] for c in class_ids], device=device)
        own = Preprocessing.from_config(opened.config.pretrained_cfg, opened.config.exif)
        self.normalize = Normalize(*own.scale_shift()).to(device)

    def __call__(self, pixels_N3HW: Tensor, rows_N: Array) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.network(self.normalize.normalize_(pixels_N3HW.clone()))
            return logits[:, self.columns]


class ScoresTeacher:
    """Logits in a file, one row a photo in the order of the data."""

    sees_mixed = False

    def __init__(self, path: str, shape: tuple[int, int], device: torch.device) -> None:
        try:
            self.scores_NK = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UnavailableError(f"the scores {path} cannot be read: {error}") from error
        if not isinstance(self.scores_NK, np.ndarray) or self.scores_NK.dtype.kind not in "fiu":
            raise UsageError(f"the scores {path} are no array of numbers. Save one by numpy.save, as .npy")
        if self.scores_NK.shape != shape:
            raise UsageError(
                f"{Path(path).name} holds scores of shape {self.scores_NK.shape}; {shape[0]:,} training photos in "
                f"{shape[1]:,} classes take {shape}"
            )
        self.device = device

    def __call__(self, pixels_N3HW: Tensor, rows_N: Array) -> Tensor:
        return torch.from_numpy(self.scores_NK[rows_N].astype(np.float32)).to(self.device)
