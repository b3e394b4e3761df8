"""What a run tells while it goes on, as plain values, and who is told."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EpochEvent", "StepEvent", "TrainerCallback"]


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


class TrainerCallback:
    """Hears of a run. Each method is called between two steps, when the state of the run can be saved; none does
    anything here.
    """

    def on_step(self, step: StepEvent) -> None:
        """After each step."""

    def on_validation_batch(self) -> None:
        """Before each batch of an epoch's validation."""

    def on_epoch(self, epoch: EpochEvent, is_best: bool) -> None:
        """After each epoch; `is_best` says whether none before it was better."""
