"""Classify the photos that are bundled with scikit-image, matplotlib and scikit-learn; find the outlines of a cup, and
buildings, trees and sky in a street scene. `make demo` runs this.

python examples/demo.py [FOLDER]        pictures go to FOLDER (default: build/demo)
"""

import sys
import time
from importlib.resources import files
from pathlib import Path

from PIL import Image

import dla
from dla.inference.classifier import draw_prediction
from dla.options import cores

PHOTOS = {
    "skimage.data": ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png"),
    "matplotlib.mpl-data": ("sample_data/grace_hopper.jpg",),
    "sklearn.datasets": ("images/china.jpg", "images/flower.jpg"),
}


def photos() -> list[Path]:
    found = []
    for package, names in PHOTOS.items():
        top, _, inner = package.partition(".")
        found += [Path(str(files(top))) / inner.replace(".", "/") / name for name in names]
    return found


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    paths = photos()
    began = time.perf_counter()
    classifier = dla.load()
    predictions = list(classifier.predict(paths))
    seconds = time.perf_counter() - began

    print(f"{'photo':<18}{'1st':<27}{'2nd':<27}{'3rd'}")
    for path, prediction in zip(paths, predictions, strict=True):
        best = [f"{c.label:<18}{100 * c.probability:3.0f} %" for c in prediction.classes[:3]]
        print(f"{path.name:<18}" + "   ".join(f"{b:<24}" for b in best).rstrip())
        draw_prediction(Image.open(path), prediction).save(folder / f"{path.stem}.png")
    coffee, china = paths[1], paths[5]
    Image.fromarray(dla.load("shipped:bsds")(coffee).probability).save(folder / "coffee-outlines.png")
    dla.load("shipped:camvid")(china).overlay().save(folder / "china-classes.png")
    print(
        f"{len(paths)} photos in {seconds:.1f} s ({classifier.origin}, {classifier.engine.name}, "
        f"{cores()} threads). Pictures: {folder}/*.png"
    )
    print(f"It knows {len(classifier.classes)} classes; `dla predict --model dla60` knows a thousand.")
    print(
        "In a browser, with your own photos: .venv/bin/pip install '.[serve]' once, then .venv/bin/dla serve, and open "
        "http://127.0.0.1:8080"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo"))
