"""Take the pictures of docs/first-hour.md by its commands: some minutes; needs Chromium.

python docs/first_hour.py FLOWERS [RUN]

FLOWERS is TensorFlow's flower_photos, or its train/ folder: a folder per class. RUN, if given, is a finished run of the
same photos, so that only the pictures are taken.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURES = Path(__file__).parent / "pictures"
CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
EACH = 60  # photos of a class; the page says so
NEW = "daisy"  # the class of the photo that is kept out of the training


def gather(source: Path, desk: Path) -> Path:
    """Put EACH photos of each class into desk/flowers and the next daisy beside it; return that daisy."""
    for name in CLASSES:
        photos = sorted((source / name).glob("*.jpg"))
        folder = desk / "flowers" / name
        folder.mkdir(parents=True)
        for photo in photos[:EACH]:
            shutil.copy(photo, folder)
        if name == NEW:
            shutil.copy(photos[EACH], desk / "new.jpg")
            print("new.jpg is", photos[EACH].name)
    return desk / "new.jpg"


def dla(desk: Path, *words: str) -> None:
    print("$ dla", *words, flush=True)
    subprocess.run([sys.executable, "-m", "dla", *words], cwd=desk, check=True)


def screenshot(page: Path, picture: Path, width: int, heights: tuple[int, int]) -> None:
    """Save the rows of a page between two heights, in the pixels of a light screen that is `width` wide."""
    top, bottom = heights
    with tempfile.TemporaryDirectory() as aside:
        shot = Path(aside) / "shot.png"
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={aside}",
             f"--window-size={width},{bottom}", f"--screenshot={shot}", page.resolve().as_uri()],
            check=True, capture_output=True, env=os.environ | {"HOME": aside},
        )  # fmt: skip
        image = Image.open(shot).convert("RGB").crop((0, top, width, bottom))
        image.quantize(128, dither=Image.Dither.NONE).save(picture, optimize=True)


def picture_of(desk: Path, name: str, *words: str) -> None:
    dla(desk, "predict", "new.jpg", "--pictures", name, *words)
    (file,) = (desk / name).glob("*.png")
    Image.open(file).convert("RGB").quantize(256).save(PICTURES / f"first-hour-{name}.png", optimize=True)


def main(source: Path, run: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        desk = Path(folder)
        gather(source, desk)
        if run is None:
            run = Path("runs/finetune-small-flowers")
            dla(desk, "train", "flowers/")
        run = desk / run
        picture_of(desk, "builtin")
        picture_of(desk, "own", "--model", str(run / "best"))
        shutil.copy(run / "report.html", PICTURES.parent.parent / "build" / "report.html") if False else None
        screenshot(run / "report.html", PICTURES / "first-hour-report.png", 1000, (0, 1200))
        shown = sorted(set(re.findall(r"[\w/]+\.jpg", (run / "report.html").read_text())))
        print("photos named in the report:", *shown, sep="\n  ")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
