"""Read masks as class ids and boundary maps as booleans, turned as their photos are.

A mask holds ids, never colours: the index of a palette image, or the value of a grey one. Only an RGB image holds
colours, and only if the classes have some; each pixel must have exactly one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dla.data.mask_classes import UNKNOWN, MaskClasses
from dla.errors import ImageError
from dla.images.decode import Header, read_stored, turn_upright
from dla.options import ReadOptions
from dla.types import Array

MASK_ERRORS = {
    "lossy_mask": "the mask is stored in a lossy format, which changes ids",
    "not_a_mask": "the mask is of a mode, or of a format, that holds no ids",
    "size_differs": "the mask has neither the size of the photo nor its size before turning by EXIF",
    "unknown_id": "the mask has an id that is not one of the classes",
    "unknown_colour": "the mask has a colour that is not one of the classes'",
    "not_a_map": "a map of boundary probabilities is not a grey image of 8 bits",
    "not_two_valued": "the boundary map has values other than 0 and 1, or 0 and 255",
}
_ID_MODES = ("1", "P", "L", "I;16", "I;16B", "I;16L", "I")


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Class indices of each pixel, (H, W) of int32, upright; `ignore_index` for ignored pixels.

    `unknown` has the number of pixels of each id, or "#rrggbb" colour, that is no class; these pixels are `UNKNOWN`.
    `ambiguous` is True if the mask fits the photo both as stored and upright, and was taken as upright.
    """

    ids_HW: Array
    unknown: Mapping[int | str, int]
    ambiguous: bool


def read_mask(
    path: str, classes: MaskClasses, photo: Header | None = None, options: ReadOptions = ReadOptions()
) -> Mask:
    """Read the mask of a photo; ids that are no class are counted, not refused.

    Args:
        path: a PNG or TIFF file.
        classes: what the ids, or the colours of an RGB mask, mean.
        photo: the photo's header: a mask of its stored size is turned with it, one of its upright size is not. Without
            it, the mask stays as it is.
        options: limits.

    Raises:
        ImageError: the file cannot be read, holds no ids, or has another size; codes as in `MASK_ERRORS` and
            `dla.errors.ERROR_CODES`.
    """
    stored = read_ids(path, options)
    if stored.ndim == 3:
        indices_HW, unknown = _from_colors(path, stored, classes)
    else:
        indices_HW, unknown = _from_ids(stored, classes)
    if photo is None:
        return Mask(indices_HW, unknown, False)
    turned_HW, ambiguous = turn_with_photo(path, indices_HW, photo)
    return Mask(turned_HW, unknown, ambiguous)


def require_known(path: str, mask: Mask, classes: MaskClasses) -> Array:
    """Return the mask's ids; the mask of a run must have no unknown ones.

    Raises:
        ImageError: "t.png has 214 pixels of id 19. Known: 0 to 10 and 11 (ignored)".
    """
    if not mask.unknown:
        return mask.ids_HW
    (value, pixels), *more = mask.unknown.items()
    others = f" and {len(more):,} other such values" if more else ""
    if isinstance(value, str):
        raise ImageError("unknown_colour", f"{path} has {pixels:,} pixels of {value}{others}, the colour of no class")
    known = f"Known: {classes.known()}"
    raise ImageError("unknown_id", f"{path} has {pixels:,} pixels of id {value}{others}. {known}")


def read_ids(path: str, options: ReadOptions = ReadOptions()) -> Array:
    """Return the ids in a mask as stored, (H, W) of int32, or (H, W, 3) of uint8 if it is RGB.

    Raises:
        ImageError: the file cannot be read, or holds no ids.
    """
    stored = read_stored(path, options)
    _refuse(path, stored.format, stored.image.mode, stored.animated, stored.image.info.get("compression"))
    if stored.image.mode == "RGB":
        return np.asarray(stored.image)
    values_HW = np.asarray(stored.image).astype(np.int64) // stored.grey_step
    if values_HW.min(initial=0) < 0 or values_HW.max(initial=0) >= 2**16:
        wrong = values_HW.min() if values_HW.min() < 0 else values_HW.max()
        raise ImageError("not_a_mask", f"{path}: it has the value {wrong}. Allowed ids: 0 to 65535")
    return values_HW.astype(np.int32)


def check_mask_header(path: str, mask: Header, photo: Header) -> None:
    """Check what the headers of a mask and its photo tell; no pixel is decoded.

    Raises:
        ImageError: the mask is of a lossy format or holds no ids, or its size differs.
    """
    _refuse(path, mask.format, mask.mode)
    if mask.size not in (photo.size, _upright_size(photo)):
        raise _size_error(path, mask.size, photo)


