"""Decode files, encoded bytes, PIL images, arrays and tensors to 8-bit RGB. All decoding is done here."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from dla.errors import ImageError, UsageError
from dla.images import formats
from dla.images.formats import HEADER_BYTES, ImageFormat
from dla.images.rgb import image_from_array, to_rgb
from dla.images.segments import MAX_SEGMENTS, TooManySegmentsError
from dla.options import ReadOptions

_LOCATED = re.compile(r"^(?:s3|gs)://|^fsspec:|!|#\d+$")  # names that no file has, but perhaps a located photo

# Formats with an end marker, which is looked for in the last `_TAIL_BYTES` of the file.
_FORMATS_WITH_END_MARKER = ("JPEG", "PNG", "GIF")
_TAIL_BYTES = 4096
# The decoder visits every pixel of a progressive JPEG once per scan, however little data the scan holds.
_SCAN = re.compile(rb"\xff\xda")
_MAX_SCANNED_PIXELS = 2_000_000_000

_Finish = Callable[[Image.Image, int, ReadOptions], Image.Image]

# EXIF orientation -> the transpose that turns the photo upright. All but 6 and 8 are their own inverse.
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Photo:
    """An 8-bit RGB image; `truncated` is True if its file ended early."""

    image: Image.Image
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as its file has it: in its own mode, not turned. Of an `animated` file, it is the first frame.

    Pillow scales grey samples of 2 and 4 bits to 8 bits: `grey_step` is the difference of neighbouring values, else 1.
    """

    image: Image.Image
    format: str
    animated: bool
    grey_step: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an image file; no pixels are decoded for it.

    `size` is (width, height) as stored, `mode` Pillow's mode, `orientation` the EXIF orientation from 1 (upright) to 8.
    `ends` is True if the file ends with its format's end marker. If False, the file may be truncated, have other data
    after the picture, or be of a format without an end marker.
    """

    format: str
    size: tuple[int, int]
    mode: str
    orientation: int
    ends: bool


def to_photo(value: Any, options: ReadOptions = ReadOptions(), name: str | None = None) -> Photo:
    """Return a photo from a path, encoded bytes, an open file, a PIL image, an array or a tensor.

    Args:
        value: a path, encoded bytes, an open binary file; a PIL image; an array (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4), or a tensor with the channels first, (H, W), (1, H, W), (3, H, W) or (4, H, W), of uint8, uint16
            or floats from 0 to 1.
        options: limits, and whether to apply the EXIF orientation. Arrays and tensors do not use them.
        name: the name to use in error messages.

    Raises:
        ImageError: the photo cannot be read; see `dla.errors.ERROR_CODES`.
        UsageError: `value` is of another type, shape or range.
    """
    if isinstance(value, Image.Image):
        return _from_pil(value, options, name or "the PIL image")
    if hasattr(value, "detach") and hasattr(value, "numpy"):
        return Photo(image_from_array(_from_tensor(value)))
    if isinstance(value, np.ndarray):
        return Photo(image_from_array(value))
    if isinstance(value, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(value, "read"):
        return read_photo(value, options, name)
    raise UsageError(
        f"an image cannot be given as {type(value).__name__}. "
        "Allowed: a path, encoded bytes, a PIL image, a NumPy array (H, W, 3) or a tensor (3, H, W)"
    )


def read_photo(
    source: str | os.PathLike[str] | bytes | BinaryIO, options: ReadOptions = ReadOptions(), name: str | None = None
) -> Photo:
    """Decode the photo in a file or in encoded bytes. Of several frames, the first is decoded.

    Colour profiles are not applied.

    Args:
        source: a path, encoded bytes, or an open binary file, which is read from its position on.
        options: limits, and whether to apply the EXIF orientation.
        name: the name to use in error messages; by default the path.

    Raises:
        ImageError: the photo cannot be read; see `dla.errors.ERROR_CODES`.
    """
    with _error_context(source, name), _open(source, options.max_bytes) as file:
        return _read(file, options)


def read_stored(
    source: str | os.PathLike[str] | bytes, options: ReadOptions = ReadOptions(), name: str | None = None
) -> StoredImage:
    """Decode an image whose samples are no colours, such as a mask, without converting or turning it.

    Raises an ImageError as `read_photo`; a truncated file is always refused.
    """
    found: list[StoredImage] = []
    with _error_context(source, name), _open(source, options.max_bytes) as file:

        def keep(image: Image.Image, turned: int, options: ReadOptions) -> Image.Image:
            file.seek(0)
            head = file.read(2**16).partition(b"IDAT")[0]  # of a PNG: byte 24 has the bits, acTL means animated
            bits = getattr(image, "tag_v2", {}).get(258, (8,))[0] if format_ == "TIFF" else head[24]
            step = 255 // (2**bits - 1) if image.mode == "L" and bits in (2, 4) else 1
            stored = turn_upright(image, {6: 8, 8: 6}.get(turned, turned))
            animated = bool(getattr(image, "is_animated", False)) or (format_ == "PNG" and b"acTL" in head)
            found.append(StoredImage(stored, format_, animated, step))
            return image

        format_ = _format_of(file).name
        _read(file, replace(options, allow_truncated=False), keep)
    return found[0]


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return the image turned by an EXIF orientation, 1 (upright) to 8."""
    return image.transpose(_TRANSPOSES[orientation]) if orientation in _TRANSPOSES else image


