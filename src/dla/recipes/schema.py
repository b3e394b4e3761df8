"""The one schema of a recipe: everything that decides what a training run computes. Plain values only."""

from __future__ import annotations

from dataclasses import dataclass, field

from dla.errors import UsageError

__all__ = ["Augment", "Distill", "Recipe"]


@dataclass(frozen=True)
class Augment:
    """What a training step changes about a photo.

    Args:
        scale: share of the photo's area that a random crop keeps, from and to.
        ratio: aspect ratio of the crop, from and to.
        flip: probability of a mirror image.
        margin: share of the photo's width and height by which its mirror image is put around it before the crop.
            With it `scale` may go beyond 1: the photo is then seen smaller than it is.
    """

    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    flip: float = 0.5
    margin: float = 0.0


@dataclass(frozen=True)
class Distill:
    """Learning from another network's saved scores as well as from the labels (Hinton et al. 2015).

    Args:
        scores: a .npy file of logits, one row a training photo in the order of the data; none: labels alone.
        weight: share of the teacher's part in the loss, 0 to 1.
        temperature: both distributions are softened by this.
    """

    scores: str | None = None
    weight: float = 0.5
    temperature: float = 2.0


@dataclass(frozen=True)
class Recipe:
    """A whole training run.

    Args:
        model: a network's name.
        epochs: passes over the training photos.
        batch_size: photos a step.
        sizes: side of the square training crops in pixels, by the epoch (counted from 0) from which it holds;
            with several sides the steps take turns.
        val_size: side of the square that the network is validated with and will predict with.
        lr: highest learning rate; it rises linearly over `warmup_epochs` and falls to zero by a cosine.
        warmup_epochs: may be a fraction.
        momentum: of SGD (Nesterov).
        weight_decay: on the weights of convolutions; norms and biases have none.
        label_smoothing: share of the label's probability that is spread over all classes.
        ema_decay: the running average of the weights, which is what is validated and kept.
        augment: what a step changes about a photo.
        distill: a teacher.
        seed: the same seed gives the same weights.
        dataset: what the photos are, in words; goes into the model folder.
        licence: what the weights may be used for, in words; goes into the model folder.
    """

    model: str = "dla34_half"
    epochs: int = 20
    batch_size: int = 128
    sizes: dict[int, int | list[int]] = field(default_factory=lambda: {0: 64})
    val_size: int = 64
    lr: float = 0.2
    warmup_epochs: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 2e-4
    label_smoothing: float = 0.1
    ema_decay: float = 0.999
    augment: Augment = field(default_factory=Augment)
    distill: Distill = field(default_factory=Distill)
    seed: int = 0
    dataset: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        if 0 not in self.sizes or any(min(_as_list(side), default=0) < 1 for side in self.sizes.values()):
            raise UsageError(f"sizes is {self.sizes}: it needs a positive size from epoch 0 on, such as {{0: 64}}")
        for name in ("epochs", "batch_size", "val_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be at least 1")

        if self.augment.scale[1] > (1 + 2 * self.augment.margin) ** 2:
            raise UsageError(f"augment.scale ends at {self.augment.scale[1]}: beyond 1 it needs more augment.margin")

    def size_at(self, epoch: int, step: int) -> int:
        """Side of the training crops in this step of this epoch, in pixels."""
        sides = _as_list(self.sizes[max(e for e in self.sizes if e <= epoch)])
        return sides[step % len(sides)]


def _as_list(side: int | list[int]) -> list[int]:
    return [side] if isinstance(side, int) else side
