from __future__ import annotations

import errno
import io
import os
import re
import socket
import struct
import threading
import warnings
from pathlib import Path
from typing import Any

import matplotlib.cbook
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from dla.errors import ERROR_CODES, ImageError, UsageError
from dla.images.decode import Photo, read_header, read_photo, to_photo
from dla.options import ReadOptions
from support.photos import CHELSEA, ROCKET, SKIMAGE, troubled_folder

STRICT = ReadOptions()
IGNORE = ReadOptions(exif="ignore")
LENIENT = ReadOptions(allow_truncated=True)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
PACKAGED = [
    *(p for p in sorted(SKIMAGE.iterdir()) if p.suffix in {".jpg", ".png", ".gif", ".tif", ".tiff"}),
    Path(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)),
]


def encode(image: Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def photo(width: int = 60, height: int = 41) -> Image.Image:
    small = Image.open(CHELSEA).convert("RGB").resize((width, height))
    small.info.clear()
    return small


def values(found: Photo | Image.Image) -> np.ndarray:
    return np.asarray(found.image if isinstance(found, Photo) else found)


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def refused(source: Any, options: ReadOptions = STRICT, name: str | None = None) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_photo(source, options, name)
    assert caught.value.code in ERROR_CODES
    return caught.value


# What Pillow reads


@pytest.mark.parametrize("path", PACKAGED, ids=lambda p: p.name)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_packaged_photos_are_what_pillow_makes_of_them(path: Path) -> None:
    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        assert refused(path).code == "decode_error"
        return
    found = read_photo(path)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    if image.mode.startswith("I;16"):
        expected = np.rint(np.asarray(image)[:, :, None] / 257).repeat(3, 2)
    else:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(values(found), expected)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_path_bytes_and_an_open_file_are_the_same(format_: str, tmp_path: Path) -> None:
    data = encode(photo(), format_)
    path = tmp_path / "photo.of_no_known_ending"
    path.write_bytes(data)
    expected = by_pillow(data)
    with path.open("rb") as file:
        for source in (path, str(path), data, io.BytesIO(data), file):
            found = read_photo(source)
            assert found.image.mode == "RGB"
            assert not found.truncated
            assert np.array_equal(values(found), expected)


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    quality=st.integers(1, 100),
    progressive=st.booleans(),
    restart_marker_blocks=st.integers(0, 3),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_any_jpeg_is_what_pillow_makes_of_it(
    size: tuple[int, int], subsampling: str, mode: str, seed: int, **options: Any
) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    data = encode(Image.fromarray(noise).convert(mode), "JPEG", subsampling=subsampling, **options)
    assert np.array_equal(values(read_photo(data)), by_pillow(data))


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_of_several_frames_the_first(format_: str) -> None:
    first, second = Image.new("RGB", (20, 10), (250, 10, 10)), Image.new("RGB", (20, 10), (10, 10, 250))
    data = encode(first, format_, save_all=True, append_images=[second], duration=100)
    assert np.abs(values(read_photo(data)).astype(int) - (250, 10, 10)).max() <= 4


# Kinds of pixels


def test_grey_of_16_bits_is_divided_by_257() -> None:
    levels = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
    expected = [0, 0, 1, 1, 128, 254, 255, 255]  # level / 257, rounded
    big_endian = Image.fromarray(levels.astype(">u2"))
    assert big_endian.mode == "I;16B"
    for data in (encode(Image.fromarray(levels), "PNG"), encode(Image.fromarray(levels), "TIFF"),
                 encode(big_endian, "TIFF")):  # fmt: skip
        assert values(read_photo(data))[0].tolist() == [[v] * 3 for v in expected]


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([0, 100.4, 255], [0, 100, 255]),
        ([0, 257, 65535], [0, 1, 255]),
        ([-1, 0, 1], [0, 128, 255]),
        ([0, 1e6, 4e6], [0, 64, 255]),
        ([-5, -5, -5], [0, 0, 0]),
        ([np.nan, 0.5, np.inf], [0, 128, 255]),
        ([np.nan, np.nan, np.nan], [0, 0, 0]),
    ],
)
def test_float_grey_has_the_first_range_that_holds_it(given_: list[float], expected: list[int]) -> None:
    data = encode(Image.fromarray(np.array([given_], np.float32)), "TIFF")
    assert values(read_photo(data))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ([0, 1, 255], [0, 1, 255]),
        ([0, 257, 65535], [0, 1, 255]),
        ([-100, 0, 100], [0, 128, 255]),
        ([0, 100_000, 400_000], [0, 64, 255]),
    ],
)
def test_grey_of_32_bits_has_the_first_range_that_holds_it(given_: list[int], expected: list[int]) -> None:
    data = encode(Image.fromarray(np.array([given_], np.int32)), "TIFF")
    assert values(read_photo(data))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("cmyk", "rgb"), [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0)), ((0, 0, 0, 0), (255, 255, 255))]
)
def test_cmyk(cmyk: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    ink = Image.new("CMYK", (16, 16), cmyk)
    assert np.array_equal(values(read_photo(encode(ink, "TIFF")))[3, 3], rgb)
    assert np.abs(values(read_photo(encode(ink, "JPEG", quality=100)))[3, 3].astype(int) - rgb).max() <= 2


def test_alpha_is_laid_on_white() -> None:
    colour, alpha = np.array([200, 100, 0]), np.array([0, 1, 127, 128, 254, 255])
    pixels = np.concatenate([np.tile(colour, (6, 1)), alpha[:, None]], 1)[None].astype(np.uint8)
    expected = colour * (alpha[:, None] / 255) + 255 * (1 - alpha[:, None] / 255)
    for format_ in ("PNG", "TIFF"):
        found = values(read_photo(encode(Image.fromarray(pixels, "RGBA"), format_)))
        assert np.abs(found[0] - expected).max() <= 0.51
    lossless = values(read_photo(encode(Image.fromarray(pixels, "RGBA"), "WEBP", lossless=True, exact=True)))
    assert np.abs(lossless[0] - expected).max() <= 0.51


def test_other_modes_with_alpha() -> None:
    grey = Image.fromarray(np.array([[[100, 0], [100, 128], [100, 255]]], np.uint8), "LA")
    indices = Image.frombytes("PA", (3, 1), bytes([1, 0, 1, 128, 1, 255]))
    indices.putpalette([0, 0, 0, 100, 100, 100])
    expected = np.array([255, 100 * 128 / 255 + 127, 100])[:, None]
    for image in (grey, grey.convert("La"), grey.convert("RGBA").convert("RGBa"), indices):
        assert np.abs(values(to_photo(image))[0] - expected).max() <= 1, image.mode
    assert np.abs(values(read_photo(encode(grey, "PNG")))[0] - expected).max() <= 1


def test_palettes() -> None:
    indices = Image.fromarray(np.array([[0, 1, 2, 1]], np.uint8), "P")
    indices.putpalette([10, 20, 30, 200, 100, 0, 1, 2, 3])
    plain = [[10, 20, 30], [200, 100, 0], [1, 2, 3], [200, 100, 0]]
    for format_ in ("PNG", "GIF", "BMP", "TIFF"):
        assert values(read_photo(encode(indices, format_)))[0].tolist() == plain
    white = [255, 255, 255]
    for format_ in ("PNG", "GIF"):
        found = values(read_photo(encode(indices, format_, transparency=1)))[0].tolist()
        assert found == [plain[0], white, plain[2], white]
    half = values(read_photo(encode(indices, "PNG", transparency=bytes([255, 51, 0]))))[0].tolist()
    assert half == [plain[0], [244, 224, 204], white, [244, 224, 204]]


def test_a_transparent_colour() -> None:
    rgb = Image.fromarray(np.array([[[9, 9, 9], [1, 2, 3]]], np.uint8))
    found = values(read_photo(encode(rgb, "PNG", transparency=(9, 9, 9))))
    assert found.tolist() == [[[255, 255, 255], [1, 2, 3]]]
    grey = Image.fromarray(np.array([[9, 7]], np.uint8))
    assert values(read_photo(encode(grey, "PNG", transparency=9)))[0, :, 0].tolist() == [255, 7]


def test_one_bit() -> None:
    bits = Image.fromarray(np.array([[0, 255, 255, 0, 255]], np.uint8)).convert("1")
    for format_ in ("PNG", "BMP", "TIFF"):
        assert values(read_photo(encode(bits, format_)))[0].tolist() == [[v] * 3 for v in (0, 255, 255, 0, 255)]


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_other_colour_spaces(mode: str) -> None:
    image = photo()
    assert np.abs(values(to_photo(image.convert(mode))).astype(int) - values(image)).mean() < 2


def test_lab() -> None:
    lab = np.array([[[0, 0, 0], [128, 0, 0], [255, 0, 0], [200, 12, -8], [90, -18, 22], [150, 40, 30]]])
    image = Image.frombytes("LAB", (6, 1), lab.astype(np.uint8).tobytes())
    found = values(read_photo(encode(image, "TIFF"))).astype(int)
    by_scikit_image = [[[0, 0, 0], [119, 119, 119], [255, 255, 255], [210, 187, 209], [65, 90, 47], [217, 111, 91]]]
    assert np.abs(found - by_scikit_image)[0, :3].max() <= 1
    assert np.abs(found - by_scikit_image).max() <= 5  # each adapts colours to another white in its own way


# EXIF


# How EXIF 2.3 stores a picture under each orientation: what its first row and its first column are.
STORED = {
    1: lambda p: p,  # top, left
    2: lambda p: p[:, ::-1],  # top, right
    3: lambda p: p[::-1, ::-1],  # bottom, right
    4: lambda p: p[::-1],  # bottom, left
    5: lambda p: p.swapaxes(0, 1),  # left, top
    6: lambda p: p.swapaxes(0, 1)[::-1],  # right, top
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda p: p[::-1].swapaxes(0, 1),  # left, bottom
}


def oriented(stored: np.ndarray, orientation: int, format_: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 100, "subsampling": 0},
        "AVIF": {"quality": 100, "subsampling": "4:4:4", "speed": 10},
    }
    return encode(Image.fromarray(np.ascontiguousarray(stored)), format_, exif=exif, **options.get(format_, {}))


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation_is_applied_or_ignored(format_: str, orientation: int) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12], upright[:8, 12:], upright[8:, :12] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = STORED[orientation](upright)
    data = oriented(stored, orientation, format_)
    for options, expected in ((ReadOptions(), upright), (IGNORE, stored)):
        found = values(read_photo(data, options)).astype(int)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 3


