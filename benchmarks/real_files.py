"""Compare the pixels of real image files with those of independent readers: OpenCV, libvips and tifffile.

    pip install opencv-python-headless pyvips pyvips-binary tifffile imagecodecs
    python benchmarks/real_files.py FOLDER... [--list]

Each folder gets a line, for example the checkout of an image library with its test files. A file is equal to a reader's
if no value differs by more than one level of 255, and close if it was compressed with loss and its values differ by
at most `CLOSE` levels on average: decoders interpolate colours differently. `--list` prints the others.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyvips
import tifffile

from dla.errors import ImageError
from dla.images.decode import read_photo
from dla.options import ReadOptions

CLOSE = 1.5
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
LOSSY = {".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff"}

Array = np.ndarray[Any, Any]


def shares(values: Array, white: float | None = None) -> Array:
    """Return the samples from 0 to 1, by the documented ranges."""
    values = values.astype(np.float64)
    if white is None:
        known = values[np.isfinite(values)]
        low, high = known.min(), known.max()
        white = next((w for w in (1, 255, 65535) if low >= 0 and high <= w), None)
        if white is None:
            return np.asarray((values - low) / ((high - low) or 1))
    return values / white


def on_white(values_HWC: Array) -> Array:
    """Return RGB of grey, grey with alpha, RGB or RGBA."""
    if values_HWC.ndim == 2:
        values_HWC = values_HWC[:, :, None]
    channels = values_HWC.shape[2]
    alpha = values_HWC[:, :, -1:] if channels in (2, 4) else 1.0
    colours = values_HWC[:, :, : 1 if channels < 3 else 3]
    return np.broadcast_to(colours * alpha + 1 - alpha, (*values_HWC.shape[:2], 3))


def without_ink(cmyk_HW4: Array) -> Array:
    return (1 - cmyk_HW4[..., :3]) * (1 - cmyk_HW4[..., 3:4])


def from_ycbcr(values_HW3: Array) -> Array:
    """Convert by BT.601, as TIFF does where it names no other coefficients."""
    y, cb, cr = (values_HW3[..., i] for i in range(3))
    cb, cr = cb - 128 / 255, cr - 128 / 255
    return np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)


def from_lab(values_HW3: Array) -> Array:
    """Convert 8-bit CIELAB of white point D50 to sRGB: http://www.brucelindbloom.com"""
    lightness = values_HW3[..., 0].astype(np.float64) * 100 / 255
    a, b = (values_HW3[..., i].view(np.int8).astype(np.float64) for i in (1, 2))
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.96422, 1, 0.82521]
    matrix = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.033454],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = np.clip(xyz @ np.array(matrix).T, 0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


WHITE = {"uint8": 255, "uint16": 65535, "uchar": 255, "ushort": 65535}


def by_opencv(path: Path) -> Array:
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("OpenCV does not read it")
    if path.suffix.lower() == ".bmp" and (values.ndim == 2 or values.shape[2] == 3):
        values = cv2.imread(str(path), cv2.IMREAD_COLOR)  # unchanged, OS/2 bitmaps would be grey
    if values.ndim == 3 and values.shape[2] >= 3:
        values = values[:, :, [2, 1, 0, *range(3, values.shape[2])]]
    white = WHITE.get(values.dtype.name)
    if path.suffix.lower() == ".avif":  # OpenCV leaves 10 and 12 bits as they are
        white = next(2**bits - 1 for bits in (8, 10, 12) if values.max() < 2**bits)
    return on_white(shares(values, white))


def by_vips(path: Path) -> Array:
    image = pyvips.Image.new_from_file(str(path), fail_on="error").autorot()
    values = image.numpy()
    values = values if values.ndim == 3 else values[:, :, None]
    if image.interpretation == "cmyk":
        return without_ink(shares(values, 255))
    if image.interpretation in ("lab", "labs"):
        return by_vips_in_srgb(image)
    return on_white(shares(values, WHITE.get(image.format)))


def by_vips_in_srgb(image: Any) -> Array:
    return on_white(shares(image.colourspace("srgb").numpy(), 255))


def by_tifffile(path: Path) -> Array:
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        values = page.asarray()
    if page.planarconfig == 2 and values.ndim == 3:
        values = np.moveaxis(values, 0, -1)
    white = {"u1": 255, "u2": 2 ** min(page.bitspersample, 16) - 1, "b1": 1}.get(values.dtype.str[1:])
    white = 2**page.bitspersample - 1 if page.bitspersample < 8 else white
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        values, white = np.moveaxis(page.colormap, 0, -1)[values], 65535
    if page.photometric == tifffile.PHOTOMETRIC.CIELAB:
        return from_lab(values)
    values = shares(values, white)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        values = 1 - values
    if page.photometric == tifffile.PHOTOMETRIC.SEPARATED:
        return without_ink(values)
    if page.photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression not in (6, 7):
        values = np.clip(from_ycbcr(values), 0, 1)
    if values.ndim == 3 and values.shape[2] > 3 and page.extrasamples[:1] == (tifffile.EXTRASAMPLE.ASSOCALPHA,):
        return np.asarray(values[:, :, :3] + 1 - values[:, :, 3:4])
    if values.ndim == 3 and values.shape[2] > 3 and page.extrasamples[:1] != (tifffile.EXTRASAMPLE.UNASSALPHA,):
        values = values[:, :, :3]
    return on_white(values[:, :, :4] if values.ndim == 3 else values)


@dataclass(frozen=True)
class Reader:
    name: str
    read: Callable[[Path], Array]
    exif: str


READERS = (
    Reader("libvips", by_vips, "apply"),
    Reader("OpenCV", by_opencv, "ignore"),
    Reader("tifffile", by_tifffile, "ignore"),
)


@dataclass(frozen=True)
class Outcome:
    kind: str
    reason: str = ""


def outcome(path: Path) -> Outcome:
    """Read a file here and by each reader; return how well the nearest one agrees."""
    try:
        ours = {exif: np.asarray(read_photo(path, ReadOptions(exif=exif)).image) / 255 for exif in ("apply", "ignore")}  # type: ignore[arg-type]
    except ImageError as error:
        others = [r.name for r in READERS if isinstance(values_of(r, path), np.ndarray)]
        return Outcome(f"refused: {error.code}", f"{error} (read by {', '.join(others) or 'no other'})")
    found = {r.name: difference(ours[r.exif], values_of(r, path)) for r in READERS}
    read = {name: one for name, one in found.items() if not isinstance(one, str)}
    if not read:
        return Outcome("no reader", "; ".join(f"{name}: {why}" for name, why in found.items()))
    if min(most for most, _ in read.values()) <= 1.01:
        return Outcome("equal")
    if path.suffix.lower() in LOSSY and min(mean for _, mean in read.values()) <= CLOSE:
        return Outcome("close")
    reasons = (
        why if isinstance(why, str) else f"{why[0]:.1f} at most, {why[1]:.2f} on average" for why in found.values()
    )
    return Outcome("different", "; ".join(f"{name}: {why}" for name, why in zip(found, reasons, strict=True)))


def values_of(reader: Reader, path: Path) -> Array | str:
    if reader.name == "tifffile" and path.suffix.lower() not in (".tif", ".tiff"):
        return "not a TIFF"
    try:
        return reader.read(path)
    except Exception as error:  # of whatever type the readers raise
        return str(error).partition("\n")[0]


def difference(ours: Array, theirs: Array | str) -> tuple[float, float] | str:
    """Return the largest and the mean difference in levels, or why there is none."""
    if isinstance(theirs, str):
        return theirs
    if ours.shape != theirs.shape:
        return f"{theirs.shape} instead of {ours.shape}"
    levels = 255 * np.abs(ours - theirs)
    return float(levels.max()), float(levels.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--list", action="store_true", help="print each file that is not equal or close")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for folder in args.folders:
        counts: Counter[str] = Counter()
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
            one = outcome(path)
            counts[one.kind] += 1
            if args.list and one.kind not in ("equal", "close"):
                print(f"  {path.relative_to(folder)}: {one.kind}: {one.reason}", flush=True)
        print(
            f"{folder.name}: {sum(counts.values())} files",
            *(f"{n} {kind}" for kind, n in sorted(counts.items())),
            sep=", ",
            flush=True,
        )


if __name__ == "__main__":
    main()
