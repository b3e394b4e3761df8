"""Score the Berkeley benchmark's own check photos and compare with the figures that its MATLAB code gave.

    python benchmarks/boundaries.py DIR

DIR holds `maps/<id>.png` (8 bits), `boundaries/<id>_<annotator>.png` (1 bit) and MATLAB's `eval_bdry.txt`,
`eval_bdry_img.txt` and `eval_bdry_thr.txt`, made with 5 thresholds: the files of BSR/bench/data (test_2 of
`test_bench.m`) with the annotators' maps as PNG. They are for research and education and are not in this repository.

Fails if ODS differs by more than 0.0003, or OIS, AP or a photo's F by more than 0.001.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dla.metrics.boundaries import count_boundaries, evaluate_boundaries
from dla.options import BoundaryOptions

OPTIONS = BoundaryOptions(thresholds=5, nms=False)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path)
    folder = parser.parse_args().folder
    maps = sorted((folder / "maps").glob("*.png"), key=lambda path: int(path.stem))  # MATLAB's order
    began = time.perf_counter()
    counts = [
        count_boundaries(
            read(path), [read(own) > 0 for own in sorted((folder / "boundaries").glob(f"{path.stem}_*.png"))], OPTIONS
        )
        for path in maps
    ]
    found = evaluate_boundaries([path.stem for path in maps], counts, OPTIONS)
    seconds = time.perf_counter() - began
    whole = np.loadtxt(folder / "eval_bdry.txt")
    photos, thresholds = (np.loadtxt(folder / f"eval_bdry_{name}.txt") for name in ("img", "thr"))
    rows = [
        ("ODS", found.ods.f1, whole[3], 0.0003),
        ("OIS", found.ois.f1, whole[6], 0.001),
        ("AP", found.ap, whole[7], 0.001),
        *(
            (f"F of {own.name}", own.best.f1, theirs, 0.001)
            for own, theirs in zip(found.photos, photos[:, 4], strict=True)
        ),
        *(
            (f"F at {at.threshold:.3f}", at.f1, theirs, 0.001)
            for at, theirs in zip(found.curve, thresholds[:, 3], strict=True)
        ),
    ]
    for name, ours, theirs, most in rows:
        print(f"{name:12} {ours:.6f}  MATLAB {theirs:.6f}  difference {ours - theirs:+.6f}  at most {most}")
    print(f"{seconds:.1f} s")
    return int(any(abs(ours - theirs) > most for _, ours, theirs, most in rows))


if __name__ == "__main__":
    sys.exit(main())