def test_stored_orientations_agree_with_pillow() -> None:
    upright = values(photo(7, 5))
    for orientation, stored in STORED.items():
        image = Image.open(io.BytesIO(oriented(stored(upright), orientation, "PNG")))
        assert np.array_equal(values(ImageOps.exif_transpose(image)), upright)


@given(st.binary(max_size=60), st.booleans(), st.sampled_from(["JPEG", "PNG", "WEBP"]))
@settings(max_examples=80)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_broken_exif_block_is_survived(block: bytes, with_header: bool, format_: str) -> None:
    exif = b"Exif\0\0" + (b"II*\0\x08\0\0\0" if with_header else b"") + block
    image = photo(20, 20)
    data = encode(image, format_, exif=exif)
    assert np.array_equal(values(read_photo(data, IGNORE)), by_pillow(data))
    assert sorted(read_photo(data).image.size) == [20, 20]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_broken_exif_block_that_keeps_pillow_from_opening() -> None:
    turn, unit = struct.pack("<HHII", 0x0112, 3, 1, 6), struct.pack("<HHII", 0x0128, 3, 1, 2)
    one_byte_resolution = struct.pack("<HHII", 0x011A, 7, 1, 0)
    block = b"Exif\0\0II*\0\x08\0\0\0\x03\0" + turn + one_byte_resolution + unit + bytes(4)
    data = bytearray(encode(photo(20, 10), "JPEG", exif=block))
    del data[2:20]  # the JFIF block, which would tell the resolution
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(bytes(data)))
    assert read_photo(bytes(data)).image.size == (10, 20)


