"""The schema of a recipe: every setting that decides what a training run computes. Plain values only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from dla.data.sources import DataOptions
from dla.errors import UsageError
from dla.options import TaskName
from dla.training.recipe_input import AugmentConfig, InputConfig, at_least, below_one, from_to

Stage = Literal["none", "stem", "level0", "level1", "level2", "level3", "level4", "level5"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, weight decay, gradient accumulation and clipping.

    Args:
        name: sgd, or adamw (Loshchilov and Hutter 2019).
        momentum: momentum of SGD.
        nesterov: use Nesterov momentum with SGD.
        betas: betas of AdamW.
        weight_decay: weight decay of the convolutions and the classifier.
        decay_norms: also decay batch norms and biases, as in the paper's training.
        layer_decay: learning rate of each layer as a fraction of the next layer's; 1: the same for all.
        accumulate: split each batch into this many micro-batches and accumulate their gradients, to save memory;
            batch norms then see one micro-batch at a time.
        clip_norm: clip the gradient to this L2 norm; 0: off.
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
    """Learning-rate schedule.

    Args:
        name: cosine: half a cosine from `lr` to `end`; steps: multiply by `factor` every `every` epochs; constant.
        warmup_epochs: epochs of linear warm-up from `warmup_from`; may be a fraction.
        warmup_from: learning rate of the first step, as a fraction of `lr`.
        end: learning rate at the end of the cosine, as a fraction of `lr`.
        every: epochs between two steps of the schedule "steps".
        factor: factor of each step of the schedule "steps".
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
    """The loss, and class balancing.

    Args:
        label_smoothing: probability mass spread evenly over all classes.
        class_weights: balanced: weight each class inversely to its number of photos. For segmentation, sqrt: inversely
            to the square root of its share of the pixels; median: to its share (Eigen and Fergus 2015); or a weight
            for each class. For boundaries, balanced: weight both sides of each photo equally (HED, Xie and Tu 2015);
            or two weights, such as [1, 10] as in the paper's code.
        sampling: balanced: draw all classes equally often.
        lovasz: weight of the Lovasz-softmax loss beside the cross-entropy (Berman et al. 2018).
        ohem: share of the pixels of each photo, those with the highest loss, that count; 1: all.
        auxiliary: weight of the loss of an auxiliary classifier of the backbone at stride 8, in training only.
    """

    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced", "sqrt", "median"] | tuple[float, ...] = "none"
    sampling: Literal["natural", "balanced"] = "natural"
    lovasz: float = 0.0
    ohem: float = 1.0
    auxiliary: float = 0.0

    def __post_init__(self) -> None:
        from_to("loss.label_smoothing", self.label_smoothing, 0, 1)
        at_least("loss.lovasz", self.lovasz, 0)
        at_least("loss.auxiliary", self.auxiliary, 0)
        if not 0 < self.ohem <= 1:
            raise UsageError(f"loss.ohem is {self.ohem}. Allowed: above 0, up to 1")
        if isinstance(self.class_weights, tuple) and not (self.class_weights and min(self.class_weights) >= 0):
            raise UsageError(
                f"loss.class_weights is {list(self.class_weights)}. Allowed: numbers from 0 up, one per class"
            )


