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
    """

    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    flip: float = 0.5


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
        sizes: side of the square training crops in pixels, by the epoch (counted from 0) from which it holds.
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
    sizes: dict[int, int] = field(default_factory=lambda: {0: 64})
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
        if 0 not in self.sizes or min(self.sizes.values()) < 1:
            raise UsageError(f"sizes is {self.sizes}: it needs a positive size from epoch 0 on, such as {{0: 64}}")
        for name in ("epochs", "batch_size", "val_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be at least 1")

    def size_at(self, epoch: int) -> int:
        """Side of the training crops in this epoch, in pixels."""
        return self.sizes[max(e for e in self.sizes if e <= epoch)]
