"""What a run tells while it goes on, as plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["EpochEvent", "RunListener", "StepEvent"]


@dataclass(frozen=True, slots=True)
class StepEvent:
    """One step: its epoch (from 1, of `epochs`) and place in it (from 1, of `steps`).

    `top1` is of its own photos, 0 to 1, and nan where they were mixed.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    top1: float
    lr: float
    photos: int


@dataclass(frozen=True, slots=True)
class EpochEvent:
    """What one pass over the training photos came to: a line of `metrics.jsonl` (docs/train.md).

    `epoch` counts from 1, `step` over the whole run. Accuracies (0 to 1) and `val_loss` are of the weights as they
    would be stored. `data_wait` is the share of the time in which the loop waited for photos.
    """

    epoch: int
    step: int
    loss: float
    lr: float
    top1: float
    top5: float
    val_loss: float
    seconds: float
    photos_per_second: float
    data_wait: float


@dataclass(frozen=True)
class RunListener:
    """What the command line shows of a run."""

    said: Callable[[str], None] = lambda text: None
    step: Callable[[StepEvent], None] = lambda step: None
    epoch: Callable[[EpochEvent, bool], None] = lambda epoch, is_best: None
