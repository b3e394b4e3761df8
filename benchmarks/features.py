"""Compare the peak memory of `dla features` at 20,000 inputs and at 1,000, for each file format, pooled and a map.

    python benchmarks/features.py [--photos 1000] [--counts 1000 20000] [--model shipped:tiny200]

The inputs are paths on standard input, the photos of benchmarks/predict.py repeated; each run is a process of its own,
whose peak the kernel reports. The rows are counted afterwards. Needs the extras `demo` and `train`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from predict import make_photos

RUNS = [(at, ending) for at in ("pre_logits", "level4.tree1") for ending in ("npz", "parquet")]


def peak_mb(model: str, at: str, listed: Path, out: Path) -> float:
    command = [
        sys.executable,
        "-m",
        "dla",
        "features",
        "-",
        "-q",
        "--model",
        model,
        "--at",
        at,
        "--force",
        "-o",
        str(out),
    ]
    with listed.open() as lines, subprocess.Popen(command, stdin=lines) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss / 1024


def rows(out: Path) -> int:
    if out.suffix == ".parquet":
        return int(pq.ParquetFile(out).metadata.num_rows)
    with np.load(out) as arrays:
        return len(arrays["error_code"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--counts", type=int, nargs=2, default=[1_000, 20_000])
    parser.add_argument("--model", default="shipped:tiny200")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        photos = work / "photos"
        photos.mkdir()
        make_photos(photos, args.photos)
        paths = sorted(map(str, photos.iterdir()))
        print(f"{args.model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.photos} photos")
        for at, ending in RUNS:
            peaks = []
            for count in args.counts:
                listed, out = work / "list.txt", work / f"out.{ending}"
                listed.write_text("\n".join((paths * (count // len(paths) + 1))[:count]))
                peaks.append(peak_mb(args.model, at, listed, out))
                assert rows(out) == count
                size = out.stat().st_size / 1e6
                print(f"{at:13}{ending:8}  {count:6,} inputs: peak {peaks[-1]:.0f} MB, file {size:.1f} MB")
                out.unlink()
            print(f"{at:13}{ending:8}  ratio {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
