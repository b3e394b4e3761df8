"""Tiles of a large photo beside the whole photo: equal labels, peak memory and time.

python benchmarks/tiles.py MODEL [PHOTOS] [--size 4000 3000] [--engine openvino]

MODEL is a segmentation network. The large photo is a mosaic of the photos of a folder, by default scikit-image's, so
that its details are as coarse as those that the network was trained on. Each run is a process of its own; its peak is
that of its resident memory, less what it is after a photo of 64x64 pixels.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from itertools import cycle, product
from pathlib import Path

import numpy as np
from PIL import Image

import dla

WHOLE = 65_536


def mosaic(folder: Path, width: int, height: int) -> Image.Image:
    names = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")
    photos = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg", ".webp"))
    if folder == skimage():
        photos = [folder / name for name in names]
    page, left = Image.new("RGB", (width, height)), cycle(photos)
    for x, y in product(range(0, width, 480), range(0, height, 360)):
        page.paste(Image.open(next(left)).convert("RGB").resize((480, 360)), (x, y))
    return page


def skimage() -> Path:
    return Path(str(files("skimage"))) / "data"


def measure(model: str, photo: str, tile: int, engine: str, mask: str) -> None:
    """Segment a photo in this process; print peak memory in MB, beyond that of a small photo, and seconds."""
    segmenter = dla.load(model, task="segment", engine=engine)
    segmenter(Image.new("RGB", (64, 64)), size="native")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    record = segmenter(photo, size="native", tile=tile)
    seconds = time.monotonic() - began
    np.save(mask, record.mask)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak_mb": (peak - before) / 1024, "total_mb": peak / 1024, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("photos", nargs="?", type=Path, default=skimage())
    parser.add_argument("--size", nargs=2, type=int, default=(4000, 3000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--tiles", nargs="+", type=int, default=(1024,))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photo = f"{folder}/photo.png"
        mosaic(args.photos, *args.size).save(photo, compress_level=1)
        masks = {}
        for tile in (WHOLE, *args.tiles):
            out = f"{folder}/{tile}.npy"
            command = [sys.executable, __file__, "--measure", args.model, photo, str(tile), args.engine, out]
            done = subprocess.run(command, capture_output=True, text=True)
            name = "whole" if tile == WHOLE else f"tiles of {tile}"
            if done.returncode:
                print(f"{name}: failed ({done.returncode}) {done.stderr[-300:]}")
                continue
            masks[tile] = np.load(out)
            found = json.loads(done.stdout.splitlines()[-1])
            equal = f", {(masks[tile] == masks[WHOLE]).mean():.4%} of labels equal" if WHOLE in masks else ""
            peak = f"{found['peak_mb']:,.0f} MB ({found['total_mb']:,.0f} in all)"
            print(f"{name}: {peak}, {found['seconds']:.1f} s{equal}", flush=True)


if __name__ == "__main__":
    if "--measure" in sys.argv[1:2]:
        measure(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5], sys.argv[6])
    else:
        main()
