"""Metadata that is odd, broken or endless costs nothing: the picture is what it is without it."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dla.errors import ImageError
from dla.images import segments
from dla.images.decode import read_photo

RGB = np.random.default_rng(0).integers(0, 255, (24, 31, 3), np.uint8)


def encode(format_: str, image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(RGB)).save(file, format_, **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(read_photo(data).image)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def in_png(*chunks: bytes) -> bytes:
    data = encode("PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def in_jpeg(*parts: bytes) -> bytes:
    data = encode("JPEG")
    return data[:2] + b"".join(parts) + data[2:]


@pytest.mark.parametrize(
    "part",
    [
        segment(0xE0, b"JFIF\0\1"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x04"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\4ab"),
        segment(0xEE, b"Adobe"),
        segment(0xFE, b""),
        segment(0xE2, b"MPF\0" + b"\xff" * 20),
    ],
)
def test_a_short_segment_of_a_jpeg(part: bytes) -> None:
    assert np.array_equal(pixels(in_jpeg(part)), pixels(encode("JPEG")))


@pytest.mark.parametrize(
    "name", [b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tRNS", b"acTL", b"iCCP", b"tIME", b"eXIf", b"zTXt"]
)
@pytest.mark.parametrize("body", [b"", b"\1", b"Name\0\0x"])
def test_a_short_chunk_of_a_png(name: bytes, body: bytes) -> None:
    if name == b"tRNS" and len(body) >= 6:
        body = body[:5]
    assert np.array_equal(pixels(in_png(chunk(name, body))), RGB)


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_megabytes_of_text_or_profile(name: bytes) -> None:
    body = b"Title\0\0" + zlib.compress(bytes(3_000_000))
    assert np.array_equal(pixels(in_png(chunk(name, body))), RGB)


def test_the_orientation_stays() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(RGB)
    for format_ in ("PNG", "JPEG"):
        turned = pixels(encode(format_, image, exif=exif.tobytes()))
        assert turned.shape == (31, 24, 3)
        assert np.array_equal(turned, np.rot90(pixels(encode(format_)), -1))
    xmp = b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    assert np.array_equal(pixels(in_png(text)), np.rot90(RGB, -1))


def test_colours_and_transparency_stay() -> None:
    for image in (
        Image.fromarray(RGB).convert("CMYK"),
        Image.fromarray(RGB).convert("L"),
    ):
        data = encode("JPEG", image, quality=95)
        assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    palette = Image.fromarray(RGB).quantize(16)
    data = encode("GIF", palette, transparency=3, comment=b"x" * 5000)
    whole = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", whole.size, "white")
    assert np.array_equal(pixels(data), np.asarray(Image.alpha_composite(white, whole).convert("RGB")))


class Counting(io.BytesIO):
    read_bytes = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.read_bytes += len(data)
        return data


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF"])
def test_many_segments_are_looked_at_once(format_: str) -> None:
    """The bytes that are read grow as the segments do, and not as their square."""

    def cost(count: int) -> int:
        exif = segment(0xE1, b"Exif\0\0" + bytes(20))
        made = {
            "JPEG": in_jpeg(*[exif] * count),
            "PNG": in_png(*[chunk(b"tEXt", b"a\0b")] * count),
            "GIF": encode("GIF")[:13] + encode("GIF")[13 : 13 + 768] + (b"\x21\xfe\x03abc\0") * count
            + encode("GIF")[13 + 768 :],
        }[format_]  # fmt: skip
        file = Counting(made)
        view = segments.without_metadata(file, format_)
        assert len(view.read()) < len(made) / 2 or count < 100
        return file.read_bytes

    assert cost(4000) < 2.5 * cost(2000)


def test_endless_segments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dla.images.segments.MAX_SEGMENTS", 50)
    with pytest.raises(ImageError, match="segments") as refused:
        read_photo(in_png(*[chunk(b"tEXt", b"a\0b")] * 60))
    assert refused.value.code == "decode_error"


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encode("JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    last = data[scan:-2]
    many = data[:scan] + last * 3000 + data[-2:]
    big = bytearray(many)
    frame = big.index(b"\xff\xc2")
    big[frame + 5 : frame + 9] = (13000).to_bytes(2, "big") * 2
    with pytest.raises(ImageError, match="scans"):
        read_photo(bytes(big))


@given(
    st.lists(st.tuples(st.sampled_from([0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xEF, 0xFE]), st.binary(max_size=60)), max_size=8)
)
@settings(max_examples=80)
def test_any_application_segments(parts: list[tuple[int, bytes]]) -> None:
    parts = [(marker, body) for marker, body in parts if not body.startswith((b"Adobe", b"Exif", b"http"))]
    data = in_jpeg(*(segment(marker, body) for marker, body in parts))
    assert np.array_equal(pixels(data), pixels(encode("JPEG")))


@given(st.binary(max_size=400), st.integers(0, 60))
def test_a_view_of_anything_reads_and_seeks_like_a_file(data: bytes, at: int) -> None:
    for format_, begin in (("JPEG", b"\xff\xd8"), ("PNG", b"\x89PNG\r\n\x1a\n"), ("GIF", b"GIF89a")):
        view = segments.without_metadata(io.BytesIO(begin + data), format_)
        whole = view.read()
        view.seek(at)
        assert view.read(7) == whole[at : at + 7]
        assert view.tell() == at + len(whole[at : at + 7])
        assert view.seek(0, io.SEEK_END) == len(whole)
