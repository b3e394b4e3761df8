"""Small photos for runs of seconds: two classes that a colour tells apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

PLAIN = str(Path(__file__).with_name("plain.yaml"))  # the recipe of all defaults
COLOURS = {"blue": (40, 60, 200), "red": (200, 60, 40)}


def write(folder: Path, train: int = 20, val: int = 5) -> Path:
    """A folder with train/ and val/, `train` and `val` photos a class."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                noise = generator.integers(-40, 40, (40, 48, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder
