"""Convert images and arrays to 8-bit RGB."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from PIL import Image, ImageCms

from dla.errors import UsageError
from dla.images.formats import grey_scale
from dla.types import Array

STRIP_PIXELS = 2**20


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image of any mode to RGB; an RGB image without transparency is returned as it is.

    Transparent pixels are composited on white. 16-bit grey is divided by 257, and grey of fewer bits (as in a TIFF) is
    scaled alike. Grey of 32-bit integers or floats has no fixed range, so the first of these that holds all values is
    used: 0 to 1 (floats only), 0 to 255, 0 to 65535, smallest to largest value; NaN becomes the lowest of the range.

    Needs little more than 3 bytes per pixel in addition to the image: intermediate copies are of strips.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey(image)
    if image.has_transparency_data:
        return _in_strips(image, _on_white)
    if image.mode == "LAB":
        return _in_strips(image, _from_lab)
    return image if image.mode == "RGB" else image.convert("RGB")


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Apply `convert` to strips of the image, to keep its intermediate copies small; return the RGB image."""
    rgb = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        rgb.paste(convert(strip), (0, top))
    return rgb


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    rows = max(1, STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _on_white(strip: Image.Image) -> Image.Image:
    if strip.mode == "La":  # the only mode without a direct conversion to RGBA
        strip = strip.convert("LA")
    white = Image.new("RGBA", strip.size, "white")
    return Image.alpha_composite(white, strip.convert("RGBA")).convert("RGB")


def _from_lab(strip: Image.Image) -> Image.Image:
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(strip, *profiles, outputMode="RGB")
    assert converted is not None
    return converted


def _grey(image: Image.Image) -> Image.Image:
    scale = grey_scale(image)

    def samples(strip: Image.Image) -> Array:
        values = np.asarray(strip)
        return values.view(np.uint32) if scale.unsigned else values

    if scale.white is not None:
        low, high = 0.0, float(scale.white)
    else:
        low, high = _range(samples(strip) for _, strip in _strips(image))

    def convert(strip: Image.Image) -> Image.Image:
        grey = _scaled(samples(strip), low, high)
        return Image.fromarray(255 - grey if scale.inverted else grey).convert("RGB")

    return _in_strips(image, convert)


def image_from_array(array: Array) -> Image.Image:
    """Convert an array to an RGB image: grey (H, W) or (H, W, 1), RGB (H, W, 3), or RGBA (H, W, 4) on white.

    Values are uint8, uint16 or floats from 0 to 1.

    Raises:
        UsageError: the array has another shape, type or range, or contains NaN.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise UsageError(
            f"an image array has shape {array.shape}. Allowed: (height, width) or (height, width, 1, 3 or 4); "
            "a tensor has the channels first. Give several images as a list"
        )
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # false for NaN too
            raise UsageError(
                f"a float image has values from {array.min():g} to {array.max():g}. Allowed: 0 to 1, not normalized"
            )
    elif array.dtype not in (np.uint8, np.uint16):
        raise UsageError(f"an image array is of {array.dtype}. Allowed: uint8, uint16, or floats from 0 to 1")
    return to_rgb(Image.fromarray(np.ascontiguousarray(_to_8_bits(array))))


def _to_8_bits(values: Array) -> Array:
    if values.dtype == np.uint8:
        return values
    low, high = (0.0, 65535.0) if values.dtype == np.uint16 else _range([values])
    return _scaled(values, low, high)


def _range(parts: Iterable[Array]) -> tuple[float, float]:
    """Return the values of black and white for samples whose type has no fixed range."""
    low, high, is_float = np.inf, -np.inf, False
    for values in parts:
        is_float = values.dtype.kind == "f"
        known = values[np.isfinite(values)] if is_float else values
        if known.size:
            low, high = min(low, float(known.min())), max(high, float(known.max()))
    if low > high:
        return 0.0, 0.0
    tops = (1, 255, 65535) if is_float else (255, 65535)
    return next(((0.0, float(top)) for top in tops if low >= 0 and high <= top), (low, high))


def _scaled(values: Array, low: float, high: float) -> Array:
    """Scale samples from (low, high) to uint8."""
    if values.dtype == np.uint16 and (low, high) == (0, 65535):
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    numbers = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    return np.rint((numbers - low) * 255 / ((high - low) or 1)).clip(0, 255).astype(np.uint8)
