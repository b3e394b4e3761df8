"""TIFF of every kind: what is read is what tifffile reads, and the rest is refused."""

from __future__ import annotations

import io
import itertools
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
import tifffile

from dla.errors import ImageError
from dla.images.decode import read_photo
from dla.options import ReadOptions

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

KINDS = {"minisblack": 0, "miniswhite": 0, "rgb": 3, "rgba": 4, "rgbx": 4, "cmyk": 4}
TYPES = ("uint8", "uint12", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64")
H, W = 19, 29
NOISE = np.random.default_rng(0).normal(0, 0.05, (H, W, 4))
SHARES = np.clip(np.linspace(0, 1, H * W * 4).reshape(H, W, 4)[..., ::-1] + NOISE, 0, 1)


def samples(kind: str, type_: str) -> np.ndarray[Any, Any]:
    """(H, W) or (H, W, C) from black to white."""
    shares = SHARES[..., : KINDS[kind]] if KINDS[kind] else SHARES[..., 0]
    if type_.startswith("float"):
        return shares.astype(type_)
    if type_ == "uint12":
        return np.rint(shares * 4095).astype(np.uint16)
    return np.rint(shares * np.iinfo(type_).max).astype(type_)


def encode(kind: str, type_: str, **options: Any) -> bytes:
    values = samples(kind, type_)
    if KINDS[kind]:
        if options["planarconfig"] == "separate":
            values = np.moveaxis(values, -1, 0)
    else:
        del options["planarconfig"]
    if extra := {"rgba": "unassalpha", "rgbx": "unspecified"}.get(kind):
        options["extrasamples"] = [extra]
    if type_ == "uint12":
        options["bitspersample"] = 12
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric={"rgba": "rgb", "rgbx": "rgb"}.get(kind, kind), **options)
    return file.getvalue()


def expected(kind: str, type_: str, data: bytes) -> np.ndarray[Any, Any]:
    """RGB from 0 to 1, of tifffile's samples and the documented ranges."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        values = file.asarray().astype(np.float64)
    if KINDS[kind] and values.shape[0] == KINDS[kind]:
        values = np.moveaxis(values, 0, -1)
    white = {"uint8": 255, "uint12": 4095, "uint16": 65535, "float16": 1, "float32": 1, "float64": 1}.get(type_)
    white = 65535 if type_ == "int16" else white  # the first documented range that holds all of it
    low, high = (0, white) if white else (values.min(), values.max())
    shares = (values - low) / (high - low)
    shares = 1 - shares if kind == "miniswhite" else shares
    if shares.ndim == 2:
        return np.repeat(shares[..., None], 3, axis=2)
    if kind == "cmyk":
        return (1 - shares[..., :3]) * (1 - shares[..., 3:])
    return shares[..., :3] * shares[..., 3:] + 1 - shares[..., 3:] if kind == "rgba" else shares[..., :3]


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_right(kind: str, type_: str, capfd: pytest.CaptureFixture[str]) -> None:
    seen: Counter[str] = Counter()
    for order, planes, packed, tile, big in itertools.product(
        "<>", ("contig", "separate"), (None, "deflate", "lzw", "packbits"), (None, (16, 16)), (False, True)
    ):
        if planes == "separate" and not KINDS[kind]:
            continue
        try:
            data = encode(kind, type_, byteorder=order, planarconfig=planes, compression=packed, tile=tile, bigtiff=big)
        except (NotImplementedError, ValueError):
            seen["tifffile does not write it"] += 1
            continue
        try:
            found = np.asarray(read_photo(data).image) / 255
        except ImageError as error:
            seen["refused" if error.code == "decode_error" else error.code] += 1
            continue
        seen["equal"] += 1
        levels = np.abs(found - expected(kind, type_, data)).max() * 255
        assert levels <= (2.1 if kind in ("cmyk", "rgba") else 1.1), (order, planes, packed, tile, big)
    if type_ in ("uint8", "uint16") or (kind == "minisblack" and type_ in ("uint32", "float32")):
        assert seen["equal"] >= seen["refused"] / 2 or sys.byteorder == "big", seen
    assert set(seen) <= {"equal", "refused", "tifffile does not write it"}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("code", [34892, 50001, 34712, 9999])
def test_an_unknown_compression_is_refused_in_our_words(code: int, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encode("rgb", "uint8", planarconfig="contig"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[0].tags["Compression"].valueoffset
    data[at : at + 2] = code.to_bytes(2, "little")
    with pytest.raises(ImageError, match=f"TIFF files with compression {code} cannot be read"):
        read_photo(bytes(data))
    assert capfd.readouterr().err == ""


def test_tiles_that_are_listed_as_strips_are_refused() -> None:
    """As in libtiff's cramps-tile.tif: Pillow would read tiles as strips and miss the end of the file."""
    data = bytearray(encode("rgb", "uint8", planarconfig="contig", tile=(16, 16)))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages[0].tags
        at = {name: tags[name].offset for name in ("TileOffsets", "TileByteCounts")}
    for name, strip in (("TileOffsets", 273), ("TileByteCounts", 279)):
        data[at[name] : at[name] + 2] = strip.to_bytes(2, "little")
    for options in (ReadOptions(), ReadOptions(allow_truncated=True)):
        with pytest.raises(ImageError, match="TIFF files with tiles that are listed as strips cannot be read"):
            read_photo(bytes(data), options)


def test_a_whole_big_endian_bigtiff_is_not_called_truncated() -> None:
    data = encode("rgb", "uint8", planarconfig="contig", byteorder=">", bigtiff=True)
    with pytest.raises(ImageError) as refused:
        read_photo(data)
    assert refused.value.code == "decode_error"
