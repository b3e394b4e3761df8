"""Measure how long `dla data check` takes, and how many of the duplicates it finds.

python benchmarks/data_check.py DATA              the time; files identical by SHA-256, and how many of them it finds
python benchmarks/data_check.py DATA --again 500  also: of 500 photos encoded again in other ways, the fraction it finds

DATA is as for `dla data check`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

import dla
from dla.data.dataset import find_sources
from dla.data.duplicates import near_groups
from dla.data.scan import scan_photos
from dla.images.decode import read_photo


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def scaled(image: Image.Image, by: float) -> Image.Image:
    return image.resize((round(image.width * by), round(image.height * by)), Image.Resampling.BICUBIC)


WAYS = {
    "JPEG, quality 90": lambda image: encoded(image, "JPEG", quality=90),
    "JPEG, quality 50": lambda image: encoded(image, "JPEG", quality=50),
    "JPEG, quality 20": lambda image: encoded(image, "JPEG", quality=20),
    "WebP, quality 75": lambda image: encoded(image, "WEBP", quality=75),
    "GIF, 64 colours": lambda image: encoded(image.quantize(64), "GIF"),
    "half the size": lambda image: encoded(scaled(image, 0.5), "PNG"),
    "0.7 of the size": lambda image: encoded(scaled(image, 0.7), "PNG"),
    "double the size": lambda image: encoded(scaled(image, 2), "PNG"),
    "half the size, JPEG, quality 70": lambda image: encoded(scaled(image, 0.5), "JPEG", quality=70),
}


def check(data: Path) -> None:
    report = dla.check_data(data)
    photos = sum(sum(classes.values()) for classes in report.splits.values())
    print(f"{photos:,} photos in {report.seconds:.0f} s, {photos / report.seconds:.0f} photos/s")
    found = {frozenset(name for name, _, _ in f.photos) for f in report.findings if f.exact}
    near = {f.photos for f in report.findings if f.exact is False}
    by_bytes = defaultdict(list)
    for source in find_sources(data).values():
        for photo, name in zip(source.photos, source.names, strict=True):
            content = photo if isinstance(photo, bytes) else Path(photo).read_bytes()
            by_bytes[hashlib.sha256(content).digest()].append(name)
    same = {frozenset(names) for names in by_bytes.values() if len(names) > 1}
    print(f"identical files by SHA-256: {len(same)} groups; found {len(same & found)}, and {len(found - same)} more")
    print(f"variants of one picture: {len(near)} groups")
    for kind in ("in_two_splits", "under_two_labels"):
        print(f"{kind}: {sum(f.kind == kind for f in report.findings)}")


def again(data: Path, count: int) -> None:
    source = next(iter(find_sources(data).values()))
    rows = np.random.default_rng(0).choice(len(source.photos), min(count, len(source.photos)), replace=False)
    photos = [source.photos[row] for row in rows]
    images = [read_photo(photo).image for photo in photos]
    for way, store in WAYS.items():
        both = photos + [store(image) for image in images]
        seen = list(scan_photos(both, [way] * len(both), 2))
        small = np.array([np.frombuffer(look.small, np.uint8) for look in seen])
        groups = near_groups(np.array([look.phash for look in seen], np.uint64), small)
        pairs = {(i, i + len(images)) for i in range(len(images))}
        wrong = sum(len({i % len(images) for i in group}) > 1 for group in groups)
        found = len(pairs & {tuple(group) for group in groups})
        print(f"{way:<34}{found / len(images):7.1%} found, {wrong} groups of other pictures")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--again", type=int, default=0, metavar="N")
    args = parser.parse_args()
    check(args.data)
    if args.again:
        again(args.data, args.again)