# What cannot be read


def test_every_code_has_a_meaning() -> None:
    assert set(ERROR_CODES) == {
        "not_found", "is_a_directory", "not_a_file", "permission_denied", "read_error", "empty_file", "not_an_image",
        "too_large",
        "truncated", "decode_error", "bad_member", "changed", "worker_died",
    }  # fmt: skip
    assert all("\n" not in meaning and len(meaning) > 15 for meaning in ERROR_CODES.values())


def test_no_such_file(tmp_path: Path) -> None:
    missing = tmp_path / "cat.jpg"
    assert str(refused(missing)) == f"{missing}: there is no such file"
    assert refused(missing).code == "not_found"
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file" / "cat.jpg").code == "not_found"
    assert refused("cat\0.jpg").code == "not_found"


def test_a_folder(tmp_path: Path) -> None:
    assert refused(tmp_path).code == "is_a_directory"
    assert str(refused(tmp_path)) == f"{tmp_path}: this is a folder, not a photo"


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(encode(photo(), "PNG"))
    path.chmod(0)
    if os.access(path, os.R_OK):  # a superuser may read everything

        def denied(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr("builtins.open", denied)
    error = refused(path)
    assert (error.code, str(error)) == ("permission_denied", f"{path}: no permission to read this file")


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that the system cannot read: Linux")
def test_a_failing_disk() -> None:
    error = refused("/proc/self/mem")
    assert (error.code, str(error)) == ("read_error", "/proc/self/mem: it could not be read (Input/output error)")


def test_a_disk_that_fails_in_the_middle() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    assert refused(Failing(b"")).code == "read_error"


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    assert str(refused(path)) == f"{path}: the file is empty (zero bytes)"
    assert refused(b"", name="input 3").code == "empty_file"
    assert str(refused(b"", name="input 3")) == "input 3: the file is empty (zero bytes)"


@pytest.mark.parametrize(
    "data",
    [
        b"no picture at all\n" * 50,
        b"BMW is no bitmap, and this is long enough",
        b"\xff\xd8",
        b"%PDF-1.7",
        encode(photo(), "JPEG2000"),
        encode(photo(), "PPM"),
    ],
    ids=["text", "text like a BMP", "two bytes", "PDF", "JPEG 2000", "PPM"],
)
def test_other_kinds_of_files(data: bytes) -> None:
    error = refused(data, name="text.jpg")
    assert error.code == "not_an_image"
    assert str(error) == "text.jpg: this is not a photo. Allowed: JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF"


def test_a_damaged_file() -> None:
    data = bytearray(encode(photo(), "PNG"))
    data[60] ^= 0xFF  # a checksum no longer fits, the end is there
    error = refused(bytes(data), name="x.png")
    assert error.code == "decode_error"
    assert str(error) == "x.png: this PNG file is damaged, or uses a feature that is not supported"


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cat.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/null")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    error = refused(path)
    assert error.code in ("not_a_file", "read_error" if kind == "socket" else "")
    assert str(error).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["big.webp", "big.png", "big.avif", "big.tif", "big.jpg"])
