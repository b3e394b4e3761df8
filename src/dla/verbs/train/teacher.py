"""Who is asked besides the labels: another network, or scores that it saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dla.errors import UnavailableError, UsageError
from dla.images.prepare import Preprocessing
from dla.nets.fold import fold_batch_norm
from dla.recipes.schema import Distill
from dla.weights.load import open_model

__all__ = ["NetworkTeacher", "ScoresTeacher", "Teacher", "find_teacher"]

Array = np.ndarray[Any, np.dtype[Any]]


class Teacher(Protocol):
    """Gives logits (N, K) for a batch: its pixels as the student sees them, 0 to 255, and its rows of the split."""

    sees_mixed: bool

    def __call__(self, pixels_N3HW: Tensor, rows_N: Array) -> Tensor: ...


def find_teacher(distill: Distill, class_ids: tuple[str, ...], photos: int, device: torch.device) -> Teacher | None:
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
        opened = open_model(source)
        known = {name: k for k, name in enumerate(opened.config.label_names or ())}
        if missing := [c for c in class_ids if c not in known]:
            raise UsageError(f"the teacher {opened.origin} does not know the class {missing[0]!r}. Try another teacher")
        network: Any = fold_batch_norm(opened.model).requires_grad_(False)
        self.network = network.to(device=device, memory_format=torch.channels_last)
        self.columns = torch.tensor([known[c] for c in class_ids], device=device)
        own = Preprocessing.from_config(opened.config.pretrained_cfg, opened.config.exif)
        self.scale, self.shift = (torch.from_numpy(a).to(device)[:, None, None] for a in own.scale_shift())

    def __call__(self, pixels_N3HW: Tensor, rows_N: Array) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.network(pixels_N3HW * self.scale + self.shift)
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
