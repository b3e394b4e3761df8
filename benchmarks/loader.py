"""How long the training loop waits for its photos: dla34, 224 pixels, 2 workers, photos as cameras save them.

    python benchmarks/loader.py [--photos 256] [--model dla34] [--workers 2]

Makes JPEGs of 500x375 in two classes, trains for one epoch by `dla train`, and prints what `metrics.jsonl` says.
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
    """`count` photos to train with and 8 to validate on; smooth noise, so that their files have a photo's size."""
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
