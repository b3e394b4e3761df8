"""timm's road from a photo to a network's input: `resolve_data_config` and `create_transform`, by its names.

    config = resolve_data_config({}, model=model)
    x_13HW = create_transform(**config)(image).unsqueeze(0)

The pixels are those of `Preprocessing`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dla.errors import UsageError, nearest
from dla.images.decode import to_photo
from dla.images.preprocessing import Interpolation, Preprocessing
from dla.images.random_crop import random_resized_crop
from dla.options import ReadOptions
from dla.types import Array

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RandomCrop", "Transform", "create_transform", "resolve_data_config", "resolve_model_data_config"]


Range = tuple[float, float]

_log = logging.getLogger(__name__)

# What timm's transforms also do, and these do not; and what only says how such a thing is done.
_NOT_DONE = (
    "no_aug", "vflip", "color_jitter", "grayscale_prob", "gaussian_blur_prob", "auto_augment", "re_prob",
    "crop_border_pixels", "tf_preprocessing", "use_prefetcher", "separate", "naflex", "patchify",
)  # fmt: skip
_HOW = (
    "color_jitter_prob", "re_mode", "re_count", "re_num_splits", "patch_size", "max_seq_len", "patchify_channels_last",
    "patchify_flatten",
)  # fmt: skip


def resolve_data_config(
    args: Mapping[str, Any] | None = None,
    pretrained_cfg: Mapping[str, Any] | None = None,
    model: Any = None,
    use_test_size: bool = False,
    verbose: bool = False,
) -> dict[str, Any]:
    """How photos are prepared for a network: input_size, interpolation, mean, std, crop_pct, crop_mode.

    Args:
        args: what goes before everything else: input_size, or img_size with in_chans (or chans); interpolation;
            mean and std, one number a channel or one for all; crop_pct; crop_mode. None means not given.
        pretrained_cfg: what the weights were trained with; by default the model's.
        model: anything with a `pretrained_cfg`.
        use_test_size: take `test_input_size` and `test_crop_pct` of the pretrained_cfg, where it has them.
        verbose: log the result (level INFO).

    Raises:
        UsageError: nothing to take it from, or a value of another form.
    """
    if not args and not pretrained_cfg and model is None:
        raise UsageError("there is nothing to take the data config from. Try: model=, pretrained_cfg= or args=")
    given = {key: value for key, value in (args or {}).items() if value is not None}
    cfg = dict(pretrained_cfg or getattr(model, "pretrained_cfg", None) or {})
    if use_test_size:
        cfg |= {key: cfg[f"test_{key}"] for key in ("input_size", "crop_pct") if cfg.get(f"test_{key}")}
    usual = Preprocessing.from_config({}).to_config()
    channels, size = _input(given, cfg, usual)
    config: dict[str, Any] = {"input_size": size}
    for key in ("interpolation", "mean", "std", "crop_pct", "crop_mode"):
        if key in ("mean", "std") and key in given:
            config[key] = _per_channel(key, given[key], channels)
        else:
            config[key] = given.get(key) or cfg.get(key) or usual[key]
    if verbose:
        _log.info("data config: %s", config)
    return config


def resolve_model_data_config(
    model: Any,
    args: Mapping[str, Any] | None = None,
    pretrained_cfg: Mapping[str, Any] | None = None,
    use_test_size: bool = False,
    verbose: bool = False,
) -> dict[str, Any]:
    """`resolve_data_config` with the model first."""
    return resolve_data_config(args, pretrained_cfg, model, use_test_size, verbose)


def _input(given: Mapping[str, Any], cfg: Mapping[str, Any], usual: Mapping[str, Any]) -> tuple[int, Sequence[int]]:
    """Channels of the given mean and std, and (channels, height, width)."""
    channels = given.get("in_chans", given.get("chans", 3))
    if "input_size" in given:
        size = given["input_size"]
        if not isinstance(size, tuple | list) or len(size) != 3:
            raise UsageError(f"input_size is {size!r}. Allowed: (channels, height, width)")
        return size[0], tuple(size)
    if "img_size" in given:
        side = given["img_size"]
        if not isinstance(side, int):
            raise UsageError(f"img_size is {side!r}. Allowed: one whole number; input_size takes (3, height, width)")
        return channels, (channels, side, side)
    return channels, cfg.get("input_size") or (channels, *usual["input_size"][1:])


def _per_channel(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    values = tuple(values)
    if len(values) not in (1, channels):
        raise UsageError(f"{name} is {values}. Allowed: one number, or one for each of {channels} channels")
    return values * channels if len(values) == 1 else values


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """What training sees of a photo: a random part, at the size of evaluation, and in some cases its mirror image.

    The part's share of the area is uniform in `scale`, its aspect ratio log-uniform in `ratio` (Szegedy et al. 2015).
    The randomness is torch's: `torch.manual_seed` repeats it, and a DataLoader gives each worker another one.
    """

    size: tuple[int, int]
    scale: Range
    ratio: Range
    hflip: float
    interpolations: tuple[Interpolation, ...]

    def pixels(self, image: Image.Image) -> Array:
        """uint8 (H, W, 3) of an RGB image."""
        import torch

        generator = np.random.default_rng(int(torch.randint(2**62, ())))
        return random_resized_crop(image, self.size, self.interpolations, self.scale, self.ratio, self.hflip, generator)


@dataclass(frozen=True, slots=True)
class Transform:
    """A photo -> a network's input: float32 (3, H, W), normalised, or without `normalize` uint8.

    A photo is a PIL image of any mode, or whatever else `dla.load(...).predict` takes. An EXIF orientation is ignored,
    as timm does it.
    """

    preprocessing: Preprocessing
    crop: RandomCrop | None = None
    normalize: bool = True

    def __call__(self, image: Any) -> Tensor:
        import torch

        rgb = to_photo(image, ReadOptions(exif="ignore")).image
        pixels_HW3 = (self.crop or self.preprocessing).pixels(rgb)
        if self.normalize:
            scale, shift = self.preprocessing.scale_shift()
            pixels_HW3 = pixels_HW3 * scale + shift
        return torch.from_numpy(np.ascontiguousarray(pixels_HW3.transpose(2, 0, 1)))


def create_transform(
    input_size: int | Sequence[int] = 224,
    is_training: bool = False,
    *,
    train_crop_mode: str | None = None,
    scale: Range | None = None,
    ratio: Range | None = None,
    hflip: float = 0.5,
    interpolation: str = "bilinear",
    mean: Sequence[float] = Preprocessing().mean,
    std: Sequence[float] = Preprocessing().std,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    normalize: bool = True,
    **others: Any,
) -> Transform:
    """What `resolve_data_config` says as a function of a photo: `create_transform(**config, is_training=...)`.

    Args:
        input_size: (3, height, width), (height, width), or the side of a square.
        is_training: a random part of the photo and random flips; else the middle, as `crop_pct` and `crop_mode` say.
        train_crop_mode: "rrc", a random part resized: the only one.
        scale: of training, smallest and largest share of the area; (0.08, 1).
        ratio: of training, smallest and largest aspect ratio; (3/4, 4/3).
        hflip: of training, the probability of the mirror image.
        interpolation: a filter of `Preprocessing`; "random", in training, is bilinear or bicubic.
        mean, std, crop_pct, crop_mode: as in `Preprocessing`; None is its default.
        normalize: without it the result is uint8 from 0 to 255.
        others: timm's arguments for what is not done here (color_jitter, auto_augment, re_prob, ...) are taken with a
            value that switches it off (None, 0, False): augmentation beyond crops and flips is `dla train`'s.

    Raises:
        TypeError: an argument for what is not done here, or an unknown one.
        UsageError: a value that is not allowed.
    """
    _check_off(others if train_crop_mode in (None, "rrc") else {**others, "train_crop_mode": train_crop_mode})
    size: Any = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)[-2:]
    if isinstance(input_size, Sequence) and len(input_size) == 3 and input_size[0] != 3:
        raise UsageError(f"input_size is {tuple(input_size)}. Allowed: 3 channels, since a photo becomes RGB")
    interpolations: Any = ("bilinear", "bicubic") if interpolation == "random" and is_training else (interpolation,)
    settings: dict[str, Any] = {"crop_pct": crop_pct, "crop_mode": crop_mode}
    preprocessing = Preprocessing(
        size, mean=tuple(mean), std=tuple(std), interpolation=interpolations[0], exif="ignore",
        **{name: value for name, value in settings.items() if value},
    )  # fmt: skip
    if not is_training:
        return Transform(preprocessing, None, normalize)
    scale, ratio = _interval("scale", scale or (0.08, 1.0)), _interval("ratio", ratio or (3 / 4, 4 / 3))
    return Transform(preprocessing, RandomCrop(size, scale, ratio, hflip, interpolations), normalize)


def _check_off(others: Mapping[str, Any]) -> None:
    for name, value in others.items():
        if name in _HOW or (name in _NOT_DONE and not value):
            continue
        if name in (*_NOT_DONE, "train_crop_mode"):
            raise TypeError(f"create_transform does not do {name}={value!r}. Allowed: to leave it out")
        near = nearest(name, (*create_transform.__annotations__, *_NOT_DONE, *_HOW))
        raise TypeError(
            f"create_transform has no argument {name!r}." + (f" Nearest: {', '.join(near)}" if near else "")
        )


def _interval(name: str, ends: Sequence[float]) -> Range:
    low, high = ends
    if not 0 < low <= high:
        raise UsageError(f"{name} is {tuple(ends)}. Allowed: the smaller of two numbers above 0, then the larger")
    return low, high
