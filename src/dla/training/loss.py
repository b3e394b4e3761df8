"""The training loss: cross-entropy with the (mixed) labels, and distillation from a teacher.

N photos, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class Labels:
    """The labels of a batch.

    Photo n has class targets_N[n]; in a mixed batch the fraction shares_N[n] of it has class others_N[n].
    `teacher_NK` holds a teacher's probabilities at the distillation temperature.
    """

    targets_N: Tensor
    others_N: Tensor | None = None
    shares_N: Tensor | None = None
    teacher_NK: Tensor | None = None

    def part(self, start: int, stop: int) -> Labels:
        """Return the labels of photos `start` to `stop` (exclusive)."""
        fields = (self.targets_N, self.others_N, self.shares_N, self.teacher_NK)
        return Labels(*(None if f is None else f[start:stop] for f in fields))  # type: ignore[arg-type]


def label_texts(labels: Labels, names: Sequence[str]) -> list[str]:
    """Return each photo's label; a mixed photo has two, joined by a plus. `names` are the classes' readable names."""
    texts = [names[k] for k in labels.targets_N.tolist()]
    if labels.others_N is None:
        return texts
    others = [names[k] for k in labels.others_N.tolist()]
    return [own if own == other else f"{own} + {other}" for own, other in zip(texts, others, strict=True)]


@dataclass(frozen=True)
class Criterion:
    """The loss of a recipe; `weights_K` are class weights."""

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
        weight, t = self.distill.weight, self.distill.temperature
        divergence = F.kl_div((logits_NK / t).log_softmax(1), labels.teacher_NK, reduction="batchmean")
        return (1 - weight) * loss + weight * t * t * divergence

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
    """Returns logits (N, K) for a batch, given the student's pixels (0 to 255) and the photos' rows in the split.

    `sees_mixed` is True if the logits are of the mixed pixels.
    """

    sees_mixed: bool

    def __call__(self, pixels_N3HW: Tensor, rows_N: Array) -> Tensor:
        """Return the logits (N, K)."""
        ...


def open_teacher(
    distill: DistillConfig, class_ids: tuple[str, ...], photos: int, device: torch.device
) -> Teacher | None:
    """Open the recipe's teacher; None if it has none.

    Raises:
        UsageError: the teacher lacks a class, or the scores have the wrong shape.
        UnavailableError: the teacher or the scores cannot be read.
    """
    if distill.model:
        return NetworkTeacher(distill.model, class_ids, device)
    return ScoresTeacher(distill.scores, (photos, len(class_ids)), device) if distill.scores else None


class NetworkTeacher:
    """A trained network in evaluation mode, whose classes are matched by name."""

    sees_mixed = True

    def __init__(self, source: str, class_ids: tuple[str, ...], device: torch.device) -> None:
        loaded = load_model(source)
        columns = {name: k for k, name in enumerate(loaded.config.label_names or ())}
        if missing := [c for c in class_ids if c not in columns]:
            raise UsageError(
                f"the teacher {loaded.origin} does not know the class {missing[0]!r}. Give another teacher"
            )
        network: Any = fuse_conv_bn(loaded.model).requires_grad_(False)
        self.network = network.to(device=device, memory_format=torch.channels_last)
        self.columns = torch.tensor([columns[c] for c in class_ids], device=device)
        own = Preprocessing.from_config(loaded.config.pretrained_cfg, loaded.config.exif)
        self.normalize = Normalize(*own.scale_shift()).to(device)

    def __call__(self, pixels_N3HW: Tensor, rows_N: Array) -> Tensor:
        """Return the network's logits of these pixels."""
        with torch.no_grad():
            logits: Tensor = self.network(self.normalize.normalize_(pixels_N3HW.clone()))
            return logits[:, self.columns]


class ScoresTeacher:
    """Precomputed logits from a file, with one row per photo in the order of the data."""

    sees_mixed = False

    def __init__(self, path: str, shape: tuple[int, int], device: torch.device) -> None:
        try:
            self.scores_NK = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = getattr(error, "strerror", None) or "it is not an intact .npy file of numbers"  # in no NumPy words
            raise UnavailableError(f"the scores {path} cannot be read: {reason}") from error
        if not isinstance(self.scores_NK, np.ndarray) or self.scores_NK.dtype.kind not in "fiu":
            raise UsageError(f"the scores {path} are not an array of numbers. Save an array by numpy.save, as .npy")
        if self.scores_NK.shape != shape:
            raise UsageError(
                f"{Path(path).name} holds scores of shape {self.scores_NK.shape}; {shape[0]:,} training photos in "
                f"{shape[1]:,} classes need {shape}"
            )
        self.device = device

    def __call__(self, pixels_N3HW: Tensor, rows_N: Array) -> Tensor:
        """Return the stored logits of these rows."""
        return torch.from_numpy(self.scores_NK[rows_N].astype(np.float32)).to(self.device)
