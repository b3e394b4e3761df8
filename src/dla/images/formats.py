"""The image formats: how each is recognized and opened.

Each is opened by Pillow's class for it and never by `Image.open`, whose size limit is a setting of the whole process
that other threads would see.
"""

from __future__ import annotations

import logging
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO

from PIL import ExifTags, Image, _imaging
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile, _Tile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from dla.images.segments import without_metadata

# Without it Pillow's messages would go to standard error where nobody has set up logging.
logging.getLogger("PIL").addHandler(logging.NullHandler())

HEADER_BYTES = 32
_COMPRESSION, _PHOTOMETRIC, _BITS_PER_SAMPLE, _SAMPLE_FORMAT = 259, 262, 258, 339  # tags of TIFF
_TILE_WIDTH, _TILE_OFFSETS = 322, 324
_UNSIGNED, _SIGNED = 1, 2  # values of the tag SampleFormat
_TIFF_JPEG = (6, 7)
# none, CCITT, LZW, JPEG, deflate, PackBits, old deflate, LZMA, Zstandard: the codecs of the libtiff in Pillow's wheels
_TIFF_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, *_TIFF_JPEG, 8, 32773, 32946, 34925, 50000})


class UnsupportedError(Exception):
    """The file uses a feature that Pillow would decode wrongly; the message completes "files with ..."."""


@dataclass(frozen=True, slots=True)
class GreyScale:
    """How to interpret grey samples with more than 8 bits.

    `white` is the value of white, None if the file does not define it. `unsigned`: the samples are unsigned 32-bit
    integers, which Pillow reads as signed. `inverted`: 0 is white.
    """

    white: int | None
    unsigned: bool = False
    inverted: bool = False


def grey_scale(image: Image.Image) -> GreyScale:
    """Return how to interpret the samples of an image of mode I;16, I or F."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    inverted = tags.get(_PHOTOMETRIC) == 0
    if image.mode.startswith("I;16"):
        return GreyScale(2 ** min(bits, 16) - 1, inverted=inverted)
    unsigned = image.mode == "I" and bits == 32 and tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED
    return GreyScale(None, unsigned and bool(tags), inverted)


class _Jpeg(JpegImageFile):
    def __init__(self, fp: BinaryIO) -> None:
        super().__init__(without_metadata(fp, "JPEG"))

    def _read_dpi_from_exif(self) -> None:
        """Skip the resolution: a broken EXIF block would keep the photo from opening."""


class _Png(PngImageFile):
    def __init__(self, fp: BinaryIO) -> None:
        super().__init__(without_metadata(fp, "PNG"))


class _Gif(GifImageFile):
    # Only the first frame is read. For its disposal method Pillow would allocate the frame before its size is checked.
    disposal_method = property(lambda self: 0, lambda self, value: None)

    def __init__(self, fp: BinaryIO) -> None:
        super().__init__(without_metadata(fp, "GIF"))

    def load_prepare(self) -> None:
        self._box = self.tile[0].extents or (0, 0, *self.size)
        super().load_prepare()

    def load_end(self) -> None:
        """Make the screen around a smaller frame white, as transparent pixels are; Pillow leaves it in any colour."""
        super().load_end()
        if self._frame_transparency is None and self._box != (0, 0, *self.size):
            frame = self.crop(self._box).convert("RGB")
            whole = Image.new("RGB", self.size, "white")
            whole.paste(frame, self._box)
            self.im, self._mode, self.palette = whole.im, "RGB", None


class _Bmp(BmpImageFile):
    def load_end(self) -> None:
        """Make an image opaque if its alpha is 0 everywhere: many writers of 32 bits leave the fourth byte empty."""
        if self.mode == "RGBA" and self.im.getband(3).getextrema() == (0, 0):
            self.im.fillband(3, 255)


@cache
def _silence_libtiff() -> None:
    """Keep libtiff from writing to standard error, past Python: its errors are in the record of the photo."""
    import ctypes

    with suppress(OSError, AttributeError):  # another build of Pillow
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


class _Tiff(TiffImageFile):
    def _setup(self) -> None:
        """Raise an UnsupportedError for what Pillow or libtiff decodes wrongly, and correct how the rest is read."""
        _silence_libtiff()
        code = self.tag_v2.get(_COMPRESSION, 1)
        bits, kinds = self.tag_v2.get(_BITS_PER_SAMPLE, (1,)), self.tag_v2.get(_SAMPLE_FORMAT, ())
        if code not in _TIFF_COMPRESSIONS:
            raise UnsupportedError(f"compression {code}")
        if max(bits) == 8 and _SIGNED in kinds:
            raise UnsupportedError("signed 8-bit samples")
        if max(bits) == 12 and code in _TIFF_JPEG:
            raise UnsupportedError("12-bit JPEG compression")
        if _TILE_WIDTH in self.tag_v2 and _TILE_OFFSETS not in self.tag_v2:
            raise UnsupportedError("tiles that are listed as strips")
        super()._setup()
        if self._planar_configuration == 2 and max(bits) > 8 and not self.use_load_libtiff:
            # Pillow's own reader assumes planes of 8 bits.
            self.use_load_libtiff = True
            self.tile = [_libtiff(self, f"{self.mode};16N")]
        elif self.use_load_libtiff:
            # libtiff returns samples in the machine's byte order, whatever the file's.
            args: Any = self.tile[0].args
            self.tile = [_libtiff(self, re.sub(r"B([FS])$", r"N\1", args[0]))]

    def load_prepare(self) -> None:
        """Allocate the pixels here, because Pillow would check the size against its own limit, not the caller's."""
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size).im
        super().load_prepare()


def _libtiff(image: TiffImageFile, raw: str) -> _Tile:
    return _Tile("libtiff", (0, 0, *image._tile_size), 0, (raw, False, image.tag_v2.offset))


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """An image format: `open` reads the header and allocates no pixels.

    `starts` is a pattern of the first `HEADER_BYTES`.
    """

    name: str
    open: type[ImageFile]
    starts: bytes


FORMATS = (
    ImageFormat("JPEG", _Jpeg, rb"\xff\xd8\xff"),
    ImageFormat("PNG", _Png, rb"\x89PNG\r\n\x1a\n"),
    ImageFormat("WebP", WebPImageFile, rb"RIFF.{4}WEBP"),
    ImageFormat("GIF", _Gif, rb"GIF8[79]a"),
    ImageFormat("BMP", _Bmp, rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    ImageFormat("TIFF", _Tiff, rb"II[*+]\0|MM\0[*+]"),
    ImageFormat("AVIF", AvifImageFile, rb".{4}ftyp(avif|avis|mif1|msf1)"),
)


def format_of(header: bytes) -> ImageFormat | None:
    """Return the format of a file that starts with `header`, or None."""
    return next((f for f in FORMATS if re.match(f.starts, header, re.DOTALL)), None)


def webp_size(header: bytes) -> tuple[int, int] | None:
    """Return (width, height) from the first `HEADER_BYTES` of a WebP file: Pillow allocates the pixels on opening."""
    kind, body = header[12:16], header[20:]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF


def turned_by_loading(image: Image.Image) -> int:
    """Return the EXIF orientation that Pillow applies and removes on loading this image (only for TIFF)."""
    tags = getattr(image, "tag_v2", None)
    return 1 if tags is None else tags.get(ExifTags.Base.Orientation, 1)
