"""Events of a training run as plain values, and the callback that receives them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StepEvent:
    """The figures of one step: `step` (from 1) of `steps` in `epoch` (from 1) of `epochs`.

    `accuracy` is that on the batch, 0 to 1, of photos or of pixels; nan if its photos were mixed.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    lr: float
    photos: int


@dataclass(frozen=True, slots=True)
class EpochEvent:
    """The figures of one epoch: a line of `metrics.jsonl` (docs/train.md).

    `epoch` counts from 1, `step` over the whole run. `figures` are those of the validation by name, such as "top1" and
    "val_loss"; shares are from 0 to 1. They are measured with the weights in half precision, as they are stored.
    `data_wait` is the fraction of time spent waiting for photos.
    """

    epoch: int
    step: int
    loss: float
    lr: float
    figures: dict[str, float]
    seconds: float
    photos_per_second: float
    data_wait: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, with the validation's figures in place."""
        values: dict[str, Any] = asdict(self)
        figures: dict[str, float] = values.pop("figures")
        head = {name: values.pop(name) for name in ("epoch", "step", "loss", "lr")}
        return head | figures | values


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
