"""Files made to harm: each is read or refused, and nothing but an ImageError comes out."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dla.errors import ERROR_CODES, ImageError
from dla.images.decode import Photo, read_photo
from dla.options import ReadOptions

# Pillow warns of what it skips in damaged metadata.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

LENIENT = ReadOptions(allow_truncated=True)
HUGE = 60_000


def encode(format_: str, mode: str = "RGB", **options: Any) -> bytes:
    random = np.random.default_rng(0)
    smooth = np.linspace(0, 200, 13 * 17 * 3).reshape(13, 17, 3) + random.integers(0, 50, (13, 17, 3))
    file = io.BytesIO()
    Image.fromarray(smooth.astype(np.uint8)).convert(mode).save(file, format_, **options)
    return file.getvalue()


SMALL = {
    "JPEG": encode("JPEG"),
    "JPEG progressive": encode("JPEG", progressive=True),
    "JPEG CMYK": encode("JPEG", "CMYK"),
    "PNG": encode("PNG"),
    "PNG palette": encode("PNG", "P"),
    "WebP": encode("WEBP"),
    "WebP lossless": encode("WEBP", lossless=True),
    "GIF": encode("GIF"),
    "BMP": encode("BMP"),
    "TIFF": encode("TIFF"),
    "TIFF LZW": encode("TIFF", compression="tiff_lzw"),
    "TIFF deflate": encode("TIFF", compression="tiff_adobe_deflate"),
    "AVIF": encode("AVIF", speed=10),
}


def outcome(data: bytes, options: ReadOptions) -> tuple[str | None, Photo | None]:
    try:
        return None, read_photo(data, options)
    except ImageError as error:
        return error.code, None


def survives(data: bytes) -> Photo | None:
    """The photo, if it is read strictly; what is said otherwise, and when cut files are allowed, must be in order."""
    strict, lenient = (
        outcome(data, ReadOptions(max_pixels=1_000_000, allow_truncated=allowed)) for allowed in (False, True)
    )
    for code, found in (strict, lenient):
        assert code in ERROR_CODES or (found is not None and found.image.mode == "RGB")
    return strict[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_cut_at_every_byte(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = SMALL[kind]
    whole = np.asarray(read_photo(data).image)
    for length in range(len(data)):
        found = survives(data[:length])
        assert found is None or np.array_equal(np.asarray(found.image), whole)  # only the end mark is missing


@pytest.mark.parametrize("kind", SMALL)
@given(
    st.lists(st.tuples(st.integers(0, 2**20), st.one_of(st.sampled_from([0, 1, 127, 128, 255]), st.integers(0, 255))),
             min_size=1, max_size=12)
)  # fmt: skip
@settings(max_examples=60)
def test_any_bytes_changed(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(SMALL[kind])
    for position, value in changes:
        data[position % len(data)] = value
    survives(bytes(data))


@pytest.mark.parametrize("kind", SMALL)
@given(st.binary(max_size=200), st.integers(2, 60))
@settings(max_examples=30)
def test_rubbish_after_a_good_beginning(kind: str, rubbish: bytes, kept: int) -> None:
    survives(SMALL[kind][:kept] + rubbish)


@given(st.binary(max_size=300))
def test_rubbish(rubbish: bytes) -> None:
    survives(rubbish)


# Headers that claim more than there is


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_bomb() -> bytes:
    header = struct.pack(">IIBBBBB", HUGE, HUGE, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(5_000_000))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def jpeg_bomb() -> bytes:
    data = bytearray(SMALL["JPEG"])
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", HUGE, HUGE)
    return bytes(data)


def webp_bomb(kind: str) -> bytes:
    data = bytearray(SMALL["WebP lossless" if kind == "VP8L" else "WebP"])
    if kind == "VP8L":
        data[21:25] = struct.pack("<I", 0x3FFF | 0x3FFF << 14)
    elif kind == "VP8 ":
        data[26:30] = struct.pack("<HH", 0x3FFF, 0x3FFF)
    else:
        side = (HUGE - 1).to_bytes(3, "little")
        body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + side + side + bytes(data[12:])
        data = bytearray(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body)
    return bytes(data)


def gif_bomb() -> bytes:
    frames = [Image.new("P", (17, 13), i) for i in (0, 1)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], disposal=2)
    data = bytearray(file.getvalue())
    data[6:10] = struct.pack("<HH", HUGE, HUGE)
    frame = data.index(b"\x2c\0\0\0\0")
    data[frame + 5 : frame + 9] = struct.pack("<HH", HUGE, HUGE)
    return bytes(data)


def bmp_bomb() -> bytes:
    data = bytearray(SMALL["BMP"])
    data[18:26] = struct.pack("<II", HUGE, HUGE)
    return bytes(data)


def tiff_bomb(kind: str) -> bytes:
    data = bytearray(SMALL[kind])
    for tag, old in ((256, 17), (257, 13)):
        found = re.search(struct.pack("<H", tag) + rb"[\x03\x04]\x00\x01\x00\x00\x00" + struct.pack("<H", old), data)
        assert found is not None
        data[found.end() - 2 : found.end()] = struct.pack("<H", HUGE)
    return bytes(data)


def avif_bomb() -> bytes:
    data = bytearray(SMALL["AVIF"])
    extent = data.index(b"ispe")
    data[extent + 8 : extent + 16] = struct.pack(">II", HUGE, HUGE)
    return bytes(data)


BOMBS = {
    "PNG": png_bomb(),
    "JPEG": jpeg_bomb(),
    "WebP VP8X": webp_bomb("VP8X"),
    "WebP VP8": webp_bomb("VP8 "),
    "WebP VP8L": webp_bomb("VP8L"),
    "GIF": gif_bomb(),
    "BMP": bmp_bomb(),
    "TIFF": tiff_bomb("TIFF"),
    "TIFF LZW": tiff_bomb("TIFF LZW"),
    "AVIF": avif_bomb(),
}

MEASURE = """
import resource, sys
from PIL.ImageFile import ImageFile
from dla.errors import ImageError
from dla.images.decode import read_photo
from dla.options import ReadOptions
options = [ReadOptions(), ReadOptions(allow_truncated=True), ReadOptions(max_pixels=1000, allow_truncated=True)]
prepared, prepare = [], ImageFile.load_prepare
ImageFile.load_prepare = lambda image: prepared.append(image) or prepare(image)  # called before any pixel is decoded
read_photo(sys.argv[1])
assert len(prepared) == 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    for option in options:
        try:
            read_photo(path, option)
        except ImageError as error:
            print(error.code, file=sys.stderr)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, len(prepared) - 1)
