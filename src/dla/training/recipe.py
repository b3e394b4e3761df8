"""The one schema of a recipe: everything that decides what a training run computes. Plain values only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dla.data.sources import DataOptions
from dla.errors import UsageError

__all__ = [
    "AugmentConfig",
    "ComputeConfig",
    "DistillConfig",
    "EarlyStopConfig",
    "EmaConfig",
    "InputConfig",
    "LossConfig",
    "OptimizerConfig",
    "Recipe",
    "RegularizationConfig",
    "ScheduleConfig",
]


Stage = Literal["none", "stem", "level0", "level1", "level2", "level3", "level4", "level5"]


@dataclass(frozen=True)
class InputConfig:
    """What the network sees of a photo.

    Args:
        sizes: side of the square training crops in pixels, by the epoch (counted from 0) from which it holds; with
            several sides the steps take turns. null: as the network is validated.
        val_size: side of the square that the network is validated with and will predict with. null: the network's own.
        crop_pct: share of the resized photo that validation and prediction keep. null: the network's own.
        crop_mode: center, squash or border (docs/model-folder.md). null: the network's own.
        interpolation: bilinear, bicubic, ... null: the network's own.
    """

    sizes: dict[int, int | list[int]] | None = None
    val_size: int | None = None
    crop_pct: float | None = None
    crop_mode: Literal["center", "squash", "border"] | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"] | None = None

    def __post_init__(self) -> None:
        if self.sizes is not None and (
            min(self.sizes, default=1) != 0
            or not all(_as_list(v) for v in self.sizes.values())
            or min(self.all_sizes()) < 1
        ):
            raise UsageError(f"sizes is {self.sizes}: it needs a positive size from epoch 0 on, such as {{0: 64}}")
        if self.val_size is not None:
            at_least("input.val_size", self.val_size, 1)
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise UsageError(f"input.crop_pct is {self.crop_pct}. Allowed: above 0, up to 1")

    def all_sizes(self) -> list[int]:
        """Every side that training crops have, in pixels; none where it is that of validation."""
        return [side for value in (self.sizes or {}).values() for side in _as_list(value)]

    def size_at(self, epoch: int, step: int, own: int) -> int:
        """Side of the training crops in this step of this epoch, in pixels; `own` is the side of validation."""
        if self.sizes is None:
            return own
        sides = _as_list(self.sizes[max(e for e in self.sizes if e <= epoch)])
        return sides[step % len(sides)]


@dataclass(frozen=True)
class AugmentConfig:
    """What a training step changes about the photos. What is 0 (or 1 for a scale and a ratio) does not happen.

    Args:
        scale: share of the photo's area that a random crop keeps, from and to.
        ratio: aspect ratio of the crop, width by height, from and to.
        ratio_rule: "log", its logarithm is uniform (Szegedy et al. 2015); or "swap", it is uniform and half of the
            crops have width and height swapped, the rule of the paper's code.
        flip: probability of a mirror image.
        margin: share of the photo's width and height by which its mirror image is put around it before the crop.
            With it `scale` may go beyond 1: the photo is then seen smaller than it is.
        brightness: largest relative change, 0 to 1; as are `contrast` and `saturation`. The four of them by kornia.
        contrast: see `brightness`.
        saturation: see `brightness`.
        hue: largest turn of the colours, in parts of the whole circle, 0 to 0.5.
        rand_operations: operations of RandAugment (Cubuk et al. 2020, kornia's list) a step, drawn anew for each batch.
        rand_magnitude: their strength, between 0 and 30.
        erase: probability that a random rectangle of a photo becomes grey (Zhong et al. 2020).
        mixup: alpha of mixup (Zhang et al. 2018): each photo is mixed with another by a share of Beta(alpha, alpha).
        cutmix: alpha of CutMix (Yun et al. 2019). With mixup too, each batch takes one of them by the throw of a coin.
        mix_probability: share of the batches that are mixed.
    """

    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    ratio_rule: Literal["log", "swap"] = "log"
    flip: float = 0.5
    margin: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    rand_operations: int = 0
    rand_magnitude: int = 9
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UsageError(f"augment.scale is {list(self.scale)}: two rising shares above 0, such as [0.35, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UsageError(f"augment.ratio is {list(self.ratio)}: two rising numbers above 0, such as [0.75, 1.3333]")
        if self.scale[1] > (1 + 2 * self.margin) ** 2:
            raise UsageError(f"augment.scale ends at {self.scale[1]}: beyond 1 it needs more augment.margin")
        for name in ("flip", "brightness", "contrast", "saturation", "erase", "mix_probability"):
            from_to(f"augment.{name}", getattr(self, name), 0, 1)
        from_to("augment.hue", self.hue, 0, 0.5)
        from_to("augment.rand_magnitude", self.rand_magnitude, 1, 29)
        from_to("augment.rand_operations", self.rand_operations, 0, 10)
        for name in ("margin", "mixup", "cutmix"):
            at_least(f"augment.{name}", getattr(self, name), 0)


@dataclass(frozen=True)
class OptimizerConfig:
    """How a gradient becomes a step.

    Args:
        name: "sgd" or "adamw" (Loshchilov and Hutter 2019).
        momentum: of SGD.
        nesterov: SGD looks ahead.
        betas: of AdamW.
        weight_decay: on the weights of convolutions.
        decay_norms: also on norms and biases, as the paper's training had it.
        layer_decay: each layer's learning rate is this share of the next one's; 1: all have the same.
        accumulate: a step's photos go through the network in this many parts, one after another, to save memory;
            a batch norm then sees a part at a time.
        clip_norm: longer gradients are shortened to this length; 0: never.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    decay_norms: bool = False
    layer_decay: float = 1.0
    accumulate: int = 1
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        at_least("optimizer.weight_decay", self.weight_decay, 0)
        at_least("optimizer.accumulate", self.accumulate, 1)
        at_least("optimizer.clip_norm", self.clip_norm, 0)
        from_to("optimizer.momentum", self.momentum, 0, 1)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"optimizer.betas is {list(self.betas)}. Allowed: two numbers from 0 to below 1")
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"optimizer.layer_decay is {self.layer_decay}. Allowed: above 0, up to 1")
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise UsageError("optimizer.nesterov needs optimizer.momentum above 0. Try: --optimizer.nesterov false")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate goes over the run.

    Args:
        name: "cosine", half a cosine from `lr` to `end`; "steps", times `factor` every `every` epochs; or "constant".
        warmup_epochs: over which it rises linearly from `warmup_from`; may be a fraction.
        warmup_from: share of `lr` at the very first step.
        end: share of `lr` at the very end of a cosine.
        every: epochs.
        factor: of a step.
    """

    name: Literal["cosine", "steps", "constant"] = "cosine"
    warmup_epochs: float = 1.0
    warmup_from: float = 0.0
    end: float = 0.0
    every: int = 30
    factor: float = 0.1

    def __post_init__(self) -> None:
        at_least("schedule.warmup_epochs", self.warmup_epochs, 0)
        at_least("schedule.every", self.every, 1)
        from_to("schedule.warmup_from", self.warmup_from, 0, 1)
        from_to("schedule.end", self.end, 0, 1)
        from_to("schedule.factor", self.factor, 0, 1)


@dataclass(frozen=True)
class LossConfig:
    """What is made small: cross-entropy.

    Args:
        label_smoothing: share of the label's probability that is spread over all classes.
        class_weights: "balanced": photos of rare classes weigh more, so that all classes weigh the same.
        sampling: "balanced": photos of rare classes come more often, so that all classes come equally often.
    """

    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    sampling: Literal["natural", "balanced"] = "natural"

    def __post_init__(self) -> None:
        from_to("loss.label_smoothing", self.label_smoothing, 0, 1)


@dataclass(frozen=True)
class DistillConfig:
    """Learning from another network as well as from the labels (Hinton et al. 2015).

    Args:
        model: the teacher, anything that `dla predict --model` takes; it sees the same crops, and its classes are
            matched by name.
        scores: a .npy file of logits in place of a teacher, one row a training photo in the order of the data.
        weight: share of the teacher's part in the loss, 0 to 1.
        temperature: both distributions are softened by this.
    """

    model: str | None = None
    scores: str | None = None
    weight: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        from_to("distill.weight", self.weight, 0, 1)
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"distill.temperature is {self.temperature}. Allowed: a number above 0")
        if self.model and self.scores:
            raise UsageError("distill has both a model and scores. One teacher is enough")


@dataclass(frozen=True)
class RegularizationConfig:
    """What keeps a network from learning the photos by heart.

    Args:
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth, rising linearly from 0 at the first block to this at the last.
    """

    drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("drop_rate", "drop_path_rate"):
            below_one(f"regular.{name}", getattr(self, name))


@dataclass(frozen=True)
class EmaConfig:
    """The running average of the weights, which is what is validated and kept.

    Args:
        decay: its memory: the share of the old average in the new one; 0: no average.
        warmup: it begins with a short memory, min(decay, (1 + n) / (10 + n)) after n steps.
    """

    decay: float = 0.0
    warmup: bool = True

    def __post_init__(self) -> None:
        below_one("average.decay", self.decay)


@dataclass(frozen=True)
class EarlyStopConfig:
    """When a run ends before its last epoch.

    Args:
        patience: after this many epochs without a better top-1, or a lower loss at the same; 0: never.
    """

    patience: int = 0

    def __post_init__(self) -> None:
        at_least("stop.patience", self.patience, 0)


@dataclass(frozen=True)
class ComputeConfig:
    """How it is computed.

    Args:
        autocast: "bf16" or "fp16": convolutions in half precision, where the machine has the instructions.
        channels_last: the layout in memory that is faster nearly everywhere.
        compile: by torch.compile, which takes minutes at the start and needs a C++ compiler on a CPU.
        checkpointing: keep only each level's output for the backward pass: less memory, about a third more time.
        sync_batch_norm: on several GPUs, normalise over the photos of all of them together (docs/many-machines.md).
    """

    autocast: Literal["none", "bf16", "fp16"] = "none"
    channels_last: bool = True
    compile: bool = False
    checkpointing: bool = False
    sync_batch_norm: bool = False


@dataclass(frozen=True)
class Recipe:
    """A whole training run.

    Args:
        model: a network's name, or anything else that `dla predict --model` takes.
        pretrained: begin with its weights, the classifier replaced where the classes differ.
        epochs: passes over the training photos.
        batch_size: photos a step.
        lr: the highest learning rate.
        seed: the same seed gives the same weights.
        freeze: the stem and the levels up to this one stay as they are, their batch-norm statistics too; with "level5"
            only the classifier learns (a linear probe).
        photos: where the photos are; what is given as DATA goes before it.
        data: how they lie.
        input: what the network sees of a photo.
        augment: what a step changes about the photos.
        optimizer: how a gradient becomes a step.
        schedule: how the learning rate goes.
        loss: what is made small.
        distill: a teacher.
        regular: dropout and stochastic depth.
        average: the running average of the weights.
        stop: when a run ends early.
        compute: precision, layout, memory.
        dataset: what the photos are, in words; goes into the model folder. Without it, the name of their folder.
        license: what the weights may be used for, in words; goes into the model folder. Without it, what the weights
            that it begins with say.
    """

    model: str = "dla34"
    pretrained: bool = False
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.1
    seed: int = 0
    freeze: Stage = "none"
    photos: str = ""
    data: DataOptions = field(default_factory=DataOptions)
    input: InputConfig = field(default_factory=InputConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    regular: RegularizationConfig = field(default_factory=RegularizationConfig)
    average: EmaConfig = field(default_factory=EmaConfig)
    stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    dataset: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        at_least("epochs", self.epochs, 1)
        at_least("batch_size", self.batch_size, 1)
        from_to("seed", self.seed, 0, 2**63 - 1)
        if not 0 < self.lr < math.inf:
            raise UsageError(f"lr is {self.lr}. Allowed: a number above 0")
        if self.batch_size % self.optimizer.accumulate:
            raise UsageError(
                f"batch_size is {self.batch_size}, which optimizer.accumulate, {self.optimizer.accumulate}, does not "
                "divide"
            )


def at_least(name: str, value: float, low: float) -> None:
    """Raise a UsageError for a value that is too small, or endless."""
    if not low <= value < math.inf:
        raise UsageError(f"{name} is {value}: it must be {'finite' if value == math.inf else f'at least {low}'}")


def below_one(name: str, value: float) -> None:
    """Raise a UsageError for a share that is not below 1."""
    if not 0 <= value < 1:
        raise UsageError(f"{name} is {value}. Allowed: from 0 to below 1")


def from_to(name: str, value: float, low: float, high: float) -> None:
    """Raise a UsageError for a value outside of a range."""
    if not low <= value <= high:
        raise UsageError(f"{name} is {value}. Allowed: {low} to {high}")


def _as_list(side: int | Sequence[int]) -> list[int]:
    return [side] if isinstance(side, int) else list(side)
