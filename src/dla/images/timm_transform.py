"""timm's transforms under timm's names: `resolve_data_config` and `create_transform`.

    config = resolve_data_config({}, model=model)
    x_13HW = create_transform(**config)(image).unsqueeze(0)

The pixels are the same as those of `Preprocessing`.
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
from dla.images.preprocessing import Preprocessing
from dla.images.random_crop import random_resized_crop
from dla.options import ReadOptions
from dla.types import Array

if TYPE_CHECKING:
    from torch import Tensor

Range = tuple[float, float]

_log = logging.getLogger(__name__)

# Arguments of timm for transforms that are not implemented here, and arguments that only configure those.
_NOT_IMPLEMENTED = (
    "no_aug", "vflip", "color_jitter", "grayscale_prob", "gaussian_blur_prob", "auto_augment", "re_prob",
    "crop_border_pixels", "tf_preprocessing", "use_prefetcher", "separate", "naflex", "patchify",
)  # fmt: skip
_CONFIGURING = (
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
    """Return the data config of a network: input_size, interpolation, mean, std, crop_pct, crop_mode.

    Args:
        args: values that take precedence: input_size, or img_size with in_chans (or chans); interpolation; mean and
            std, one number per channel or one for all; crop_pct; crop_mode. None is the same as leaving a key out.
        pretrained_cfg: the config of the weights; by default the model's.
        model: any object with a `pretrained_cfg`.
        use_test_size: use `test_input_size` and `test_crop_pct` of the pretrained_cfg, where it has them.
        verbose: log the result (level INFO).

    Raises:
        UsageError: there is no source for the config, or a value has the wrong form.
    """
    if not args and not pretrained_cfg and model is None:
        raise UsageError("there is nothing to take the data config from. Try: model=, pretrained_cfg= or args=")
    kwargs = {key: value for key, value in (args or {}).items() if value is not None}
    cfg = dict(pretrained_cfg or getattr(model, "pretrained_cfg", None) or {})
    if use_test_size:
        cfg |= {key: cfg[f"test_{key}"] for key in ("input_size", "crop_pct") if cfg.get(f"test_{key}")}
    defaults = Preprocessing.from_config({}).to_config()
    channels, size = _input(kwargs, cfg, defaults)
    config: dict[str, Any] = {"input_size": size}
    for key in ("interpolation", "mean", "std", "crop_pct", "crop_mode"):
        if key in ("mean", "std") and key in kwargs:
            config[key] = _per_channel(key, kwargs[key], channels)
        else:
            config[key] = kwargs.get(key) or cfg.get(key) or defaults[key]
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
    """Call `resolve_data_config` with the model as the first argument."""
    return resolve_data_config(args, pretrained_cfg, model, use_test_size, verbose)


def _input(kwargs: Mapping[str, Any], cfg: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[int, Sequence[int]]:
    """Return the number of channels that mean and std need, and the input size (channels, height, width)."""
    channels = kwargs.get("in_chans", kwargs.get("chans", 3))
    if "input_size" in kwargs:
        size = kwargs["input_size"]
        if not isinstance(size, tuple | list) or len(size) != 3:
            raise UsageError(f"input_size is {size!r}. Allowed: (channels, height, width)")
        return size[0], tuple(size)
    if "img_size" in kwargs:
        side = kwargs["img_size"]
        if not isinstance(side, int):
            raise UsageError(f"img_size is {side!r}. Allowed: one whole number; input_size takes (3, height, width)")
        return channels, (channels, side, side)
    return channels, cfg.get("input_size") or (channels, *defaults["input_size"][1:])


def _per_channel(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    values = tuple(values)
    if len(values) not in (1, channels):
        raise UsageError(f"{name} is {values}. Allowed: one number, or one for each of {channels} channels")
    return values * channels if len(values) == 1 else values


@dataclass(frozen=True, slots=True)
class Transform:
    """Turn a photo into a network's input: float32 (3, H, W), normalized, or uint8 if `normalize` is False.

    A photo is a PIL image of any mode, or any other input of `dla.load(...).predict`. EXIF orientation is ignored, as
    in timm.
    """

    preprocessing: Preprocessing
    crop: Mapping[str, Any] | None = None  # the settings of a random crop
    normalize: bool = True

    def __call__(self, image: Any) -> Tensor:
        """Return the image as a float32 tensor (3, H, W), normalized unless `normalize` is false."""
        import torch

        rgb = to_photo(image, ReadOptions(exif="ignore")).image
        pixels_HW3 = self.preprocessing.pixels(rgb) if self.crop is None else _random_pixels(rgb, **self.crop)
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
    """Build the transform of a data config: `create_transform(**resolve_data_config(...), is_training=...)`.

    Args:
        input_size: (3, height, width), (height, width), or the side of a square, in pixels.
        is_training: random crops and flips; otherwise the centre, by `crop_pct` and `crop_mode`.
        train_crop_mode: "rrc" (random resized crop) is the only one.
        scale: in training, smallest and largest share of the area; by default (0.08, 1).
        ratio: in training, smallest and largest aspect ratio; by default (3/4, 4/3).
        hflip: in training, the probability of a horizontal flip.
        interpolation: a filter of `Preprocessing`; in training, "random" is bilinear or bicubic.
        mean: of pixels from 0 to 1, one number per colour.
        std: of pixels from 0 to 1, one number per colour.
        crop_pct: as in `Preprocessing`; None is its default.
        crop_mode: as in `Preprocessing`; None is its default.
        normalize: if False, the result is uint8 from 0 to 255.
        others: timm's arguments for transforms that are not implemented here (color_jitter, auto_augment, re_prob, ...)
            are accepted with a value that turns them off (None, 0, False). `dla train` has more augmentation.

    Raises:
        TypeError: an argument is unknown, or for a transform that is not implemented here.
        UsageError: a value is not allowed.
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
    crop = {"size": size, "interpolations": interpolations, "scale": scale, "ratio": ratio, "flip": hflip}
    return Transform(preprocessing, crop, normalize)


def _random_pixels(image: Image.Image, **settings: Any) -> Array:
    """Return a random resized crop, flipped or not (`random_resized_crop` documents the settings).

    The seed comes from torch's generator: `torch.manual_seed` makes it repeatable, and each DataLoader worker has its
    own.
    """
    import torch

    return random_resized_crop(image, **settings, generator=np.random.default_rng(int(torch.randint(2**62, ()))))


def _check_off(others: Mapping[str, Any]) -> None:
    for name, value in others.items():
        if name in _CONFIGURING or (name in _NOT_IMPLEMENTED and not value):
            continue
        if name in (*_NOT_IMPLEMENTED, "train_crop_mode"):
            raise TypeError(f"create_transform does not implement {name}={value!r}. Leave it out")
        near = nearest(name, (*create_transform.__annotations__, *_NOT_IMPLEMENTED, *_CONFIGURING))
        raise TypeError(
            f"create_transform has no argument {name!r}." + (f" Nearest: {', '.join(near)}" if near else "")
        )


def _interval(name: str, ends: Sequence[float]) -> Range:
    low, high = ends
    if not 0 < low <= high:
        raise UsageError(f"{name} is {tuple(ends)}. Allowed: the smaller of two numbers above 0, then the larger")
    return low, high