"""


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_by_its_header(kind: str) -> None:
    for options in (ReadOptions(), LENIENT, ReadOptions(max_pixels=1000)):
        with pytest.raises(ImageError) as caught:
            read_photo(BOMBS[kind], options)
        # AVIF's decoder has a limit of its own and calls what is above it damaged
        assert caught.value.code in ({"too_large", "decode_error"} if kind == "AVIF" else {"too_large"})


@pytest.mark.skipif(sys.platform == "win32", reason="needs the module resource: POSIX")
def test_bombs_take_no_memory_and_nothing_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "small.png").write_bytes(SMALL["PNG"])
    paths = [str(tmp_path / "small.png")]
    for kind, data in BOMBS.items():
        paths.append(str(tmp_path / kind))
        Path(paths[-1]).write_bytes(data)
    command = [sys.executable, "-c", MEASURE, *paths]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    kilobytes, decoded = map(int, run.stdout.split())
    assert len(run.stderr.split()) == 3 * len(BOMBS)
    assert kilobytes < 20_000
    assert decoded == 0


def test_a_webp_that_states_four_gigabytes_is_not_padded_to_them() -> None:
    data = bytearray(SMALL["WebP"])
    data[4:8] = struct.pack("<I", 0xFFFFFFF6)
    survives(bytes(data))
    with pytest.raises(ImageError) as caught:
        read_photo(bytes(data))
    assert caught.value.code == "truncated"


def test_a_compressed_text_that_unpacks_to_a_thousand_times_its_size() -> None:
    packed = b"Comment\0\0" + zlib.compress(bytes(5_000_000))
    data = SMALL["PNG"]
    survives(data[:33] + png_chunk(b"zTXt", packed) + data[33:])


@pytest.mark.parametrize("name", ["cat.jpg", "cat.png", "cat"])
def test_text_by_any_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("GIF me a break\n" * 100)
    with pytest.raises(ImageError, match=r"this is not a photo\. Allowed: JPEG, .* and AVIF$") as caught:
        read_photo(path)
    assert caught.value.code == "not_an_image"


def test_a_file_that_is_another_kind_than_its_name_says(tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(SMALL["PNG"])
    assert read_photo(path).image.size == (17, 13)


def test_an_endless_file_is_refused() -> None:
    zero = Path("/dev/zero")
    if not zero.exists():
        pytest.skip("needs /dev/zero: POSIX")
    with pytest.raises(ImageError) as caught:
        read_photo(zero)
    assert caught.value.code == "not_a_file"