def read_header(
    source: str | os.PathLike[str] | bytes, options: ReadOptions = ReadOptions(), name: str | None = None
) -> Header:
    """Read the header of a file or of encoded bytes, without decoding the pixels.

    Raises:
        ImageError: the header cannot be read; `read_photo` would raise the same.
    """
    with _error_context(source, name), _open(source, options.max_bytes) as file:
        format_ = _format_of(file)
        try:
            return _header(format_, file, options)
        except ImageError:
            raise
        except Exception:  # Pillow raises many types for a damaged file; decoding reports what is wrong with it
            image = _read(file, options).image
            return Header(format_.name, image.size, image.mode, 1, False)


def _header(format_: ImageFormat, file: BinaryIO, options: ReadOptions) -> Header:
    from dla.images.truncated import is_truncated

    image = _open_image(format_, file, options)
    size, mode, orientation = image.size, image.mode, _orientation(image)
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
    ends = format_.name in _FORMATS_WITH_END_MARKER and not is_truncated(format_, file.read())
    return Header(format_.name, size, mode, orientation, ends)


@contextmanager
def _error_context(source: object, name: str | None) -> Iterator[None]:
    """Put the name of the source in front of error messages."""
    label = name or (os.fsdecode(source) if isinstance(source, str | os.PathLike) else "the given bytes")
    try:
        yield
    except ImageError as error:
        raise ImageError(error.code, f"{label}: {error}") from error.__cause__
    except OSError as error:
        raise ImageError("read_error", f"{label}: it could not be read ({error.strerror or error})") from error


def _open(source: Any, max_bytes: int) -> BinaryIO:
    if isinstance(source, bytes | bytearray | memoryview):
        _check_bytes(len(source), max_bytes)
        return io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        return _open_named(source, max_bytes)
    data = "" if isinstance(source, io.TextIOBase) else source.read(max_bytes + 1)
    if isinstance(data, str):
        raise UsageError("the image file is open in text mode. Open it with mode 'rb'")
    _check_bytes(len(data), max_bytes)
    return io.BytesIO(data)


def _open_named(name: str | os.PathLike[str], max_bytes: int) -> BinaryIO:
    """Open a file, or the photo of this name in an archive, a parquet file or a store."""
    if not hasattr(name, "place"):
        try:
            return _open_path(name, max_bytes)
        except ImageError as error:
            if error.code != "not_found" or not _LOCATED.search(os.fsdecode(name)):
                raise
    from dla.images.located import open_located  # here, because most photos are files

    return open_located(os.fspath(name), max_bytes, _open_path)


def _open_path(path: str | os.PathLike[str], max_bytes: int) -> BinaryIO:
    try:
        file = open(path, "rb", opener=_open_nonblocking)  # noqa: SIM115 - the caller closes it
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a null byte in the path
        raise ImageError("not_found", "there is no such file") from error
    except IsADirectoryError as error:
        raise ImageError("is_a_directory", "this is a folder, not a photo") from error
    except PermissionError as error:
        raise ImageError("permission_denied", "no permission to read this file") from error
    try:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise ImageError("not_a_file", "this is a pipe, a socket or a device, not a file with a photo")
        _check_bytes(about.st_size, max_bytes)
    except BaseException:
        file.close()
        raise
    return file


