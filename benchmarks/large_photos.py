"""Measure a network's accuracy on full-size versions of the small photos of a parquet file, with `dla validate`.

    python benchmarks/large_photos.py val.parquet [--model M] [--limit 3000]

The file has the columns `image` (encoded photos) and `synset`. Each photo is scaled to 360 pixels, with 15 % more
around it on each side (mirrored) and a wide format, to resemble photos of a camera. For the original photos no script
is needed: `dla validate val.parquet --model M`.
"""

import argparse
import io
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE, AROUND, WIDER = 360, 54, 60


def large(encoded: bytes) -> bytes:
    """Return a full-size photo with the small one in its centre."""
    photo = Image.open(io.BytesIO(encoded)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    border = ((AROUND, AROUND), (AROUND + WIDER, AROUND + WIDER), (0, 0))
    file = io.BytesIO()
    Image.fromarray(np.pad(np.asarray(photo), border, mode="reflect")).save(file, "JPEG", quality=90)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--model", default="shipped:tiny200")
    parser.add_argument("--limit", type=int, default=3000)
    args = parser.parse_args()
    table = pq.read_table(args.photos, columns=["image", "synset"])
    # the file may be sorted by class
    rows = np.sort(np.random.default_rng(0).permutation(len(table))[: args.limit])
    images = [large(table["image"][int(row)].as_py()) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "val.parquet")
        pq.write_table(pa.table({"image": images, "synset": table["synset"].take(rows)}), file)
        command = [sys.executable, "-m", "dla", "validate", str(file), "--model", args.model, "--batch-size", "32"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
