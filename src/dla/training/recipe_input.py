"""The groups of a recipe about sizes and augmentation, and the checks of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dla.errors import UsageError


@dataclass(frozen=True)
class InputConfig:
    """Input sizes and preprocessing.

    Args:
        sizes: side of the square training crops in pixels, by first epoch (counted from 0), such as {0: 64, 10: 96};
            a list of sides alternates from step to step. null: the validation size.
        val_size: side of the square input in validation and prediction, in pixels. null: the network's own.
        crop_pct: fraction of the resized photo kept by the centre crop of validation and prediction. null: the
            network's own.
        crop_mode: center, squash or border (docs/model-folder.md). null: the network's own.
        interpolation: resampling filter, such as bilinear or bicubic. null: the network's own.
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
        """Return every side of the training crops in pixels, or an empty list if it is the validation size."""
        return [side for value in (self.sizes or {}).values() for side in _as_list(value)]

    def size_at(self, epoch: int, step: int, own: int) -> int:
        """Return the side of the training crops at this step of this epoch in pixels; `own` is the validation size."""
        if self.sizes is None:
            return own
        sides = _as_list(self.sizes[max(e for e in self.sizes if e <= epoch)])
        return sides[step % len(sides)]


@dataclass(frozen=True)
class AugmentConfig:
    """Data augmentation. The value 0 (1 for `scale` and `ratio`) turns an augmentation off.

    Args:
        scale: range of the area of a random crop, as a fraction of the photo's area.
        ratio: range of the crop's aspect ratio, width / height.
        ratio_rule: how the aspect ratio is drawn. log: log-uniformly (Szegedy et al. 2015); swap: uniformly, with width
            and height swapped in half of the crops, as in the paper's code.
        flip: probability of a horizontal flip.
        margin: reflection padding before the crop, as a fraction of the photo's width and height. It allows a `scale`
            above 1, which shrinks the photo.
        brightness: largest relative change of the brightness, 0 to 1 (needs kornia, as the next three do).
        contrast: largest relative change of the contrast, 0 to 1.
        saturation: largest relative change of the saturation, 0 to 1.
        hue: largest shift of the hue, as a fraction of the colour circle, 0 to 0.5.
        rand_operations: number of RandAugment operations per batch (Cubuk et al. 2020; kornia's list).
        rand_magnitude: strength of the RandAugment operations, 1 to 29.
        erase: probability of random erasing, which fills a rectangle of the photo with grey (Zhong et al. 2020).
        mixup: alpha of mixup (Zhang et al. 2018), which mixes pairs of photos with weights from Beta(alpha, alpha).
        cutmix: alpha of CutMix (Yun et al. 2019). With mixup also on, each batch picks one of the two at random.
        mix_probability: probability that a batch is mixed by mixup or CutMix.
        crop: (height, width) of the training crops of segmentation and boundaries in pixels, or by first epoch, as
            `input.sizes` has it: {0: [180, 240], 20: [360, 480]}.
        zoom: range of the magnification of photo and mask, drawn log-uniformly.
        rotate: largest angle of a random rotation in degrees, or quarter: a random number of quarter turns.
        favour: share of the crops that must hold a rare class, one with less than a quarter of its equal share of the
            pixels.
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
    crop: tuple[int, int] | dict[int, tuple[int, int]] = (180, 240)
    zoom: tuple[float, float] = (1.0, 1.0)
    rotate: float | Literal["quarter"] = 0.0
    favour: float = 0.0

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
        if min(self.crops, default=1) != 0 or not all(len(hw) == 2 and min(hw) > 0 for hw in self.crops.values()):
            raise UsageError(f"augment.crop is {self.crop}: a height and a width, such as [180, 240]")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise UsageError(f"augment.zoom is {list(self.zoom)}: two rising numbers above 0, such as [0.5, 2]")
        if self.rotate != "quarter":
            from_to("augment.rotate", self.rotate, 0, 180)
        from_to("augment.favour", self.favour, 0, 1)

    @property
    def crops(self) -> dict[int, tuple[int, int]]:
        """The (height, width) of the crops by first epoch."""
        return self.crop if isinstance(self.crop, dict) else {0: self.crop}

    def crop_at(self, epoch: int) -> tuple[int, int]:
        """Return the (height, width) of the crops in this epoch in pixels."""
        height, width = self.crops[max(first for first in self.crops if first <= epoch)]
        return height, width


def at_least(name: str, value: float, low: float) -> None:
    """Raise a UsageError for a value below `low` or not finite."""
    if not isinstance(value, int | float) or not low <= value < math.inf:
        raise UsageError(f"{name} is {value}: it must be {'finite' if value == math.inf else f'at least {low}'}")


def below_one(name: str, value: float) -> None:
    """Raise a UsageError for a value outside [0, 1)."""
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise UsageError(f"{name} is {value}. Allowed: from 0 to below 1")


def from_to(name: str, value: float, low: float, high: float) -> None:
    """Raise a UsageError for a value outside [low, high]."""
    if not isinstance(value, int | float) or not low <= value <= high:
        raise UsageError(f"{name} is {value}. Allowed: {low} to {high}")


def _as_list(side: int | Sequence[int]) -> list[int]:
    return [side] if isinstance(side, int) else list(side)
