"""Accuracy of a network on a parquet file of photos, measured by `dla predict` on files.

    python benchmarks/accuracy.py val.parquet [--model M] [--large] [--limit N]

The file has the columns `image` (encoded photos) and `synset`. Each photo is written to a file as it is; the command
classifies the folder; its records are counted. With --large each photo is first made a full-size one: scaled to 360
pixels, with 15 % more around it on each side (mirrored) and a wide format, as a stand-in for photos of a camera.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

SIDE, AROUND, WIDER = 360, 54, 60


def large(encoded: bytes) -> bytes:
    """A full-size photo with the small one in its middle."""
    photo = Image.open(io.BytesIO(encoded)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    border = ((AROUND, AROUND), (AROUND + WIDER, AROUND + WIDER), (0, 0))
    file = io.BytesIO()
    Image.fromarray(np.pad(np.asarray(photo), border, mode="reflect")).save(file, "JPEG", quality=90)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--model", default="shipped:tiny200")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    table = pq.read_table(args.photos, columns=["image", "synset"])
    rows = np.arange(len(table))
    if args.limit:  # the file may be sorted by class
        rows = np.sort(np.random.default_rng(0).permutation(rows)[: args.limit])
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            data = table["image"][int(row)].as_py()
            Path(folder, f"{row:06d}.jpg").write_bytes(large(data) if args.large else data)
        out = Path(folder, "out.jsonl")
        command = [sys.executable, "-m", "dla", "predict", folder, "--model", args.model, "-o", str(out)]
        subprocess.run([*command, "--batch-size", "32"], check=True)
        records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == len(rows)
    hits = {1: 0, 5: 0}
    for row, record in zip(rows, records, strict=True):
        ids = [c["class_id"] for c in record["predictions"]]
        for k in hits:
            hits[k] += table["synset"][int(row)].as_py() in ids[:k]
    print(f"{len(rows):,} photos: top-1 {hits[1] / len(rows):.2%}, top-5 {hits[5] / len(rows):.2%}")


if __name__ == "__main__":
    main()
