"""Hide the segments of an image file that no pixel depends on.

Pillow's limits, bugs and quadratic loops are in text, profiles, thumbnails and animation, and nothing here uses them.
So the decoders get a view of the file without them: the picture, its palette, transparency and EXIF orientation remain.
Bytes that do not look like the format are passed on unchanged, and the decoder reports them.
"""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import BinaryIO

MAX_SEGMENTS = 1_000_000  # a photo has fewer than a thousand
_Piece = tuple[int, int]  # start and end in the file, in bytes

_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"})
_ORIENTATION_TEXT = (b"Raw profile type ", b"XML:com.adobe.xmp")  # where some writers put EXIF and XMP
_MAX_TEXT = 2**18  # bytes
_JPEG_STANDALONE = re.compile(rb"\xff[\x01\xd0-\xd8]")


class TooManySegmentsError(Exception):
    """The file has more segments than `MAX_SEGMENTS`."""


def without_metadata(file: BinaryIO, format_name: str) -> BinaryIO:
    """Return a view of `file`, from its start, that leaves out its metadata.

    Raises:
        TooManySegmentsError: the file has more than `MAX_SEGMENTS` segments.
    """
    pieces: list[_Piece] = []
    end = file.seek(0, io.SEEK_END)
    for count, (start, stop) in enumerate(_KEPT[format_name](file, end)):
        stop = min(stop, end)
        if count > MAX_SEGMENTS:
            raise TooManySegmentsError
        if stop <= start:
            continue
        if pieces and pieces[-1][1] == start:
            pieces[-1] = pieces[-1][0], stop
        else:
            pieces.append((start, stop))
    file.seek(0)
    return file if pieces == [(0, end)] else _View(file, pieces)  # type: ignore[return-value]


def _jpeg(file: BinaryIO, end: int) -> Iterator[_Piece]:
    """Yield the pieces to keep: everything except application segments and comments before the first scan.

    Of these, the first JFIF, EXIF, XMP and Adobe segments are kept. A piece that is empty only counts as a segment.
    """
    yield 0, 2
    at, has = 2, set()
    while at + 4 <= end:
        file.seek(at)
        marker = file.read(2)
        if marker == b"\xff\xff":
            at += 1
            yield at, at
            continue
        if marker[0] != 0xFF or marker[1] in (0x00, 0xDA):
            break
        if _JPEG_STANDALONE.match(marker):
            yield at, at + 2
            at += 2
            continue
        body = file.read(2 + 32)
        stop = at + 2 + int.from_bytes(body[:2], "big")
        kind = _jpeg_kind(marker[1], body[2:], stop - at - 4)
        yield (at, at) if kind is None or kind in has else (at, stop)
        has |= {kind} - {""}
        at = max(stop, at + 2)
    yield at, end


def _jpeg_kind(marker: int, body: bytes, length: int) -> str | None:
    """Return the kind of a segment: "" is always kept, None never, and of another kind the first is kept."""
    if marker == 0xE1 and body.startswith(b"Exif\0\0"):
        return "exif"
    if marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"[:32]):
        return "xmp"
    if marker == 0xEE and body.startswith(b"Adobe") and length >= 12:  # whether it is YCbCr, CMYK or YCCK
        return "adobe"
    if marker == 0xE0 and body.startswith(b"JFIF\0") and length >= 14:
        return "jfif"
    return None if 0xE0 <= marker <= 0xEF or marker == 0xFE else ""


def _png(file: BinaryIO, end: int) -> Iterator[_Piece]:
    yield 0, 8
    at, ended = 8, False
    while at + 12 <= end and not ended:
        file.seek(at)
        head = file.read(8)
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if not name.isalpha():
            break
        keep = name in _PNG_KEPT or not name[0] & 0x20
        if name in (b"tEXt", b"zTXt", b"iTXt") and length <= _MAX_TEXT:
            keep = file.read(20).startswith(_ORIENTATION_TEXT)
        elif name == b"tRNS":
            keep = length > 0 and not (length < 6 and _png_colours(file) == 2) and not (
                length < 2 and _png_colours(file) == 0)  # fmt: skip
        yield (at, at + 12 + length) if keep else (at, at)
        at += 12 + length
        ended = name == b"IEND"
    yield min(at, end), end


def _png_colours(file: BinaryIO) -> int:
    """Return the colour type: 0 grey, 2 RGB, 3 palette."""
    file.seek(25)
    return file.read(1)[0]


def _gif(file: BinaryIO, end: int) -> Iterator[_Piece]:
    """Yield the pieces to keep: everything from the first frame on, and before it the graphic control extension."""
    head = file.read(13) if file.seek(0) == 0 else b""
    at = 13 + (3 << (head[10] & 7) + 1 if len(head) == 13 and head[10] & 0x80 else 0)
    yield 0, at
    while at + 2 <= end:
        file.seek(at)
        mark = file.read(2)
        if mark[0] != 0x21:
            break
        stop = at + 2
        while (size := (file.read(1) or b"\0")[0]) and stop < end:
            stop += 1 + size
            file.seek(stop)
            yield at, at
        stop += 1
        yield (at, stop) if mark[1] == 0xF9 else (at, at)
        at = stop
    yield at, end


_KEPT: dict[str, Callable[[BinaryIO, int], Iterator[_Piece]]] = {"JPEG": _jpeg, "PNG": _png, "GIF": _gif}


class _View(io.RawIOBase):
    """A read-only file object over the pieces of a file, concatenated."""

    def __init__(self, file: BinaryIO, pieces: list[_Piece]) -> None:
        self._file, self._pieces, self._at = file, pieces, 0
        self._starts = [0]  # of each piece, in the view
        for start, stop in pieces:
            self._starts.append(self._starts[-1] + stop - start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._starts[-1]}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = self._starts[-1] - self._at if size is None or size < 0 else size
        parts = []
        while left > 0 and self._at < self._starts[-1]:
            i = bisect_right(self._starts, self._at) - 1
            into = self._at - self._starts[i]
            self._file.seek(self._pieces[i][0] + into)
            part = self._file.read(min(left, self._starts[i + 1] - self._at))
            if not part:
                break
            parts.append(part)
            self._at += len(part)
            left -= len(part)
        return b"".join(parts)
