"""A look at a photo: what is kept of it, in whatever way the looks are shared out."""

import io
import sys
from dataclasses import replace

import imagehash
import numpy as np
import pytest
from PIL import Image

from dla.data.scan import scan_photos
from support.photos import CHELSEA, crops, jpeg


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str | bytes]:
    path = tmp_path_factory.mktemp("photos") / "cat.png"
    path.write_bytes(CHELSEA.read_bytes())
    return [str(path), b"", *(jpeg(c) for c in crops(150)), str(path.with_name("gone.jpg"))]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_however_many_work_the_looks_are_the_same(photos: list[str | bytes], workers: int) -> None:
    names = [f"photo {i}" for i in range(len(photos))]
    alone = list(scan_photos(photos, names, 0))
    assert list(scan_photos(photos, names, workers)) == alone
    assert [i for i, look in enumerate(alone) if look.error] == [1, len(photos) - 1]
    assert [look.error.code for look in alone if look.error] == ["empty_file", "not_found"]
    assert alone[1].error.message.startswith("photo 1: ")


def test_looks_may_be_given_up(photos: list[str | bytes]) -> None:
    running = scan_photos(photos, ["x"] * len(photos), 2)
    assert next(running).header.format == "PNG"
    running.close()


def test_the_digest_is_of_the_upright_pixels() -> None:
    picture = crops(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    picture.rotate(90, expand=True).save(turned, "PNG", exif=exif)
    wide = Image.frombytes("RGB", (picture.height, picture.width), picture.tobytes())
    photos = [encoded(picture, "PNG"), encoded(picture, "BMP"), turned.getvalue(), encoded(wide, "PNG"), jpeg(picture)]
    seen = list(scan_photos(photos, ["x"] * 5, 0))
    digests = [look.digest for look in seen]
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests)) == 3
    assert [look.header.orientation for look in seen] == [1, 1, 6, 1, 1]


def test_bits_are_imagehashs(photos: list[str | bytes]) -> None:
    """Their distance is that of imagehash's own objects."""
    seen = [look for look in scan_photos(photos, ["x"] * len(photos), 0) if look.error is None]
    images = [Image.open(io.BytesIO(p)).convert("RGB").resize((64, 64), Image.Resampling.BOX) for p in photos[2:12]]
    theirs = [imagehash.phash(image) for image in images]
    for i in range(10):
        for j in range(10):
            assert (seen[i + 1].phash ^ seen[j + 1].phash).bit_count() == theirs[i] - theirs[j]


def test_small_pictures_are_of_the_whole(photos: list[str | bytes]) -> None:
    small = np.frombuffer(next(scan_photos(photos[:1], ["x"], 0)).small, np.uint8).reshape(16, 16, 3)
    whole = np.asarray(Image.open(CHELSEA).convert("RGB"), np.float64)
    for c in range(3):  # the mean of equal parts is the mean
        assert abs(small[..., c].mean() - whole[..., c].mean()) < 1


def test_without_imagehash_all_else_is_the_same(photos: list[str | bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(scan_photos(photos[:3], ["x"] * 3, 0))
    monkeypatch.setitem(sys.modules, "imagehash", None)
    assert list(scan_photos(photos[:3], ["x"] * 3, 0)) == [replace(one, phash=None) for one in whole]
