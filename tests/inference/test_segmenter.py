"""A mask lies on its photo, pixel for pixel, whatever the photo's size, mode and orientation."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

import dla
from dla.engines.torch import TorchEngine
from dla.images.preprocessing import Preprocessing
from dla.inference.dense_maps import logits_of
from dla.inference.segmenter import class_areas
from dla.models.dense import Dense
from dla.models.registry import LOGITS
from dla.types import ClassName
from support.oracle import randomise
from support.photos import CHELSEA, troubled_folder
from support.pixel_models import BLUE, GREEN, RED, segmenter
from support.tiny import tiny

SIZES = [(1, 1), (1, 2), (2, 1), (1, 333), (500, 1), (3, 3), (31, 33), (32, 32), (61, 97), (333, 500), (500, 333)]


def colours(width: int, height: int) -> Image.Image:
    """Pixels of one of three colours, at random."""
    ids = np.random.default_rng(width * 1000 + height).integers(0, 3, (height, width))
    return Image.fromarray(np.array([RED, GREEN, BLUE], np.uint8)[ids])


def ids_of(photo: Image.Image) -> np.ndarray:
    return np.asarray(photo.convert("RGB")).argmax(2)


@pytest.mark.parametrize("size", SIZES)
def test_the_mask_has_the_size_of_the_photo(size: tuple[int, int]) -> None:
    photo = colours(*size)
    native = segmenter()(photo)
    assert native.mask is not None
    assert (native.mask == ids_of(photo)).all()
    for record in (segmenter()(photo, size=7), segmenter(short_side=40)(photo), segmenter()(photo, size=min(size) + 5)):
        assert record.error is None
        assert record.mask is not None
        assert record.mask.shape == (photo.height, photo.width)
        assert sum(c.pixels for c in record.classes) == photo.width * photo.height
        assert record.to_dict()["width"] == photo.width


@pytest.mark.parametrize("place", [0, 1, 2, 17, 45, 46, 47])
@pytest.mark.parametrize("size", ["native", 66, 77, 99])
def test_a_line_of_one_pixel_is_found_where_it_is(place: int, size: int | str) -> None:
    pixels = np.full((33, 48, 3), GREEN, np.uint8)
    pixels[:, place] = RED
    for turned in (pixels, pixels.transpose(1, 0, 2)):
        mask = segmenter()(turned, size=size).mask
        assert mask is not None
        assert ((mask == 0) == (turned == RED).all(2)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_has_the_mask_of_the_upright_one(orientation: int) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    colours(21, 13).save(file, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue())))
    mask = segmenter()(file.getvalue()).mask
    assert mask is not None
    assert mask.shape == (upright.height, upright.width)
    assert (mask == ids_of(upright)).all()


def test_photos_of_every_mode() -> None:
    photo = colours(20, 14)
    grey = Image.fromarray((np.arange(280).reshape(14, 20) * 200).astype(np.uint16))
    frames = [Image.new("RGB", (20, 14), colour) for colour in (BLUE, GREEN)]
    animation = io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    wanted = [(photo.convert("RGBA"), ids_of(photo)), (photo.quantize(3), ids_of(photo)), (photo.convert("L"), 0),
              (grey, 0), (animation.getvalue(), 2)]  # fmt: skip
    for image, ids in wanted:
        record = segmenter()(image)
        assert record.mask is not None, record.error
        assert record.mask.shape == (14, 20)
        assert (record.mask == ids).all()


def test_each_input_has_its_record(tmp_path: Path) -> None:
    expected = troubled_folder(tmp_path / "photos")
    paths = [str(tmp_path / "photos" / name) for name in expected]
    records = segmenter()([*paths, object()], size=20)
    assert not isinstance(records, list)
    *found, last = records
    assert [r.path for r in found] == paths
    assert [r.error.code if r.error else None for r in found] == list(expected.values())
    assert last.error is not None
    assert last.error.code == "not_an_image"
    with pytest.raises(dla.ImageError):
        segmenter()(str(tmp_path / "gone.jpg"), strict=True)


def test_a_thin_photo_that_would_be_too_large_is_refused_alone() -> None:
    thin = Image.new("RGB", (1, 20_000), GREEN)
    refused, fine = segmenter(short_side=360)([thin, Image.new("RGB", (9, 9))])
    assert refused.error is not None
    assert refused.error.code == "too_large"
    assert refused.error.message == (
        "input 0: with a short side of 360, its 1x20000 pixels would be 360x7,200,000, more than 179 megapixels. "
        "Try --size native"
    )
    assert fine.error is None
    mask = segmenter(short_side=360)(thin, size="native").mask
    assert mask is not None
    assert mask.shape == (20_000, 1)


def test_probabilities_are_those_of_the_mask() -> None:
    for size in ("native", 50):
        record = segmenter()(colours(40, 30), size=size, probabilities=True)
        assert record.probabilities is not None
        assert record.probabilities.dtype == np.float16
        np.testing.assert_allclose(record.probabilities.astype(np.float32).sum(0), 1, atol=2e-3)
        assert (record.probabilities.argmax(0) == record.mask).all()


@pytest.mark.parametrize(("classes", "dtype"), [(255, np.uint8), (256, np.uint16)])
def test_masks_have_16_bits_above_255_classes(classes: int, dtype: type) -> None:
    record = segmenter(classes)(colours(5, 4))
    assert record.mask is not None
    assert record.mask.dtype == dtype
    assert (record.mask == ids_of(colours(5, 4))).all()


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 4)))
def test_areas_are_those_of_a_count(mask_HW: np.ndarray) -> None:
    classes = tuple(ClassName(f"n{k}", f"name {k}", "") for k in range(5))
    pixels: dict[int, list[tuple[int, int]]] = {}
    for y, row in enumerate(mask_HW.tolist()):
        for x, k in enumerate(row):
            pixels.setdefault(k, []).append((x, y))
    areas = class_areas(mask_HW, classes)
    assert [a.index for a in areas] == sorted(pixels, key=lambda k: (-len(pixels[k]), k))
    for area in areas:
        own = pixels[area.index]
        (xs, ys) = zip(*own, strict=True)
        assert (area.pixels, area.share) == (len(own), len(own) / mask_HW.size)
        assert area.box == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
        assert (area.class_id, area.label) == (f"n{area.index}", f"name {area.index}")


@pytest.mark.slow
def test_tiles_give_the_labels_of_the_whole_photo() -> None:
    net = Dense.over(tiny(), 5, 2)
    randomise(net)
    compute = TorchEngine(net.eval(), *Preprocessing().scale_shift(), "cpu").features_at(LOGITS)
    photo = Image.open(CHELSEA).convert("RGB").resize((900, 700))
    with torch.inference_mode():
        whole, tiled = (np.concatenate(list(logits_of(np.array(photo), compute, tile)), 1) for tile in (900, 512))
    assert len(np.unique(whole.argmax(0))) > 2
    assert (whole.argmax(0) == tiled.argmax(0)).mean() >= 0.995


def test_an_input_without_a_mask_has_no_overlay() -> None:
    (record,) = segmenter()(["gone.jpg"])
    with pytest.raises(ValueError, match=r"gone.jpg has no mask: gone.jpg: there is no such file"):
        record.overlay()
