"""The kinds of files that hold photos: how each is recognised and opened.

Each is opened by Pillow's class for it and never by `Image.open`, whose limit on the size is a setting of the whole
process: nothing here changes what another thread could see.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from PIL import ExifTags, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

__all__ = ["FORMATS", "HEADER_BYTES", "ImageFormat", "format_of", "turned_by_loading", "webp_size"]


HEADER_BYTES = 32


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Not read: nobody needs the resolution, and a broken EXIF block would keep the photo from opening."""


class _Gif(GifImageFile):
    # Only the first frame is read. To know how it is cleared away, Pillow would allocate it before its size is checked.
    disposal_method = property(lambda self: 0, lambda self, value: None)


class _Tiff(TiffImageFile):
    def load_prepare(self) -> None:
        """Without Pillow's second check of the size: the caller has made the only one."""
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size).im
        super().load_prepare()


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """`open` reads the header and takes no memory for pixels; `starts` matches a file's first `HEADER_BYTES`."""

    name: str
    open: type[ImageFile]
    starts: re.Pattern[bytes]


def _format(name: str, plugin: type[ImageFile], starts: bytes) -> ImageFormat:
    return ImageFormat(name, plugin, re.compile(starts, re.DOTALL))


FORMATS = (
    _format("JPEG", _Jpeg, rb"\xff\xd8\xff"),
    _format("PNG", PngImageFile, rb"\x89PNG\r\n\x1a\n"),
    _format("WebP", WebPImageFile, rb"RIFF.{4}WEBP"),
    _format("GIF", _Gif, rb"GIF8[79]a"),
    _format("BMP", BmpImageFile, rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    _format("TIFF", _Tiff, rb"II[*+]\0|MM\0[*+]"),
    _format("AVIF", AvifImageFile, rb".{4}ftyp(avif|avis|mif1|msf1)"),
)


def format_of(header: bytes) -> ImageFormat | None:
    """The format of a file that starts with `header`."""
    return next((f for f in FORMATS if f.starts.match(header)), None)


def webp_size(header: bytes) -> tuple[int, int] | None:
    """Width and height in a WebP file's first `HEADER_BYTES`: Pillow has taken memory for them once it is open."""
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
    """The EXIF orientation that Pillow applies and removes when it loads this image, which it does for TIFF only."""
    tags = getattr(image, "tag_v2", None)
    return 1 if tags is None else tags.get(ExifTags.Base.Orientation, 1)
