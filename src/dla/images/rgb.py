"""Pixels of every kind, made 8-bit RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageCms

from dla.errors import UsageError
from dla.types import Array

__all__ = ["image_from_array", "to_rgb"]


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as RGB; the same object if it is that already.

    What is transparent is laid on white. Grey of 16 bits is divided by 257. Grey whose type does not tell its range
    (32-bit integers and floats) is taken to have the first of these that holds all of it: 0 to 1 (floats only),
    0 to 255, 0 to 65535, and otherwise its own smallest to its own largest value; NaN is the lowest of the range.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        if image.mode == "La":  # the only one that does not convert to RGBA at once
            image = image.convert("LA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None
        return converted
    return image if image.mode == "RGB" else image.convert("RGB")


def image_from_array(array: Array) -> Image.Image:
    """An array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) as an RGB image; grey, grey, RGB, and RGBA laid on white.

    Values are uint8, uint16 or floats from 0 to 1.

    Raises:
        UsageError: another shape, type or range, or values that are not numbers.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise UsageError(
            f"an image array of shape {array.shape}: it takes (height, width) or (height, width, 1, 3 or 4); "
            "a tensor has the channels first. Give several images as a list"
        )
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # false for NaN too
            raise UsageError(
                f"a float image with values from {array.min():g} to {array.max():g}: it takes 0 to 1, not normalised"
            )
    elif array.dtype not in (np.uint8, np.uint16):
        raise UsageError(f"an image array of {array.dtype}: it takes uint8, uint16, or floats from 0 to 1")
    return to_rgb(Image.fromarray(np.ascontiguousarray(_to_8_bits(array))))


def _to_8_bits(values: Array) -> Array:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    if low >= 0 and (fits := [top for top in _tops(values) if high <= top]):
        low, high = 0.0, float(fits[0])
    numbers = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    return np.rint((numbers - low) * 255 / ((high - low) or 1)).astype(np.uint8)


def _tops(values: Array) -> tuple[int, ...]:
    return (1, 255, 65535) if values.dtype.kind == "f" else (255, 65535)
