"""Make the pictures of docs/first-hour.md by its commands; takes some minutes and needs Chromium.

python docs/first_hour.py FLOWERS

FLOWERS has a folder of photos per class: TensorFlow's flower_photos (CC BY 2.0).
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from PIL import Image, ImageChops

PICTURES = Path(__file__).parent / "pictures"
CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
EACH = 60  # photos of a class, as the page says
RUN = Path("runs", "finetune-small-flowers")
WIDTH, HEIGHT = 900, 4000  # of the browser's window, in pixels


def gather(source: Path, desk: Path) -> None:
    """Put EACH photos of each class into desk/flowers, and the next daisy beside it as new.jpg."""
    for name in CLASSES:
        photos = sorted((source / name).glob("*.jpg"))
        folder = desk / "flowers" / name
        folder.mkdir(parents=True)
        for photo in photos[:EACH]:
            shutil.copy(photo, folder)
        if name == CLASSES[0]:
            shutil.copy(photos[EACH], desk / "new.jpg")
            print("new.jpg:", photos[EACH].name)


def dla(desk: Path, *words: str) -> None:
    print("$ dla", *words, flush=True)
    subprocess.run([sys.executable, "-m", "dla", *words], cwd=desk, check=True)


def answer(desk: Path, name: str, *words: str) -> None:
    """Save the picture of what `dla predict` answers to new.jpg."""
    dla(desk, "predict", "new.jpg", "--pictures", name, *words)
    (file,) = (desk / name).glob("*.png")
    _save(Image.open(file).resize((320, 436)), f"first-hour-{name}")


def sections(report: Path, name: str, titles: Collection[str], *, heading: bool) -> None:
    """Save some sections of a report, with or without its heading, as a browser shows them on a light screen."""
    page = re.sub(r"<section>\s*<h2>(.*?)</h2>.*?</section>", lambda m: m[0] if m[1] in titles else "",
                  report.read_text(), flags=re.DOTALL)  # fmt: skip
    if not heading:
        page = page.replace("</style>", "h1, h1 ~ p, footer { display: none }</style>", 1)
    with tempfile.TemporaryDirectory() as aside:
        part, shot = Path(aside, "part.html"), Path(aside, "shot.png")
        part.write_text(page)
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={aside}",
             f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}", part.as_uri()],
            check=True, capture_output=True, env=os.environ | {"HOME": aside},
        )  # fmt: skip
        image = Image.open(shot).convert("RGB")
    box = ImageChops.difference(image, Image.new("RGB", image.size, image.getpixel((0, HEIGHT - 1)))).getbbox()
    assert box is not None
    _save(image.crop((0, max(0, box[1] - 16), WIDTH, box[3] + 16)), name)


def _save(image: Image.Image, name: str) -> None:
    image.convert("RGB").quantize(256).save(PICTURES / f"{name}.png", optimize=True)


def main(source: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        desk = Path(folder)
        gather(source, desk)
        answer(desk, "builtin")
        dla(desk, "train", "flowers/")
        answer(desk, "own", "--model", str(RUN / "best"))
        report = desk / RUN / "report.html"
        sections(report, "first-hour-report", ["Results"], heading=True)
        sections(report, "first-hour-errors", ["Confusions", "Most confident errors"], heading=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