@dataclass(frozen=True)
class DistillConfig:
    """Knowledge distillation (Hinton et al. 2015).

    Args:
        model: teacher network, as `dla predict --model` takes it; it sees the same crops, and its classes are matched
            by name.
        scores: .npy file of precomputed teacher logits, with one row per training photo in the order of the data.
        weight: weight of the distillation loss, 0 to 1; the loss of the labels has the rest.
        temperature: softmax temperature of student and teacher in the distillation loss.
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
            raise UsageError("distill.model and distill.scores are both set. Give one of them")


@dataclass(frozen=True)
class RegularizationConfig:
    """Dropout and stochastic depth.

    Args:
        drop_rate: dropout probability before the classifier.
        drop_path_rate: stochastic-depth rate of the last block; it rises linearly from 0 at the first block.
    """

    drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("drop_rate", "drop_path_rate"):
            below_one(f"regular.{name}", getattr(self, name))


@dataclass(frozen=True)
class EmaConfig:
    """Exponential moving average (EMA) of the weights, which is validated and saved in place of the raw weights.

    Args:
        decay: EMA decay per step; 0: no average.
        warmup: limit the decay to (1 + n) / (10 + n) after n steps.
    """

    decay: float = 0.0
    warmup: bool = True

    def __post_init__(self) -> None:
        below_one("average.decay", self.decay)


@dataclass(frozen=True)
class EarlyStopConfig:
    """Early stopping.

    Args:
        patience: stop after this many epochs without a better top-1 (or a lower validation loss at equal top-1);
            0: never.
    """

    patience: int = 0

    def __post_init__(self) -> None:
        at_least("stop.patience", self.patience, 0)


@dataclass(frozen=True)
class ComputeConfig:
    """Precision, memory layout and memory savings.

    Args:
        autocast: mixed precision: bf16 or fp16 convolutions, on hardware that supports it.
        channels_last: use the channels-last memory layout, which is faster nearly everywhere.
        compile: use torch.compile, which takes minutes at the start and needs a C++ compiler on a CPU.
        checkpointing: use gradient checkpointing: less memory, about a third more time.
        sync_batch_norm: synchronize batch norms across GPUs (docs/many-machines.md).
    """

    autocast: Literal["none", "bf16", "fp16"] = "none"
    channels_last: bool = True
    compile: bool = False
    checkpointing: bool = False
    sync_batch_norm: bool = False


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run.

    Args:
        task: classify: one class per photo; segment: one class per pixel; edges: boundaries.
        model: network to train: a name, a model folder, or a weight file, as `dla predict --model` takes it.
        pretrained: start from its weights, with a new classifier if the classes differ.
        down_ratio: stride of the finest map that segmentation and boundaries decode: 2, 4 or 8 pixels.
        epochs: number of passes over the training photos.
        repeat: how often each photo is seen in an epoch, for small sets; each epoch ends with a validation.
        batch_size: photos per step, over all processes.
        lr: peak learning rate.
        seed: random seed; the same seed gives the same weights.
        freeze: freeze the stem and the levels up to this one, including their batch-norm statistics; level5 trains only
            the classifier (a linear probe).
        photos: path of the photos; DATA on the command line overrides it.
        data: columns of tables, validation split.
        input: input sizes and preprocessing.
        augment: data augmentation.
        optimizer: optimizer, weight decay, gradient clipping.
        schedule: learning-rate schedule.
        loss: loss and class balancing.
        distill: knowledge distillation.
        regular: dropout and stochastic depth.
        average: exponential moving average of the weights.
        stop: early stopping.
        compute: precision, memory layout, memory savings.
        dataset: description of the photos for the model folder; empty: the name of their folder.
        license: licence of the weights for the model folder; empty: that of the pretrained weights.
    """

    task: TaskName = "classify"
    model: str = "dla34"
    pretrained: bool = False
    down_ratio: int = 2
    epochs: int = 20
    repeat: int = 1
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
        at_least("repeat", self.repeat, 1)
        if self.down_ratio not in (2, 4, 8):
            raise UsageError(f"down_ratio is {self.down_ratio}. Allowed: 2, 4, 8")
        from_to("seed", self.seed, 0, 2**63 - 1)
        if not 0 < self.lr < math.inf:
            raise UsageError(f"lr is {self.lr}. Allowed: a number above 0")
        if self.batch_size % self.optimizer.accumulate:
            raise UsageError(
                f"batch_size is {self.batch_size}, which is not a multiple of "
                f"optimizer.accumulate ({self.optimizer.accumulate}). Change one of them"
            )