def read_boundaries(path: str, photo: Header | None = None, options: ReadOptions = ReadOptions()) -> Array:
    """Return an annotator's boundaries, (H, W) of booleans, from a map of 0 and 1 or of 0 and 255; turned as a mask.

    Raises:
        ImageError: the file cannot be read, has other values, or another size.
    """
    values_HW = read_ids(path, options)
    present = set(np.unique(values_HW).tolist())
    if values_HW.ndim == 3 or not (present <= {0, 1} or present <= {0, 255}):
        what = "is RGB" if values_HW.ndim == 3 else f"has {len(present):,} values"
        raise ImageError("not_two_valued", f"{path} {what}. Allowed: 0 and 1, or 0 and 255, for no boundary and one")
    if photo is not None:
        values_HW, _ = turn_with_photo(path, values_HW, photo)
    return values_HW > 0


def read_boundary_map(path: str, options: ReadOptions = ReadOptions()) -> Array:
    """Return another program's map of boundary probabilities, uint8 (H, W), as stored.

    Raises:
        ImageError: the file cannot be read, or is no grey image of up to 8 bits.
    """
    image = read_stored(path, options).image
    if image.mode not in ("L", "1"):
        raise ImageError(
            "not_a_map", f"{path}: it is of mode {image.mode}. Allowed: grey of 8 bits (L), 255 for certain"
        )
    return np.asarray(image.convert("L"))


def turn_with_photo(path: str, values_HW: Array, photo: Header) -> tuple[Array, bool]:
    """Return the values upright, and whether they fit the photo both as stored and upright (taken as upright).

    Raises:
        ImageError: they fit neither.
    """
    size, upright = (values_HW.shape[1], values_HW.shape[0]), _upright_size(photo)
    turned = photo.orientation in range(2, 9)
    if size == upright:
        return values_HW, turned and size == photo.size
    if size != photo.size:
        raise _size_error(path, size, photo)
    return np.asarray(turn_upright(Image.fromarray(values_HW), photo.orientation)), False


def _refuse(path: str, format_: str, mode: str, animated: bool = False, compression: object = None) -> None:
    """Raise an ImageError unless such a file holds ids."""
    if format_ in ("JPEG", "WebP", "AVIF") or "jpeg" in str(compression):
        raise ImageError("lossy_mask", f"{path}: {format_} is lossy and changes ids. Save masks as PNG from the source")
    if format_ not in ("PNG", "TIFF"):
        raise ImageError("not_a_mask", f"{path}: masks are PNG or TIFF files, this is {format_}")
    if animated:
        raise ImageError("not_a_mask", f"{path}: it has several frames. Save the one that is the mask")
    if mode not in (*_ID_MODES, "RGB"):
        why = {"LA": "has transparency", "RGBA": "has transparency", "PA": "has transparency", "F": "holds floats"}
        reason = why.get(mode, f"is of mode {mode}")
        raise ImageError("not_a_mask", f"{path}: it {reason}. Allowed: ids as palette or grey (up to 16 bits), or RGB")


def _from_ids(values_HW: Array, classes: MaskClasses) -> tuple[Array, dict[int | str, int]]:
    indices_HW = classes.lookup()[values_HW]
    ids, counts = np.unique(values_HW[indices_HW == UNKNOWN], return_counts=True)
    return indices_HW, dict(zip(ids.tolist(), counts.tolist(), strict=True))


def _from_colors(path: str, values_HW3: Array, classes: MaskClasses) -> tuple[Array, dict[int | str, int]]:
    if classes.colors is None:
        raise ImageError(
            "not_a_mask", f"{path}: it is RGB, but the classes have no colors. Give them in classes.json, or save ids"
        )
    red_HW, green_HW, blue_HW = np.moveaxis(values_HW3.astype(np.int32), 2, 0)
    codes_HW = red_HW << 16 | green_HW << 8 | blue_HW
    codes, place_HW, counts = np.unique(codes_HW, return_inverse=True, return_counts=True)
    known = {_code(color): index for index, color in enumerate(classes.colors)}
    known |= {_code(color): classes.ignore_index for color in classes.ignored_colors}
    indices = np.array([known.get(code, UNKNOWN) for code in codes.tolist()], np.int32)
    pairs = zip(codes.tolist(), counts.tolist(), indices.tolist(), strict=True)
    unknown: dict[int | str, int] = {f"#{code:06x}": count for code, count, index in pairs if index == UNKNOWN}
    return indices[place_HW].reshape(codes_HW.shape), unknown


def _code(color: tuple[int, int, int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _upright_size(photo: Header) -> tuple[int, int]:
    return photo.size[::-1] if photo.orientation in (5, 6, 7, 8) else photo.size


def _size_error(path: str, size: tuple[int, int], photo: Header) -> ImageError:
    (width, height), (own_width, own_height) = photo.size, size
    return ImageError("size_differs", f"{path} has {own_width}x{own_height} pixels, its photo {width}x{height}")