def test_a_file_of_terabytes_is_not_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    heads = {".webp": b"RIFF\xff\xff\xff\x7fWEBPVP8X", ".png": b"\x89PNG\r\n\x1a\n", ".avif": b"\0\0\0\x20ftypavif",
             ".tif": b"II*\0\x08\0\0\0", ".jpg": b"\xff\xd8\xff\xe0"}  # fmt: skip
    with path.open("wb") as file:
        file.write(heads[path.suffix])
        file.truncate(2**41)
    error = refused(path)
    assert error.code == "too_large"
    assert (
        "2199023.3 MB, more than the 600.0 MB allowed. Save the photo as a smaller file, or raise --max-megabytes"
        in str(error)
    )


def test_the_bytes_are_limited_of_streams_too() -> None:
    data = encode(photo(), "PNG")
    for source in (data, io.BytesIO(data)):
        with pytest.raises(ImageError, match="more than the 100 bytes allowed"):
            read_photo(source, ReadOptions(max_bytes=100))
    assert read_photo(io.BytesIO(data), ReadOptions(max_bytes=len(data))).image.size == (60, 41)


def test_around_a_smaller_frame_of_a_gif_is_white() -> None:
    """As in browsers, libvips and OpenCV, where it is transparent."""
    data = bytearray(encode(Image.new("RGB", (4, 3), (200, 20, 30)), "GIF"))
    data[6:10] = struct.pack("<HH", 6, 5)  # the screen
    frame = data.index(b"\x2c\0\0\0\0\4\0\3\0")
    data[frame + 1 : frame + 5] = struct.pack("<HH", 1, 2)
    expected = np.full((5, 6, 3), 255, np.uint8)
    expected[2:5, 1:5] = 200, 20, 30
    assert np.asarray(read_photo(bytes(data)).image).tolist() == expected.tolist()


