"""Pack the photos that the thousand-class student is trained on into one Parquet file.

    python tools/wide1000/pack.py --sources sources.json --output .scratch/wide1000/union.parquet

`sources.json` names bare git directories: {"caltech101": DIR, "voc2007": DIR, "nips2017": DIR, "imagenette": DIR,
"groceries": DIR, "clothes": DIR, "tiny": DIR, "flowers5": FOLDER, "bsds500": FOLDER, "tests": {"samples": DIR,
"imagen": DIR, "val1300": DIR}}. Photos that look like a test photo (perceptual hash) are left out and counted.
Columns: image (WebP of the central square, 160 pixels; Tiny ImageNet's JPEGs as they are), source, name.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from multiprocessing import Pool
from pathlib import Path

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE, QUALITY = 160, 75
NEAR = 6  # bits of 64 in which two perceptual hashes of one picture may differ
PHOTO = re.compile(r"\.(jpe?g|png|webp)$", re.I)


def files_of(place: str) -> list[str]:
    """List the photos below a folder, or in the newest commit of a bare git directory."""
    if (Path(place) / "objects").is_dir():
        listed = subprocess.run(["git", "--git-dir", place, "ls-tree", "-rz", "--name-only", "HEAD"], check=True,
                                capture_output=True).stdout.decode().split("\0")  # fmt: skip
    else:
        listed = [str(path.relative_to(place)) for path in sorted(Path(place).rglob("*"))]
    return [name for name in listed if PHOTO.search(name)]


def read(place: str, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the names and bytes of photos, in order; from a git directory by one `git cat-file`."""
    if not (Path(place) / "objects").is_dir():
        yield from ((name, (Path(place) / name).read_bytes()) for name in names)
        return
    git = subprocess.Popen(["git", "--git-dir", place, "cat-file", "--batch"], stdin=subprocess.PIPE,
                           stdout=subprocess.PIPE)  # fmt: skip
    assert git.stdin is not None
    assert git.stdout is not None
    for name in names:
        git.stdin.write(f"HEAD:{name}\n".encode())
        git.stdin.flush()
        head = git.stdout.readline().split()
        if len(head) == 3 and head[1] == b"blob":
            yield name, git.stdout.read(int(head[2]))
            git.stdout.read(1)
    git.stdin.close()
    git.wait()


def capped(names: list[str], key: Callable[[str], str], most: int) -> list[str]:
    """Return at most `most` photos per key, drawn with a fixed seed."""
    groups = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    drawn = random.Random(0)
    return sorted(n for group in groups.values() for n in drawn.sample(group, min(most, len(group))))


def folder_of(name: str) -> str:
    return name.rpartition("/")[0]


CHOICE: dict[str, Callable[[list[str]], list[str]]] = {
    "caltech101": lambda names: capped([n for n in names if "Faces_easy" not in n], folder_of, 200),
    "voc2007": lambda names: names,
    "nips2017": lambda names: [n for n in names if n.startswith("dataset/images/")],
    "imagenette": lambda names: capped(names, lambda n: n.split("/")[1], 300),
    "groceries": lambda names: capped(
        [n for n in names if n.startswith("dataset/") and "iconic" not in n], folder_of, 10
    ),
    "clothes": lambda names: capped(names, lambda n: n.split("/")[-2], 150),
    "flowers5": lambda names: [n for n in names if n.startswith("train/")],
    "bsds500": lambda names: [n for n in names if n.startswith("train/") and "boundaries" not in n],
    "tiny": lambda names: capped([n for n in names if "/train/" in n], lambda n: n.split("/")[2], 125),
}


def square(data: bytes) -> Image.Image | None:
    """Return the central square of a photo at `SIDE` pixels, or None if it cannot be read or is tiny."""
    try:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (2 * SIDE, 2 * SIDE))
        image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None
    w, h = image.size
    side = min(w, h)
    if side < 32:
        return None
    box = ((w - side) / 2, (h - side) / 2, (w + side) / 2, (h + side) / 2)
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)


def bits(image: Image.Image) -> int:
    return int(str(imagehash.phash(image)), 16)


def prepared(item: tuple[str, str, bytes]) -> tuple[str, str, bytes | None, int]:
    source, name, data = item
    image = square(data)
    if image is None:
        return source, name, None, 0
    seen = bits(image)
    if source == "tiny":
        return source, name, data, seen
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY, method=4)
    return source, name, file.getvalue(), seen


def near_any(hashes_N: np.ndarray, seen: int) -> bool:
    return bool((np.bitwise_count(hashes_N ^ np.uint64(seen)) <= NEAR).any())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    places = json.loads(args.sources.read_text())
    tests = places.pop("tests")
    with Pool(2) as pool:
        hashes = []
        names = set()
        for place in tests.values():
            files = files_of(place)
            names |= {Path(name).name for name in files}
            hashes += [
                h for _, _, data, h in pool.imap(prepared, (("test", *pair) for pair in read(place, files)), 16) if data
            ]
        hashes_N = np.array(hashes, np.uint64)
        rows, left_out, unreadable = [], Counter(), Counter()
        for source, place in places.items():
            chosen = CHOICE[source](files_of(place))
            items = ((source, *pair) for pair in read(place, chosen))
            for _, name, data, seen in pool.imap(prepared, items, 16):
                if data is None:
                    unreadable[source] += 1
                elif Path(name).name in names or near_any(hashes_N, seen):
                    left_out[source] += 1
                else:
                    rows.append((data, source, name))
            print(source, sum(r[1] == source for r in rows), "kept,", left_out[source], "like a test photo,",
                  unreadable[source], "unreadable", flush=True)  # fmt: skip
    random.Random(0).shuffle(rows)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    image, source, name = zip(*rows, strict=True)
    pq.write_table(pa.table({"image": image, "source": source, "name": name}), args.output, compression="none")
    print(len(rows), "photos,", args.output.stat().st_size // 2**20, "MiB")


if __name__ == "__main__":
    main()
