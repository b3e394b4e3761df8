"""Files that end early: tell them from damaged ones, and decode the part they have.

Pillow's own switch, `ImageFile.LOAD_TRUNCATED_IMAGES`, is global and would also affect other threads.
"""

from __future__ import annotations

import io
import re
import struct
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from dla.images.formats import ImageFormat, turned_by_loading, webp_size

_END_OF_JPEG = b"\xff\xd9"
_LAST_JPEG_MARKER = re.compile(rb".*(\xff[\xc0-\xcf\xda-\xfe])", re.DOTALL)
_BIG_TIFF = 43  # the version of TIFF with offsets of 64 bits
_MAX_COUNTED_PIXELS = 20_000_000  # counting the missing rows decodes twice


@dataclass(frozen=True, slots=True)
class PartialImage:
    """A loaded image with the decodable part of a truncated file.

    `turned` is the EXIF orientation that loading applied; `rows_missing` counts rows at the bottom, None if unknown.
    """

    image: ImageFile
    turned: int
    rows_missing: int | None


def is_truncated(format_: ImageFormat, data: bytes) -> bool:
    """Return whether a file that cannot be decoded ends before its end marker, or before the length that it states."""
    match format_.name:
        case "JPEG":
            return _END_OF_JPEG not in data[-4096:]
        case "PNG":
            return b"IEND" not in data[-4096:]
        case "GIF":
            return not data.endswith(b";")
        case "WebP":
            return _webp_length(data) > len(data)
        case "BMP":
            return int.from_bytes(data[2:6], "little") > len(data)
        case "TIFF":
            return _tiff_is_cut(data)
        case _:
            return _boxes_are_cut(data)


def salvage(format_: ImageFormat, data: bytes) -> PartialImage | None:
    """Return the decodable part of a truncated file, or None if there is none. Missing pixels are grey or black."""
    if format_.name == "WebP":
        return _decode_completed(format_, data + bytes(_webp_padding(data)))
    partial = _decode_onto(format_, data, 0)
    if partial is None:
        return None
    missing = _rows_missing(format_, data, partial.image)
    nothing = missing == partial.image.height
    if format_.name == "JPEG":  # with an end marker, the decoder also returns the blocks and scans that it had begun
        completed = _decode_completed(format_, data + _END_OF_JPEG)
        if completed is None and (marker := _LAST_JPEG_MARKER.match(data)):  # cut in the tables between two scans
            completed = _decode_completed(format_, data[: marker.start(1)] + _END_OF_JPEG)
        return completed and replace(completed, rows_missing=None if nothing else missing)
    return None if nothing else replace(partial, rows_missing=missing)


def _decode_completed(format_: ImageFormat, data: bytes) -> PartialImage | None:
    try:
        image = format_.open(io.BytesIO(data))
        image.load()
    except Exception:
        return None
    return PartialImage(image, 1, None)


def _decode_onto(format_: ImageFormat, data: bytes, fill: int) -> PartialImage | None:
    """Decode up to the first error; the other pixels have the value `fill`."""
    try:
        image = format_.open(io.BytesIO(data))
        turned = turned_by_loading(image)
        size = (image.tag_v2[256], image.tag_v2[257]) if isinstance(image, TiffImageFile) else image.size
        image.im = Image.new(image.mode, size, fill).im
    except Exception:
        return None
    with suppress(Exception):
        image.load()
    image.tile = []
    if isinstance(image, TiffImageFile):
        with suppress(Exception):
            image.load_end()  # applies the orientation if that is not done yet
    return PartialImage(image, turned, None)


def _rows_missing(format_: ImageFormat, data: bytes, zeros: ImageFile) -> int | None:
    """Count the rows at the bottom that the decoder does not write; `zeros` is the image decoded onto zeros."""
    if zeros.width * zeros.height > _MAX_COUNTED_PIXELS:
        return None
    other = _decode_onto(format_, data, 255)
    if other is None or other.image.size != zeros.size:
        return None
    same = np.asarray(other.image) == np.asarray(zeros)
    touched = same.reshape(*same.shape[:2], -1).all(2).any(1)
    return int(touched[::-1].argmax()) if touched.any() else len(touched)


def _webp_length(data: bytes) -> int:
    return int.from_bytes(data[4:8], "little") + 8


def _webp_padding(data: bytes) -> int:
    """Return how many bytes are missing from the length in the header, at most 4 per pixel."""
    width, height = webp_size(data) or (0, 0)
    return min(max(0, _webp_length(data) - len(data)), 4 * width * height)


def _tiff_is_cut(data: bytes) -> bool:
    order = "<" if data[:2] == b"II" else ">"
    try:
        (version,) = struct.unpack_from(order + "H", data, 2)
        where, count, size = ("Q", "Q", 20) if version == _BIG_TIFF else ("I", "H", 12)
        (directory,) = struct.unpack_from(order + where, data, 8 if version == _BIG_TIFF else 4)
        (entries,) = struct.unpack_from(order + count, data, directory)
        if directory + struct.calcsize(count) + size * entries + struct.calcsize(where) > len(data):
            return True
        tags: Any = TiffImageFile(io.BytesIO(data)).tag_v2
        starts, sizes = tags.get(273) or tags.get(324, ()), tags.get(279) or tags.get(325, ())
        return any(start + size > len(data) for start, size in zip(starts, sizes, strict=False))
    except struct.error:
        return True
    except Exception:
        return False


def _boxes_are_cut(data: bytes) -> bool:
    """Return whether the last of an AVIF file's boxes extends beyond the end of the file."""
    at = 0
    while at + 16 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
        if size < 8:
            return False  # 0 means: up to the end of the file
        at += size
    return at != len(data)