def test_alpha_that_is_nowhere_is_no_alpha() -> None:
    header = struct.pack(
        "<IiiHHIIiiII4I", 108, 4, 3, 1, 32, 3, 48, 2835, 2835, 0, 0, 0xFF0000, 0xFF00, 0xFF, 0xFF000000
    )
    header = header.ljust(108, b"\0")

    def bmp(alpha: int) -> bytes:
        rows = bytes([10, 20, 30, alpha]) * 12
        return b"BM" + struct.pack("<IHHI", 14 + 108 + len(rows), 0, 0, 122) + header + rows

    assert np.asarray(read_photo(bmp(0)).image).reshape(-1, 3).tolist() == [[30, 20, 10]] * 12
    assert np.asarray(read_photo(bmp(255)).image).reshape(-1, 3).tolist() == [[30, 20, 10]] * 12


def test_errors_keep_their_cause() -> None:
    assert isinstance(refused("nowhere.png").__cause__, FileNotFoundError)


@pytest.mark.parametrize("format_", FORMATS)
def test_the_size_is_limited(format_: str) -> None:
    data = encode(photo(30, 20), format_)
    assert read_photo(data, ReadOptions(max_pixels=600)).image.size == (30, 20)
    error = refused(data, ReadOptions(max_pixels=599), "big")
    assert error.code == "too_large"
    assert str(error).startswith("big: 30 x 20 is 0.0 megapixels, more than the 0.0 allowed. ")


def test_the_limit_in_a_message() -> None:
    error = refused(encode(Image.new("1", (3000, 2000)), "PNG"), ReadOptions(max_pixels=1_500_000), "big.png")
    assert str(error) == (
        "big.png: 3000 x 2000 is 6.0 megapixels, more than the 1.5 allowed. Raise --max-megapixels to read it"
    )


@pytest.mark.parametrize("format_", [*FORMATS, "GIF of frames"])
def test_pillows_own_limit_neither_warns_nor_refuses(format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo(30, 20)
    several = {"save_all": True, "append_images": [image.rotate(180)], "disposal": 2}
    data = encode(image, format_.split()[0], **(several if "frames" in format_ else {}))
    limit = 300 if format_ == "WEBP" else 10
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photo(data).image.size == (30, 20)


def test_webp_is_refused_by_pillows_doubled_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photo(30, 20), "WEBP")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    assert refused(data).code == "too_large"


# Files that end early


def lossless_cuts() -> dict[str, bytes]:
    image = photo()
    return {
        "PNG": encode(image, "PNG"),
        "PNG interlaced": INTERLACED,
        "PNG palette": encode(image.convert("P"), "PNG"),
        "GIF": encode(image, "GIF"),
        "BMP": encode(image, "BMP"),
        "TIFF": encode(image, "TIFF"),
        "JPEG": encode(image, "JPEG"),
        "JPEG progressive": encode(image, "JPEG", progressive=True),
        "JPEG CMYK": encode(image.convert("CMYK"), "JPEG"),
    }