def _open_nonblocking(path: str, flags: int) -> int:
    """Open a file without blocking, even a pipe that has no writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_bytes(count: int, max_bytes: int) -> None:
    if count > max_bytes:
        raise ImageError(
            "too_large",
            f"the file has {_file_size(count)}, more than the {_file_size(max_bytes)} allowed. "
            "Save the photo as a smaller file, or raise --max-megabytes",
        )


def _read(file: BinaryIO, options: ReadOptions, finish: _Finish | None = None) -> Photo:
    format_ = _format_of(file)
    try:
        image = _open_image(format_, file, options)
        _check_scans(image, file)
        return _loaded(image, options, finish)
    except ImageError:
        raise
    except TooManySegmentsError:
        raise ImageError("decode_error", f"this {format_.name} file has more than {MAX_SEGMENTS:,} segments") from None
    except formats.UnsupportedError as error:
        raise ImageError("decode_error", f"{format_.name} files with {error} cannot be read") from None
    except Image.DecompressionBombError as error:
        raise ImageError(
            "too_large", "it has more than twice PIL.Image.MAX_IMAGE_PIXELS pixels. Raise that limit in this process"
        ) from error
    except Exception as error:  # Pillow raises many types for a damaged file
        if isinstance(error, OSError) and error.errno is not None:
            raise
        file.seek(0)
        return _rescue(format_, file.read(), error, options)


def _check_scans(image: ImageFile, file: BinaryIO) -> None:
    """Raise an ImageError for a progressive JPEG whose scans would take minutes to decode."""
    if "progressive" not in image.info:
        return
    file.seek(0)
    most, scans, tail = _MAX_SCANNED_PIXELS // (image.width * image.height), 0, b""
    while part := file.read(2**20):
        scans += len(_SCAN.findall(tail + part))
        tail = part[-1:]
    if scans > max(20, most):
        raise ImageError("decode_error", f"this JPEG file has {scans} scans: it would take too long to decode")


def _format_of(file: BinaryIO) -> ImageFormat:
    file.seek(0)
    header = file.read(HEADER_BYTES)
    if not header:
        raise ImageError("empty_file", "the file is empty (zero bytes)")
    format_ = formats.format_of(header)
    if format_ is None:
        known = ", ".join(f.name for f in formats.FORMATS[:-1])
        raise ImageError("not_an_image", f"this is not a photo. Allowed: {known} and {formats.FORMATS[-1].name}")
    return format_


def _open_image(format_: ImageFormat, file: BinaryIO, options: ReadOptions) -> ImageFile:
    """Open an image: read its header and check its size, but decode nothing."""
    file.seek(0)
    if format_.name == "WebP":
        _check_size(formats.webp_size(file.read(HEADER_BYTES)), options)
        file.seek(0)
    image = format_.open(file)
    _check_size(image.size, options)
    return image


def _check_size(size: tuple[int, int] | None, options: ReadOptions) -> None:
    if size is not None and size[0] * size[1] > options.max_pixels:
        raise ImageError(
            "too_large",
            f"{size[0]} x {size[1]} is {size[0] * size[1] / 1e6:,.1f} megapixels, "
            f"more than the {options.max_pixels / 1e6:,.1f} allowed. Raise --max-megapixels to read it",
        )


def _loaded(image: Image.Image, options: ReadOptions, finish: _Finish | None = None) -> Photo:
    turned = formats.turned_by_loading(image)
    image.load()
    return Photo((finish or _upright)(image, turned, options))


def _upright(image: Image.Image, turned: int, options: ReadOptions) -> Image.Image:
    """Convert a loaded image to RGB and orient it as `options` say; `turned` is the orientation already applied."""
    rgb = to_rgb(image)
    turn = _orientation(image) if options.exif == "apply" else {6: 8, 8: 6}.get(turned, turned)
    return turn_upright(rgb, turn)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block: leave the photo as stored
        return 1


def _from_pil(image: Image.Image, options: ReadOptions, name: str) -> Photo:
    try:
        _check_size(image.size, options)
        return _loaded(image, options)
    except ImageError as error:
        raise ImageError(error.code, f"{name}: {error}") from None
    except Exception as error:
        code = "truncated" if "truncated" in str(error).lower() else "decode_error"
        raise ImageError(code, f"{name}: it cannot be decoded") from error


def _from_tensor(tensor: Any) -> Any:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy has no bfloat16
    array = tensor.numpy()
    if array.ndim == 3 and array.shape[0] not in (1, 3, 4):
        raise UsageError(
            f"an image tensor has shape {array.shape}. Allowed: (height, width) or (1, 3 or 4, height, width)"
        )
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def _rescue(format_: ImageFormat, data: bytes, error: Exception, options: ReadOptions) -> Photo:
    """Return the decodable part of a truncated file if `options` allow it; raise an ImageError otherwise."""
    from dla.images.truncated import is_truncated, salvage

    if isinstance(error, MemoryError):
        raise ImageError("decode_error", "there is not enough memory to decode it") from error
    if "truncated" not in str(error).lower() and not is_truncated(format_, data):
        what = "is damaged, or uses a feature that is not supported"
        raise ImageError("decode_error", f"this {format_.name} file {what}") from error
    about = f"{_file_size(len(data))} of {format_.name}"
    partial = salvage(format_, data)
    if partial is None:
        raise ImageError("truncated", f"the file ends before its first pixel ({about}). Get the whole file") from error
    if not options.allow_truncated:
        about += f", last {partial.rows_missing} rows missing" if partial.rows_missing else ""
        raise ImageError(
            "truncated",
            f"the file ends in the middle of the picture ({about}). Use --allow-truncated to classify the part it has",
        ) from error
    return Photo(_upright(partial.image, partial.turned, options), truncated=True)


def _file_size(count: int) -> str:
    return f"{count} bytes" if count < 1000 else f"{count / 1e3:.0f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"
