"""Photos for tests: real ones that pip packages carry, and files made wrong on purpose."""

from __future__ import annotations

import io
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

SKIMAGE = Path(str(files("skimage"))) / "data"
CHELSEA, COFFEE, ROCKET, ASTRONAUT = (
    SKIMAGE / name for name in ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")
)


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def crops(count: int, seed: int = 0) -> list[Image.Image]:
    """Crops of real photos, each another one."""
    generator = np.random.default_rng(seed)
    sources = [Image.open(p).convert("RGB") for p in (CHELSEA, COFFEE, ROCKET, ASTRONAUT)]
    found = []
    for i in range(count):
        source = sources[i % len(sources)]
        w, h = (int(generator.integers(60, 200)) for _ in range(2))
        left, top = int(generator.integers(source.width - w)), int(generator.integers(source.height - h))
        found.append(source.crop((left, top, left + w, top + h)))
    return found


def troubled_folder(folder: Path) -> dict[str, str | None]:
    """A folder with good photos and every kind of trouble; the error code that each file must get, None for none."""
    folder.mkdir(parents=True)
    rocket = ROCKET.read_bytes()
    photo = Image.open(CHELSEA).convert("RGB")
    shutil.copy(CHELSEA, folder / "a_good.png")
    (folder / "b_truncated.jpg").write_bytes(rocket[: len(rocket) // 2])
    (folder / "c_zero.jpg").write_bytes(b"")
    (folder / "d_text.jpg").write_text("no picture at all\n" * 50)
    photo.convert("CMYK").save(folder / "e_cmyk.jpg")
    grey = np.asarray(photo.convert("L"), np.uint16) * 257
    Image.fromarray(grey).save(folder / "f_16bit.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.rotate(90, expand=True).save(folder / "g_rotated.jpg", exif=exif, quality=95)
    photo.save(folder / "h_animated.gif", save_all=True, append_images=[photo.transpose(0)], duration=100)
    (folder / "notes.txt").write_text("not a photo, and not named outright")
    return {
        "a_good.png": None, "b_truncated.jpg": "truncated", "c_zero.jpg": "empty_file", "d_text.jpg": "not_an_image",
        "e_cmyk.jpg": None, "f_16bit.png": None, "g_rotated.jpg": None, "h_animated.gif": None,
    }  # fmt: skip