INTERLACED = encode(photo(), "PNG")
CUTS = lossless_cuts()


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("share", [0.6, 0.85, 0.95])
def test_what_is_there_is_what_pillow_gives(kind: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = CUTS[kind][: int(share * len(CUTS[kind]))]
    assert refused(cut).code == "truncated"
    found = read_photo(cut, LENIENT)
    assert found.truncated
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert np.array_equal(values(found), by_pillow(cut))


def test_a_progressive_jpeg_that_ends_between_two_passes() -> None:
    data = CUTS["JPEG progressive"]
    tables = data.rindex(b"\xff\xc4")
    between = read_photo(data[: tables + 10], LENIENT)
    assert np.array_equal(values(between), by_pillow(data[:tables] + b"\xff\xd9"))
    assert 0 < np.abs(values(between).astype(int) - by_pillow(data)).mean() < 10


def test_the_message_of_a_cut_file(tmp_path: Path) -> None:
    rocket = ROCKET.read_bytes()
    path = tmp_path / "holiday.jpg"
    path.write_bytes(rocket[: len(rocket) // 2])
    match = re.fullmatch(
        rf"{path}: the file ends in the middle of the picture \((\d+) kB of JPEG, last (\d+) rows missing\)\. "
        "Use --allow-truncated to classify the part it has",
        str(refused(path)),
    )
    assert match is not None
    assert int(match[1]) == round(len(rocket) / 2000)
    whole, partly = values(read_photo(ROCKET)), values(read_photo(path, LENIENT))
    rows_there = len(whole) - int(match[2])
    assert np.array_equal(whole[: rows_there - 1], partly[: rows_there - 1])
    assert not np.array_equal(whole[rows_there + 20 :], partly[rows_there + 20 :])


def test_missing_rows_are_counted() -> None:
    data = encode(photo(), "TIFF")
    assert ", last 1 rows missing)" in str(refused(data[:-1]))
    assert ", last 2 rows missing)" in str(refused(data[: -60 * 3 - 1]))


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP"])
def test_nothing_but_a_header(format_: str) -> None:
    data = encode(photo(), format_)[:25]
    for options in (ReadOptions(), LENIENT):
        error = refused(data, options)
        assert error.code == "truncated"
        assert "the file ends before its first pixel (25 bytes of " in str(error)


@pytest.mark.parametrize("lossless", [False, True])
def test_a_cut_webp(lossless: bool) -> None:
    data = encode(photo(), "WEBP", lossless=lossless)
    cut = data[: int(0.8 * len(data))]
    assert refused(cut).code == "truncated"
    found = read_photo(cut, LENIENT)
    assert found.truncated
    assert np.array_equal(values(found)[:8], values(read_photo(data))[:8])


def test_a_cut_tiff_is_turned_too() -> None:
    upright = values(photo(24, 16))
    for orientation in (3, 6):
        stored = STORED[orientation](upright)
        data = oriented(stored, orientation, "TIFF")
        for options, whole in ((LENIENT, upright), (ReadOptions("ignore", allow_truncated=True), stored)):
            found = read_photo(data[:-9], options)
            assert found.truncated
            assert (values(found) != whole).any(2).sum() <= 24  # a row or a column


def test_a_whole_file_is_not_called_truncated() -> None:
    for data in CUTS.values():
        assert not read_photo(data, LENIENT).truncated


def test_threads_of_both_kinds_do_not_disturb_each_other() -> None:
    data = CUTS["JPEG"][: int(0.7 * len(CUTS["JPEG"]))]
    expected = values(read_photo(data, LENIENT))
    wrong: list[object] = []

    def work(options: ReadOptions) -> None:
        for _ in range(40):
            try:
                found = read_photo(data, options)
            except ImageError as error:
                if options.allow_truncated or error.code != "truncated":
                    wrong.append(error)
            else:
                if not options.allow_truncated or not np.array_equal(values(found), expected):
                    wrong.append(found)

    threads = [threading.Thread(target=work, args=(o,)) for o in (LENIENT, ReadOptions(), LENIENT, ReadOptions())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


# Everything else that holds a picture


def test_the_same_picture_in_every_form(tmp_path: Path) -> None:
    upright = values(photo())
    stored = STORED[6](upright)
    data = oriented(stored, 6, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    tensor = torch.from_numpy(upright.copy()).permute(2, 0, 1)
    forms = {
        "path": path, "string": str(path), "bytes": data, "bytearray": bytearray(data), "view": memoryview(data),
        "file": io.BytesIO(data), "lazy image": Image.open(io.BytesIO(data)), "loaded image": Image.fromarray(upright),
        "uint8": upright, "uint16": upright.astype(np.uint16) * 257, "float32": upright.astype(np.float32) / 255,
        "float64": upright / 255, "alpha": np.dstack([upright, np.full(upright.shape[:2], 255, np.uint8)]),
        "not contiguous": upright[:, ::-1][:, ::-1], "tensor": tensor, "float tensor": tensor / 255,
        "tensor with gradient": (tensor / 255).requires_grad_(),
    }  # fmt: skip
    for name, form in forms.items():
        assert np.array_equal(values(to_photo(form)), upright), name


def test_a_half_precision_tensor() -> None:
    levels = torch.tensor([[0.0, 0.5, 1.0]])
    for kind in (torch.float16, torch.bfloat16):
        assert values(to_photo(levels.to(kind)))[0, :, 0].tolist() == [0, 128, 255]


def test_grey_arrays_and_tensors() -> None:
    grey = np.array([[0, 7, 255]], np.uint8)
    for form in (grey, grey[:, :, None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert values(to_photo(form)).tolist() == [[[0] * 3, [7] * 3, [255] * 3]]


def test_an_alpha_array_is_laid_on_white() -> None:
    assert values(to_photo(np.array([[[0, 0, 0, 0]]], np.uint8))).tolist() == [[[255, 255, 255]]]


def test_a_given_image_is_left_alone() -> None:
    image = Image.open(io.BytesIO(oriented(values(photo()), 6, "JPEG")))
    to_photo(image)
    assert image.size == (60, 41)
    assert image.getexif()[0x0112] == 6


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (np.zeros((3, 8, 9), np.uint8), r"has shape \(3, 8, 9\).*\(height, width, 1, 3 or 4\).*channels first"),
        (np.zeros((2, 8, 9, 3), np.uint8), r"has shape \(2, 8, 9, 3\).*several images as a list"),
        (np.zeros((0, 9, 3), np.uint8), r"has shape \(0, 9, 3\)"),
        (np.zeros(5, np.uint8), r"has shape \(5,\)"),
        (np.zeros((8, 9, 3), np.int64), "of int64. Allowed: uint8, uint16, or floats from 0 to 1"),
        (np.zeros((8, 9), bool), "of bool. Allowed: uint8"),
        (np.full((8, 9, 3), 255.0), "values from 255 to 255. Allowed: 0 to 1, not normalized"),
        (np.full((8, 9, 3), -0.1), "values from -0.1 to -0.1"),
        (np.array([[0.5, np.nan]]), "values from nan to nan"),
        (
            torch.zeros(8, 9, 3),
            r"tensor has shape \(8, 9, 3\)\. Allowed: \(height, width\) or \(1, 3 or 4, height, width",
        ),
        (torch.zeros(2, 3, 8, 9), r"has shape \(3, 8, 9, 2\)|has shape \(2, 3, 8, 9\)"),
        (torch.randn(3, 8, 9), "Allowed: 0 to 1, not normalized"),
        (17, r"given as int\. Allowed: a path, encoded bytes, a PIL image, a NumPy array \(H, W, 3\) or a tensor"),
        (None, "given as NoneType"),
        (io.StringIO("text"), "open in text mode. Open it with mode 'rb'"),
    ],
)
def test_what_is_no_image(given_: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        to_photo(given_)


def test_a_pil_image_that_cannot_be_decoded() -> None:
    data = CUTS["JPEG"]
    with pytest.raises(ImageError, match=r"^input 2: it cannot be decoded$") as caught:
        to_photo(Image.open(io.BytesIO(data[: len(data) // 2 + 200])), name="input 2")
    assert caught.value.code == "truncated"
    with pytest.raises(ImageError, match=r"^the PIL image: 60 x 41 is") as caught:
        to_photo(Image.open(io.BytesIO(data)), ReadOptions(max_pixels=1000))
    assert caught.value.code == "too_large"


def test_a_header_tells_what_the_whole_photo_is(tmp_path: Path) -> None:
    codes = troubled_folder(tmp_path / "photos")
    for name, code in codes.items():
        path = tmp_path / "photos" / name
        if code is None:
            header, photo = read_header(path), read_photo(path)
            sides = header.size if header.orientation < 5 else header.size[::-1]
            assert (sides, header.ends) == (photo.image.size, True)
            with Image.open(path) as image:
                assert (header.format, header.mode) == (image.format, image.mode)
        elif code == "truncated":
            assert not read_header(path).ends
        else:
            with pytest.raises(ImageError) as caught:
                read_header(path)
            assert caught.value.code == code
    with pytest.raises(ImageError, match="more than the 0.1 allowed"):
        read_header(CHELSEA, ReadOptions(max_pixels=100_000))
