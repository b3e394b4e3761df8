"""Masks are read as ids, never as colours by accident; what holds no ids is refused; photos turn their masks along."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dla.data.mask_classes import MaskClasses
from dla.data.masks import check_mask_header, read_boundaries, read_ids, read_mask, require_known
from dla.errors import ImageError
from dla.images.decode import Header, read_header, read_photo
from dla.options import ReadOptions

COLORS = ((128, 0, 0), (0, 128, 0), (0, 0, 128))
CLASSES = MaskClasses(("sky", "road", "car"), (0, 1, 2), 11, COLORS, ((0, 0, 0),))
PLAIN = MaskClasses(tuple("abcdefgh"), tuple(range(8)))
IDS = np.array([[0, 1, 2, 0], [2, 11, 1, 1], [0, 0, 2, 11]])


def palette(ids: np.ndarray) -> Image.Image:
    """A palette image whose colours mislead: index i has the colour of grey 255 - i."""
    image = Image.fromarray(ids.astype(np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([255 - i // 3 for i in range(768)])
    return image


WRITERS = {
    "P": lambda ids, path: palette(ids).save(path),
    "L": lambda ids, path: Image.fromarray(ids.astype(np.uint8)).save(path),
    "I;16": lambda ids, path: Image.fromarray(ids.astype(np.uint16)).save(path),
    "I": lambda ids, path: Image.fromarray(ids.astype(np.int32)).save(path.with_suffix(".tif")),
    "P, 4 bits": lambda ids, path: palette(ids).save(path, bits=4),
    "TIFF L": lambda ids, path: tifffile.imwrite(path.with_suffix(".tif"), ids.astype(np.uint8)),
    "TIFF I;16": lambda ids, path: tifffile.imwrite(path.with_suffix(".tif"), ids.astype(np.uint16)),
}


def written(folder: Path) -> str:
    (path,) = folder.iterdir()
    return str(path)


@pytest.mark.parametrize("mode", WRITERS)
def test_ids_are_the_stored_values(tmp_path: Path, mode: str) -> None:
    WRITERS[mode](IDS, tmp_path / "m.png")
    np.testing.assert_array_equal(read_ids(written(tmp_path)), IDS)
    mask = read_mask(written(tmp_path), CLASSES)
    np.testing.assert_array_equal(mask.ids_HW, IDS)
    assert not mask.unknown
    assert require_known("m.png", mask, CLASSES) is mask.ids_HW


def test_ids_of_one_bit(tmp_path: Path) -> None:
    Image.fromarray(IDS == 1).save(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "1"
    np.testing.assert_array_equal(read_ids(str(tmp_path / "m.png")), IDS == 1)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_is_not_scaled(tmp_path: Path, bits: int) -> None:
    """Pillow reads the grey values 0 to 3 of 2 bits as 0 to 255; the file is written by hand, since it writes none."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
    row = bytes([0, 0b00011011]) if bits == 2 else bytes([0, 0x01, 0x23])
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert read_ids(str(tmp_path / "m.png")).tolist() == [[0, 1, 2, 3]]


def rgb(ids: np.ndarray) -> np.ndarray:
    table = np.zeros((256, 3), np.uint8)
    table[: len(COLORS)] = COLORS
    return table[ids]


def test_colours_are_read_exactly_where_classes_have_some(tmp_path: Path) -> None:
    pixels = rgb(IDS)
    Image.fromarray(pixels).save(tmp_path / "m.png")
    path = str(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(path, CLASSES).ids_HW, IDS)
    with pytest.raises(ImageError, match="it is RGB, but the classes have no colors"):
        read_mask(path, PLAIN)
    pixels[0, 0] = (128, 0, 1)
    Image.fromarray(pixels).save(path)
    mask = read_mask(path, CLASSES)
    assert mask.unknown == {"#800001": 1}
    with pytest.raises(ImageError, match=r"m\.png has 1 pixels of #800001, the colour of no class"):
        require_known(path, mask, CLASSES)


def test_an_unknown_id_is_named_with_its_pixels(tmp_path: Path) -> None:
    ids = IDS.copy()
    ids[0, :3] = 19
    Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "t.png")
    mask = read_mask(str(tmp_path / "t.png"), CLASSES)
    assert mask.unknown == {19: 3}
    with pytest.raises(ImageError, match=r"t\.png has 3 pixels of id 19\. Known: 0 to 2 and 11 \(ignored\)") as raised:
        require_known(str(tmp_path / "t.png"), mask, CLASSES)
    assert raised.value.code == "unknown_id"


def test_stored_ids_need_not_be_consecutive(tmp_path: Path) -> None:
    Image.fromarray(np.array([[7, 100, 255]], np.uint8)).save(tmp_path / "m.png")
    found = read_mask(str(tmp_path / "m.png"), MaskClasses(("7", "100"), (7, 100)))
    assert found.ids_HW.tolist() == [[0, 1, 255]]


