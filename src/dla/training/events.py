"""Events of a training run as plain values, and the callback that receives them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepEvent:
    """The figures of one step: `step` (from 1) of `steps` in `epoch` (from 1) of `epochs`.

    `top1` is the accuracy on the batch, 0 to 1; nan if its photos were mixed.
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
    """The figures of one epoch: a line of `metrics.jsonl` (docs/train.md).

    `epoch` counts from 1, `step` over the whole run. Accuracies (0 to 1) and `val_loss` are measured with the weights
    in half precision, as they are stored. `data_wait` is the fraction of time spent waiting for photos.
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
    """Base class of callbacks, whose methods do nothing.

    Each is called between two steps, when the state of the run can be saved.
    """

    def on_step(self, step: StepEvent) -> None:
        """Handle the end of a step."""

    def on_wait(self) -> None:
        """Handle a wait for photos; called several times a second while the next batch is not ready."""

    def on_validation_batch(self) -> None:
        """Handle the start of a validation batch."""

    def on_epoch(self, epoch: EpochEvent, is_best: bool) -> None:
        """Handle the end of an epoch; `is_best` is True if it is the best so far."""
