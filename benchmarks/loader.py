"""Measure how long the training loop waits for data: dla34, 224 pixels, 2 workers, JPEGs.

    python benchmarks/loader.py [--photos 256] [--model dla34] [--workers 2]

Makes JPEGs of 500x375 in two classes, trains for one epoch with `dla train`, and prints the figures of `metrics.jsonl`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(folder: Path, count: int) -> None:
    """Write `count` training and 8 validation photos of smooth noise, so that their files are as large as photos."""
    generator = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 8)):
        for i in range(number):
            place = folder / split / f"class{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(generator.integers(0, 256, (75, 100, 3), np.uint8))
            small.resize((500, 375), Image.Resampling.BICUBIC).save(place / f"{i}.jpg", quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=256)
    parser.add_argument("--model", default="dla34")
    parser.add_argument("--workers", default="2")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, output = Path(folder, "photos"), Path(folder, "run")
        write_photos(data, args.photos)
        command = [sys.executable, "-m", "dla", "train", data, "--model", args.model, "--epochs", "1", "-o", output]
        subprocess.run([*command, "--batch-size", "32", "--lr", "0.01", "--workers", args.workers, "-q"], check=True)
        epoch = json.loads((output / "metrics.jsonl").read_text())
    print(
        f"{args.model}, 224 px, {args.workers} workers: {epoch['photos_per_second']:.1f} photos/s, "
        f"{epoch['data_wait']:.1%} of {epoch['seconds']:.0f} s spent waiting for photos"
    )


if __name__ == "__main__":
    main()