REFUSED = {
    "jpeg": (lambda p: Image.fromarray(IDS.astype(np.uint8)).save(p, "JPEG"), "lossy_mask", "JPEG is lossy"),
    "webp": (lambda p: Image.fromarray(rgb(IDS)).save(p, "WEBP"), "lossy_mask", "WebP is lossy"),
    "jpeg in tiff": (
        lambda p: Image.fromarray(IDS.astype(np.uint8)).save(p, "TIFF", compression="jpeg"), "lossy_mask", "lossy",
    ),
    "gif": (lambda p: palette(IDS).save(p, "GIF"), "not_a_mask", "masks are PNG or TIFF files, this is GIF"),
    "LA": (lambda p: Image.new("LA", (3, 3)).save(p, "PNG"), "not_a_mask", "it has transparency"),
    "RGBA": (lambda p: Image.new("RGBA", (3, 3)).save(p, "PNG"), "not_a_mask", "it has transparency"),
    "float": (lambda p: Image.new("F", (3, 3)).save(p, "TIFF"), "not_a_mask", "it holds floats"),
    "CMYK": (lambda p: Image.new("CMYK", (3, 3)).save(p, "TIFF"), "not_a_mask", "it is of mode CMYK"),
    "frames": (
        lambda p: palette(IDS).save(p, "TIFF", save_all=True, append_images=[palette(IDS)]), "not_a_mask", "frames",
    ),
    "animated": (
        lambda p: palette(IDS).save(p, "PNG", save_all=True, append_images=[palette(-IDS)]), "not_a_mask", "frames",
    ),
    "negative": (lambda p: Image.fromarray(-IDS.astype(np.int32)).save(p, "TIFF"), "not_a_mask", "the value -11"),
    "empty": (lambda p: p.write_bytes(b""), "empty_file", "zero bytes"),
    "text": (lambda p: p.write_text("no mask"), "not_an_image", "not a photo"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_holds_no_ids_is_refused_with_a_reason(tmp_path: Path, kind: str) -> None:
    write, code, message = REFUSED[kind]
    write(tmp_path / "m.png")
    with pytest.raises(ImageError, match=message) as raised:
        read_mask(str(tmp_path / "m.png"), CLASSES)
    assert raised.value.code == code
    assert "m.png" in str(raised.value)


def test_limits_hold_for_masks(tmp_path: Path) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "m.png")
    for options in (ReadOptions(max_pixels=9_999), ReadOptions(max_bytes=10)):
        with pytest.raises(ImageError) as raised:
            read_ids(str(tmp_path / "m.png"), options)
        assert raised.value.code == "too_large"


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo in each EXIF orientation, 6x4 pixels as stored; red is the pixel's number."""
    folder = tmp_path_factory.mktemp("turned")
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[..., 0] = np.arange(24).reshape(4, 6)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(folder / f"{orientation}.png", exif=exif)
    return folder


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_of_the_stored_size_turns_with_its_photo(tmp_path: Path, turned: Path, orientation: int) -> None:
    photo = turned / f"{orientation}.png"
    upright = np.asarray(read_photo(photo).image)[..., 0]
    classes = MaskClasses(tuple(str(i) for i in range(24)), tuple(range(24)))
    stored = np.asarray(Image.open(photo))[..., 0]
    for ids, size_tells in [(stored, orientation >= 5), (upright, True)]:
        Image.fromarray(ids).save(tmp_path / "m.png")
        mask = read_mask(str(tmp_path / "m.png"), classes, read_header(photo))
        # where both sizes are equal, the mask is taken as upright
        np.testing.assert_array_equal(mask.ids_HW, upright if size_tells else stored)
        assert mask.ambiguous == (orientation in (2, 3, 4))
    np.testing.assert_array_equal(upright, np.asarray(ImageOps.exif_transpose(Image.open(photo)))[..., 0])


def test_another_size_is_told_with_both(tmp_path: Path) -> None:
    Image.new("L", (3, 2)).save(tmp_path / "m.png")
    header = Header("PNG", (30, 20), "RGB", 1, True)
    for check in (
        lambda path: read_mask(path, CLASSES, header),
        lambda path: check_mask_header(path, read_header(path), header),
        lambda path: read_boundaries(path, header),
    ):
        with pytest.raises(ImageError, match=r"m\.png has 3x2 pixels, its photo 30x20") as raised:
            check(str(tmp_path / "m.png"))
        assert raised.value.code == "size_differs"


@given(st.integers(0, 999), st.sampled_from([1, 255]))
@settings(max_examples=10)
def test_boundaries_of_one_bit_and_of_255_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, seed: int, top: int
) -> None:
    lines = np.random.default_rng(seed).random((5, 7)) < 0.3
    path = tmp_path_factory.mktemp("lines") / "m.png"
    for image in (Image.fromarray(lines), Image.fromarray((lines * top).astype(np.uint8))):
        image.save(path)
        np.testing.assert_array_equal(read_boundaries(str(path)), lines)


def test_a_soft_map_is_no_annotators_map(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 100, 255]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match="has 3 values. Allowed: 0 and 1, or 0 and 255") as raised:
        read_boundaries(str(tmp_path / "m.png"))
    assert raised.value.code == "not_two_valued"
